//! What a comparison with one native run can't say: limits of the environment, options of
//! Temper's own, and what isn't supported.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};

use crate::fixture;
use crate::support::{End, Outcome, run, temper};

const LIMIT: Duration = Duration::from_secs(60);

type Test = fn() -> Result<(), Failed>;

pub fn trials() -> Vec<Trial> {
    let tests: &[(&str, Test)] = &[
        ("statistics as text and JSON", statistics),
        (
            "statistics of a program that closes everything",
            closed_everything,
        ),
        ("a limit on the size of files", file_size_limit),
        ("a huge argument list", huge_arguments),
        ("an empty environment", empty_environment),
        ("a program's own name and path", own_name),
        ("a program is found in PATH", found_in_path),
        ("a script starts its interpreter", script),
        ("verify finds nothing to say", verify),
        ("verify says that threads end it", verify_and_threads),
        (
            "the second run uses the first one's profile",
            profile_is_used,
        ),
        ("statistics are shown once", statistics_once),
        ("options survive an exec", options_survive_exec),
        ("children add to the profiles", children_are_profiled),
        ("a daemon lets go of standard error", daemon_lets_go),
        ("set-user-ID programs are refused", privileged_programs),
    ];
    tests
        .iter()
        .map(|&(name, test)| Trial::test(name, test))
        .collect()
}

fn guest(options: &[&str], command: &[&str]) -> Result<Outcome, Failed> {
    let mut temper = temper();
    temper.arg("run").args(options).arg("--").args(command);
    if !options.contains(&"--profile-dir") {
        temper.env("TEMPER_PROFILE_DIR", fixture::scratch().join("profiles"));
    }
    Ok(run(temper, b"", LIMIT)?)
}

fn same(what: &str, native: &Outcome, outcome: &Outcome) -> Result<(), Failed> {
    if native == outcome {
        Ok(())
    } else {
        Err(format!("{what}\nnatively: {native:?}\nunder Temper: {outcome:?}").into())
    }
}

fn expect(fine: bool, what: &str, outcome: &Outcome) -> Result<(), Failed> {
    if fine {
        Ok(())
    } else {
        Err(format!("{what}: {outcome:?}").into())
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn statistics() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("stats.json");
    let name = file.to_str().expect("UTF-8");
    let outcome = guest(
        &["--stats", "--stats-json", name],
        &["/usr/bin/seq", "1", "2000"],
    )?;
    expect(outcome.end == End::Exit(0), "exit status", &outcome)?;
    let shown = text(&outcome.stderr);
    for part in ["interpreter", "blocks", "code cache", "exits", "profile"] {
        expect(shown.contains(part), part, &outcome)?;
    }
    let stats: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    let number = |pointer: &str| stats.pointer(pointer).and_then(serde_json::Value::as_f64);
    for positive in [
        "/seconds",
        "/interpreter/instructions",
        "/interpreter/blocks",
        "/blocks/translated",
        "/blocks/code_bytes",
        "/cache/capacity_bytes",
        "/cache/used_bytes",
        "/cache/peak_bytes",
        "/cache/indirect_map_bytes",
        "/interpreter/native_instructions",
        "/profile/load_seconds",
        "/memory/peak_bytes",
    ] {
        if number(positive).is_none_or(|value| value <= 0.0) {
            return Err(format!("{positive} isn't positive in {stats:#}").into());
        }
    }
    let calls = number("/syscalls/passed").zip(number("/syscalls/handled"));
    if calls.is_none_or(|(passed, handled)| passed + handled < 10.0) {
        return Err(format!("hardly any system calls in {stats:#}").into());
    }
    Ok(())
}

/// Its own standard error is closed at its end, and it used each number once.
fn closed_everything() -> Result<(), Failed> {
    let source =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/c/descriptors.c");
    let program = match fixture::built("gcc", &["-O1"], &source) {
        Ok(program) => program,
        Err(why) => {
            eprintln!("skipped: {why}");
            return Ok(());
        }
    };
    let outcome = guest(&["--stats"], &[program.to_str().expect("UTF-8")])?;
    expect(outcome.end == End::Exit(3), "exit status", &outcome)?;
    expect(
        text(&outcome.stderr).contains("code cache"),
        "statistics",
        &outcome,
    )
}

/// It is the guest's, and Temper lives with it.
fn file_size_limit() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "ulimit -f 1; exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_temper"))
        .args(["run", "--profile-dir"])
        .arg(folder.path())
        .args(["/usr/bin/seq", "3000"]);
    let outcome = run(command, b"", LIMIT)?;
    expect(outcome.end == End::Exit(0), "exit status", &outcome)?;
    let mut native = Command::new("/usr/bin/seq");
    native.arg("3000");
    let native = run(native, b"", LIMIT)?;
    expect(outcome.stdout == native.stdout, "output", &outcome)?;
    expect(
        text(&outcome.stderr).starts_with("temper: warning: "),
        "a warning that the profile isn't saved",
        &outcome,
    )
}

