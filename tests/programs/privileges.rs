//! Where Temper can't be what the program asks for, or may be in its way: jails, tracers,
//! credentials that change while a profile is saved.

use std::process::{Command, Stdio};

use libtest_mimic::{Failed, Trial};

use crate::fixture;
use crate::special::{LIMIT, Test, expect, guest, same, text};
use crate::support::{End, run};

pub fn trials() -> Vec<Trial> {
    let tests: &[(&str, Test)] = &[
        ("a program traces one that isn't Temper's", native_tracee),
        ("tracing under Temper is refused by name", refused_tracee),
        ("a jail keeps the profile out, with one warning", jail),
        (
            "credentials change while profiles are saved",
            busy_credentials,
        ),
    ];
    tests
        .iter()
        .map(|&(name, test)| Trial::test(name, test))
        .collect()
}

/// One of the sources in tests/programs, built; `None` when it can't be, which is said.
pub fn built(source: &str) -> Option<String> {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/programs")
        .join(source);
    match fixture::built("gcc", &["-O1"], &source) {
        Ok(program) => Some(program.to_str().expect("UTF-8").to_owned()),
        Err(why) => {
            eprintln!("skipped: {why}");
            None
        }
    }
}

fn native_tracee() -> Result<(), Failed> {
    let Some(tracer) = built("guests/tracer.c") else {
        return Ok(());
    };
    let mut sleeper = Command::new("/usr/bin/sleep")
        .arg("60")
        .stdout(Stdio::null())
        .spawn()?;
    let pid = sleeper.id().to_string();
    let mut native = Command::new(&tracer);
    native.arg(&pid);
    let native = run(native, b"", LIMIT);
    let outcome = guest(&[], &[&tracer, &pid]);
    sleeper.kill()?;
    sleeper.wait()?;
    let native = native?;
    if native.end != End::Exit(0) {
        eprintln!("skipped: this host lets nobody trace: {native:?}");
        return Ok(());
    }
    same("a tracer", &native, &outcome?)
}

fn refused_tracee() -> Result<(), Failed> {
    let Some(tracer) = built("guests/tracer.c") else {
        return Ok(());
    };
    let outcome = guest(&[], &[&tracer])?;
    expect(outcome.end == End::Exit(0), "exit status", &outcome)?;
    let said = text(&outcome.stderr);
    let notices: Vec<&str> = said.lines().collect();
    expect(
        notices.len() == 2 && notices[0].contains("ptrace") && notices[1].contains("userfaultfd"),
        "one notice for each call",
        &outcome,
    )?;
    let results = text(&outcome.stdout);
    let refused = "traceme: -1 Operation not permitted\n";
    expect(
        results.starts_with(&refused.repeat(2)) && results.contains("userfaultfd: -1"),
        "errors",
        &outcome,
    )
}

fn jail() -> Result<(), Failed> {
    let Some(jail) = built("guests/jail.c") else {
        return Ok(());
    };
    let root = tempfile::tempdir()?;
    let name = root.path().to_str().expect("UTF-8");
    let mut native = Command::new(&jail);
    native.arg(name);
    let native = run(native, b"", LIMIT)?;
    if native.end != End::Exit(0) {
        eprintln!("skipped: chroot needs privileges");
        return Ok(());
    }
    let profiles = tempfile::tempdir()?;
    let folder = profiles.path().join("profiles");
    let options = ["--profile-dir", folder.to_str().expect("UTF-8")];
    let outcome = guest(&options, &[&jail, name])?;
    expect(
        outcome.end == native.end && outcome.stdout == native.stdout,
        "the program's own output",
        &outcome,
    )?;
    let said = text(&outcome.stderr);
    expect(
        said.lines().count() == 1
            && said.starts_with("temper: warning: ")
            && said.contains(name_of(&options)),
        "one warning that names the folder",
        &outcome,
    )?;
    if std::fs::read_dir(root.path())?.next().is_some() {
        return Err("something was written into the jail".into());
    }
    Ok(())
}

fn name_of<'a>(options: &[&'a str; 2]) -> &'a str {
    options[1]
}

/// Some of the calls fail while there is a second thread.
fn busy_credentials() -> Result<(), Failed> {
    let Some(program) = built("c/credentials.c") else {
        return Ok(());
    };
    let native = run(Command::new(&program), b"", LIMIT)?;
    for _ in 0..5 {
        let profiles = tempfile::tempdir()?;
        let mut command = crate::support::temper();
        command
            .env("TEMPER_SAVE_EVERY", "1")
            .args(["run", "--profile-dir"])
            .arg(profiles.path())
            .arg("--")
            .arg(&program);
        let outcome = run(command, b"", LIMIT)?;
        expect(
            outcome.end == native.end && outcome.stdout == native.stdout,
            "the same as natively",
            &outcome,
        )?;
    }
    Ok(())
}
