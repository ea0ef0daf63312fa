//! Saves of the profile while programs run, by many processes at once, that are killed at
//! any moment.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};

use crate::fixture::Numbers;
use crate::privileges::built;
use crate::special::{LIMIT, Test, expect};
use crate::support::{End, run, temper};

pub fn trials() -> Vec<Trial> {
    let tests: &[(&str, Test)] = &[
        ("a program that is killed leaves a profile", killed),
        (
            "eight programs at once, killed while they save",
            killed_at_random,
        ),
    ];
    tests
        .iter()
        .map(|&(name, test)| Trial::test(name, test))
        .collect()
}

fn start(program: &str, profiles: &Path, every: &str) -> Result<Child, Failed> {
    Ok(temper()
        .env("TEMPER_SAVE_EVERY", every)
        .args(["run", "--profile-dir"])
        .arg(profiles)
        .args(["--", program])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?)
}

fn kill(mut child: Child) -> Result<(), Failed> {
    child.kill()?;
    child.wait()?;
    Ok(())
}

fn with_extension(folder: &Path, extension: &str) -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return BTreeSet::new();
    };
    let paths = entries.flatten().map(|entry| entry.path());
    paths
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .map(|path| path.display().to_string())
        .collect()
}

/// `temper profile list` of a folder: no complaint, and the program is there.
fn sound(profiles: &Path, program: &str) -> Result<(), Failed> {
    let mut list = temper();
    list.args(["profile", "list", "--profile-dir"])
        .arg(profiles);
    let listed = run(list, b"", LIMIT)?;
    let shown = String::from_utf8_lossy(&listed.stdout).into_owned();
    let name = Path::new(program).file_name().expect("a name");
    expect(
        listed.end == End::Exit(0)
            && listed.stderr.is_empty()
            && shown.contains(&*name.to_string_lossy()),
        "the list of profiles",
        &listed,
    )?;
    let damaged = with_extension(profiles, "damaged");
    if !damaged.is_empty() {
        return Err(format!("damaged: {damaged:?}").into());
    }
    Ok(())
}

/// On a busy host the first save of the program's own code takes its time.
fn wait_for_profile(profiles: &Path, program: &str) {
    let started = Instant::now();
    while sound(profiles, program).is_err() && started.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn killed() -> Result<(), Failed> {
    let Some(program) = built("guests/worker.c") else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let profiles = folder.path().join("profiles");
    let child = start(&program, &profiles, "50")?;
    wait_for_profile(&profiles, &program);
    kill(child)?;
    sound(&profiles, &program)
}

fn killed_at_random() -> Result<(), Failed> {
    let Some(program) = built("guests/worker.c") else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let profiles = folder.path().join("profiles");
    let mut numbers = Numbers(8);
    let mut known = BTreeSet::new();
    let mut running: Vec<Child> = Vec::new();
    for _ in 0..32 {
        while running.len() < 8 {
            running.push(start(&program, &profiles, "5")?);
        }
        std::thread::sleep(Duration::from_millis(numbers.below(200)));
        let victim = numbers.below(running.len() as u64) as usize;
        kill(running.swap_remove(victim))?;
        let now = with_extension(&profiles, "profile");
        if let Some(lost) = known.difference(&now).next() {
            return Err(format!("lost: {lost}").into());
        }
        known = now;
    }
    wait_for_profile(&profiles, &program);
    for child in running {
        kill(child)?;
    }
    sound(&profiles, &program)?;
    // And a run that ends by itself has nothing to complain of.
    let mut last = temper();
    last.args(["run", "--profile-dir"]).arg(&profiles);
    last.args(["--", "/usr/bin/true"]);
    let outcome = run(last, b"", LIMIT)?;
    expect(
        outcome.end == End::Exit(0) && outcome.stderr.is_empty(),
        "a run after them",
        &outcome,
    )
}