fn huge_arguments() -> Result<(), Failed> {
    let mut args: Vec<String> = (0..20_000)
        .map(|index| format!("argument-{index}"))
        .collect();
    // The longest single argument that Linux takes is 128 KiB.
    args.push("x".repeat(100_000));
    args.push(String::new());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut native = Command::new("/usr/bin/echo");
    native.args(&args);
    let native = run(native, b"", LIMIT)?;
    let command: Vec<&str> = std::iter::once("/usr/bin/echo").chain(args).collect();
    same("echo", &native, &guest(&[], &command)?)
}

fn empty_environment() -> Result<(), Failed> {
    let mut native = Command::new("/usr/bin/env");
    native.env_clear();
    let native = run(native, b"", LIMIT)?;
    let mut command = temper();
    command
        .args(["run", "--no-profile", "/usr/bin/env"])
        .env_clear();
    same("env", &native, &run(command, b"", LIMIT)?)
}

/// The command line and the link to the executable are the guest's, not Temper's.
fn own_name() -> Result<(), Failed> {
    for command in [
        ["/usr/bin/cat", "/proc/self/cmdline"],
        ["/usr/bin/cat", "/proc/self/comm"],
        ["/usr/bin/readlink", "/proc/self/exe"],
    ] {
        let mut native = Command::new(command[0]);
        native.arg(command[1]);
        let native = run(native, b"", LIMIT)?;
        same(command[1], &native, &guest(&[], &command)?)?;
    }
    Ok(())
}

fn found_in_path() -> Result<(), Failed> {
    // A program sees the name that it was called by, not the path where it was found.
    let mut native = Command::new("/usr/bin/ls");
    native.arg0("ls").arg("/nothing-here");
    let native = run(native, b"", LIMIT)?;
    same("ls", &native, &guest(&[], &["ls", "/nothing-here"])?)
}

fn script() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("script");
    std::fs::write(
        &path,
        "#!/usr/bin/mawk -f\nBEGIN { print ARGC, ARGV[1]; exit 3 }\n",
    )?;
    let mut permissions = std::fs::metadata(&path)?.permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    std::fs::set_permissions(&path, permissions)?;
    let name = path.to_str().expect("UTF-8");
    // By way of mawk, as the kernel would: the script itself may be "busy" for a moment,
    // while a child forked by another test's thread holds it open.
    let mut native = Command::new("/usr/bin/mawk");
    native.args(["-f", name, "word"]);
    let native = run(native, b"", LIMIT)?;
    same("script", &native, &guest(&[], &[name, "word"])?)
}

fn verify() -> Result<(), Failed> {
    for command in [
        &["/usr/bin/true"][..],
        &["/usr/bin/seq", "1", "30"],
        &["/usr/bin/expr", "6", "*", "7"],
    ] {
        let mut native = Command::new(command[0]);
        native.args(&command[1..]);
        let native = run(native, b"", LIMIT)?;
        same("--verify", &native, &guest(&["--verify"], command)?)?;
    }
    Ok(())
}

fn verify_and_threads() -> Result<(), Failed> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/c/threads_std.cpp");
    let program = match fixture::built("g++", &["-O2", "-pthread"], &source) {
        Ok(program) => program,
        Err(why) => {
            eprintln!("skipped: {why}");
            return Ok(());
        }
    };
    let native = run(Command::new(&program), b"", LIMIT)?;
    let outcome = guest(&["--verify"], &[program.to_str().expect("UTF-8")])?;
    let said = text(&outcome.stderr);
    expect(
        said.lines().count() == 1 && said.contains("--verify: the program has started a thread"),
        "one line that says so",
        &outcome,
    )?;
    expect(
        (outcome.end, &outcome.stdout) == (native.end, &native.stdout),
        "the rest as natively",
        &outcome,
    )
}

/// Nothing that was hot in the first run is interpreted at length in the second.
fn profile_is_used() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let profiles = folder.path().join("profiles");
    let file = folder.path().join("stats.json");
    let options = [
        "--profile-dir",
        profiles.to_str().expect("UTF-8"),
        "--stats-json",
        file.to_str().expect("UTF-8"),
    ];
    let mut interpreted = Vec::new();
    let mut loaded = Vec::new();
    for _ in 0..2 {
        let outcome = guest(&options, &["/usr/bin/seq", "1", "20000"])?;
        expect(outcome.end == End::Exit(0), "exit status", &outcome)?;
        let stats: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
        interpreted.push(stats["interpreter"]["instructions"].as_u64().unwrap_or(0));
        loaded.push(stats["profile"]["records_loaded"].as_u64().unwrap_or(0));
    }
    if loaded[0] == 0 && loaded[1] > 0 && interpreted[1] < interpreted[0] {
        Ok(())
    } else {
        Err(format!("records loaded {loaded:?}, instructions interpreted {interpreted:?}").into())
    }
}

/// Children show none, and a program that becomes another shows them once.
fn statistics_once() -> Result<(), Failed> {
    let script = "/bin/true; (exit 1); x=$(/bin/echo); exec /usr/bin/seq 3";
    let outcome = guest(&["--stats"], &["/bin/sh", "-c", script])?;
    expect(outcome.end == End::Exit(0), "exit status", &outcome)?;
    expect(outcome.stdout == b"1\n2\n3\n", "output", &outcome)?;
    let shown = text(&outcome.stderr).matches("code cache").count();
    expect(shown == 1, "one table", &outcome)
}

/// Temper's options aren't in the environment, and a program that empties it keeps them.
fn options_survive_exec() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("stats.json");
    let name = file.to_str().expect("UTF-8");
    let options = ["--max-tier", "interpreter", "--stats-json", name];
    let outcome = guest(&options, &["/usr/bin/env", "-i", "/usr/bin/env"])?;
    expect(outcome.end == End::Exit(0), "exit status", &outcome)?;
    expect(outcome.stdout.is_empty(), "an empty environment", &outcome)?;
    let stats: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    let translated = stats["blocks"]["translated"].as_u64();
    expect(translated == Some(0), "nothing translated", &outcome)
}

fn children_are_profiled() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let name = folder.path().to_str().expect("UTF-8");
    let script = "/usr/bin/seq 30000 | /usr/bin/sort -n | /usr/bin/tail -n 1";
    let outcome = guest(&["--profile-dir", name], &["/bin/sh", "-c", script])?;
    expect(outcome.stdout == b"30000\n", "output", &outcome)?;
    let mut list = temper();
    list.args(["profile", "list", "--profile-dir", name]);
    let listed = run(list, b"", LIMIT)?;
    for program in ["seq", "sort"] {
        expect(text(&listed.stdout).contains(program), program, &listed)?;
    }
    Ok(())
}

/// Temper's copy of standard error isn't a daemon's, or its reader would wait for the daemon.
fn daemon_lets_go() -> Result<(), Failed> {
    let script = "(sleep 20 > /dev/null 2>&1 < /dev/null &)";
    let started = std::time::Instant::now();
    let outcome = guest(&[], &["/bin/sh", "-c", script])?;
    expect(outcome.end == End::Exit(0), "exit status", &outcome)?;
    expect(
        started.elapsed().as_secs() < 15,
        "no wait for the daemon",
        &outcome,
    )
}

fn privileged_programs() -> Result<(), Failed> {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("true");
    std::fs::copy("/bin/true", &path)?;
    let owned = std::os::unix::fs::chown(&path, Some(65534), Some(65534));
    let mode = std::fs::set_permissions(&path, PermissionsExt::from_mode(0o4755));
    if owned.and(mode).is_err() {
        eprintln!("skipped: not root, so there is no other user to run as");
        return Ok(());
    }
    let name = path.to_str().expect("UTF-8");
    let outcome = guest(&[], &[name])?;
    expect(outcome.end == End::Exit(126), "exit status", &outcome)?;
    expect(
        text(&outcome.stderr).contains("set-user-ID"),
        "the reason",
        &outcome,
    )?;
    let script = format!("{name}; echo $?");
    let outcome = guest(&[], &["/bin/sh", "-c", &script])?;
    let said = text(&outcome.stderr);
    expect(outcome.stdout == b"126\n", "the shell's status", &outcome)?;
    expect(said.contains("set-user-ID"), "the reason", &outcome)?;
    expect(said.contains("Operation not permitted"), "EPERM", &outcome)
}
