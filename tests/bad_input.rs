//! What Temper can't run, or can't keep: each is one line on standard error and the exit
//! status that shells use (126 and 127; 125 for Temper's own failure), or a warning while
//! the run goes on.

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::{End, Outcome, run, temper};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);
const TRUE: &str = "/usr/bin/true";

fn folder() -> TempDir {
    tempfile::tempdir().expect("temporary folder")
}

/// Writes an executable file.
fn executable(path: &Path, contents: &[u8]) {
    fs::write(path, contents).expect("write");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("permissions");
}

fn guest(options: &[&str], command: &[&str]) -> Outcome {
    let mut temper = temper();
    temper.arg("run").args(options).arg("--").args(command);
    temper.env("LC_ALL", "C");
    run(temper, b"", LIMIT).expect("temper starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One line of Temper's own that holds `word`, this status, and nothing else.
#[track_caller]
fn is_refused(outcome: &Outcome, status: i32, word: &str) {
    assert_eq!(outcome.end, End::Exit(status), "{outcome:?}");
    assert!(outcome.stdout.is_empty(), "{outcome:?}");
    let line = text(&outcome.stderr);
    assert!(line.starts_with("temper: "), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains(word), "`{word}` is missing in {line}");
}

#[track_caller]
fn program_is_refused(contents: &[u8], status: i32, word: &str) {
    let folder = folder();
    let path = folder.path().join("program");
    executable(&path, contents);
    let name = path.to_str().expect("UTF-8");
    let outcome = guest(&["--no-profile"], &[name]);
    is_refused(&outcome, status, word);
    assert!(text(&outcome.stderr).contains(name), "{outcome:?}");
}

#[test]
fn a_missing_program_is_127() {
    is_refused(&guest(&[], &["/nonexistent/program"]), 127, "/nonexistent");
    is_refused(&guest(&[], &["no-such-program"]), 127, "no-such-program");
    is_refused(&guest(&[], &[""]), 127, "empty");
}

#[test]
fn a_program_without_permission_is_126() {
    let folder = folder();
    let path = folder.path().join("program");
    fs::copy(TRUE, &path).expect("copy");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("permissions");
    let outcome = guest(&[], &[path.to_str().expect("UTF-8")]);
    is_refused(&outcome, 126, "permission");
}

#[test]
fn a_folder_and_a_device_are_126() {
    is_refused(&guest(&[], &["/usr/bin"]), 126, "/usr/bin");
    is_refused(&guest(&[], &["/dev/null"]), 126, "/dev/null");
}

#[test]
fn a_loop_of_links_is_an_error() {
    let folder = folder();
    let path = folder.path().join("program");
    symlink("program", &path).expect("link");
    let outcome = guest(&[], &[path.to_str().expect("UTF-8")]);
    is_refused(&outcome, 126, "program");
}

#[test]
fn what_is_not_an_elf_file_is_126() {
    program_is_refused(b"", 126, "ELF");
    program_is_refused(b"\x7fEL", 126, "ELF");
    program_is_refused(b"just text\n", 126, "ELF");
    program_is_refused(&[0x90; 4096], 126, "ELF");
}

#[test]
fn a_script_whose_interpreter_is_missing_is_named() {
    let folder = folder();
    let path = folder.path().join("script");
    executable(&path, b"#!/nonexistent/interpreter\n");
    let outcome = guest(&["--no-profile"], &[path.to_str().expect("UTF-8")]);
    assert!(matches!(outcome.end, End::Exit(126 | 127)), "{outcome:?}");
    assert!(text(&outcome.stderr).contains("/nonexistent/interpreter"));
    assert_eq!(text(&outcome.stderr).lines().count(), 1);
}

#[test]
fn a_script_that_interprets_itself_ends() {
    let folder = folder();
    let path = folder.path().join("script");
    executable(&path, format!("#!{}\n", path.display()).as_bytes());
    let outcome = guest(&["--no-profile"], &[path.to_str().expect("UTF-8")]);
    assert!(matches!(outcome.end, End::Exit(125 | 126)), "{outcome:?}");
    assert_eq!(text(&outcome.stderr).lines().count(), 1);
}

/// A complete i386 program: `mov eax, 1; xor ebx, ebx; int 0x80`.
fn i386_program() -> Vec<u8> {
    let code = [0xb8, 1, 0, 0, 0, 0x31, 0xdb, 0xcd, 0x80];
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |file: &mut Vec<u8>, value: u16| file.extend(value.to_le_bytes());
    let word = |file: &mut Vec<u8>, value: u32| file.extend(value.to_le_bytes());
    half(&mut file, 2); // ET_EXEC
    half(&mut file, 3); // EM_386
    for value in [1, 0x0804_8054, 52, 0, 0] {
        word(&mut file, value);
    }
    for value in [52, 32, 1, 0, 0, 0] {
        half(&mut file, value);
    }
    let len = 84 + code.len() as u32;
    for value in [1, 0, 0x0804_8000, 0x0804_8000, len, len, 5, 4096] {
        word(&mut file, value);
    }
    file.extend(code);
    file
}

#[test]
fn an_i386_program_is_named_as_one() {
    let folder = folder();
    let path = folder.path().join("program");
    executable(&path, &i386_program());
    let outcome = guest(&["--no-profile"], &[path.to_str().expect("UTF-8")]);
    is_refused(&outcome, 126, "i386");
}

#[test]
fn programs_for_other_cpus_are_126() {
    let original = fs::read(TRUE).expect("readable");
    for machine in [183u16, 243, 8, 0] {
        let mut file = original.clone();
        file[18..20].copy_from_slice(&machine.to_le_bytes());
        program_is_refused(&file, 126, "x86-64");
    }
    let mut big_endian = original;
    big_endian[5] = 2;
    program_is_refused(&big_endian, 126, "");
}

#[test]
fn objects_and_core_files_are_not_programs() {
    let original = fs::read(TRUE).expect("readable");
    for kind in [0u16, 1, 4, 77] {
        let mut file = original.clone();
        file[16..18].copy_from_slice(&kind.to_le_bytes());
        program_is_refused(&file, 126, "");
    }
}

/// What the kernel makes of a file, by way of a shell's exit status.
fn native(path: &Path) -> Outcome {
    loop {
        let mut command = Command::new("/bin/sh");
        // dash reports the exec's failure as 126 or 127 and dies by the program's signal.
        command.args(["-c", "exec \"$0\""]).arg(path);
        let outcome = run(command, b"", LIMIT).expect("sh starts");
        // A child that another test's thread forked just now may hold the file open for
        // writing until its own exec.
        if !text(&outcome.stderr).contains("Text file busy") {
            return outcome;
        }
    }
}

/// A damaged program may be refused, crash, or run: as natively or with one line.
#[track_caller]
fn ends_well(path: &Path, what: &str) {
    let outcome = guest(&["--no-profile"], &[path.to_str().expect("UTF-8")]);
    let native = native(path);
    let said = text(&outcome.stderr);
    let refused = matches!(outcome.end, End::Exit(125..=127))
        && said.starts_with("temper: ")
        && said.lines().count() == 1;
    // Guest and host share one address space in another layout: a wild pointer that meets
    // nothing natively may meet something here.
    let luckier = matches!(native.end, End::Signal(_)) && outcome.end == End::Exit(0);
    assert!(
        refused || luckier || outcome == native,
        "{what}\nnatively: {native:?}\nunder Temper: {outcome:?}"
    );
    // What the kernel runs to its end, Temper runs too.
    if native.end == End::Exit(0) {
        assert_eq!(outcome.end, End::Exit(0), "{what}: {outcome:?}");
    }
}

#[test]
fn truncated_programs_end_well() {
    let original = fs::read(TRUE).expect("readable");
    let folder = folder();
    let lengths = [
        1, 4, 15, 16, 40, 63, 64, 65, 100, 119, 120, 500, 1000, 4095, 4096,
    ];
    let halves = (1..8).map(|eighth| original.len() * eighth / 8);
    for len in lengths.into_iter().chain(halves) {
        let path = folder.path().join(format!("cut-{len}"));
        executable(&path, &original[..len.min(original.len())]);
        ends_well(&path, &format!("cut to {len} bytes"));
    }
}

#[test]
fn mutated_headers_end_well() {
    let original = fs::read(TRUE).expect("readable");
    let folder = folder();
    let headers = 64 + 56 * usize::from(original[56]);
    // A multiplicative generator (Knuth's MMIX constants); the seed is printed on failure.
    for seed in 1..=120u64 {
        let mut state = seed;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        let mut file = original.clone();
        let mut changes = Vec::new();
        for _ in 0..1 + next() % 3 {
            // The magic number and class stay, or hardly anything else would be tested.
            let at = 6 + next() as usize % (headers - 6);
            let value = match next() % 4 {
                0 => 0,
                1 => 0xff,
                2 => file[at] ^ (1 << (next() % 8)),
                _ => next() as u8,
            };
            file[at] = value;
            changes.push(format!("byte {at} = {value:#x}"));
        }
        let path = folder.path().join(format!("mutated-{seed}"));
        executable(&path, &file);
        ends_well(&path, &format!("seed {seed}: {}", changes.join(", ")));
        fs::remove_file(&path).expect("remove");
    }
}

#[test]
fn a_missing_program_interpreter_is_named() {
    let mut file = fs::read(TRUE).expect("readable");
    let wanted = b"/lib64/ld-linux-x86-64.so.2";
    let Some(at) = file.windows(wanted.len()).position(|bytes| bytes == wanted) else {
        eprintln!("skipped: {TRUE} has another program interpreter");
        return;
    };
    file[at + 1..at + 4].copy_from_slice(b"LIB");
    let folder = folder();
    let path = folder.path().join("program");
    executable(&path, &file);
    let outcome = guest(&["--no-profile"], &[path.to_str().expect("UTF-8")]);
    assert!(matches!(outcome.end, End::Exit(126 | 127)), "{outcome:?}");
    assert!(text(&outcome.stderr).contains("/LIB64/"), "{outcome:?}");
    assert_eq!(text(&outcome.stderr).lines().count(), 1);
}

/// A program with a loop. It keeps its standard error open to the end, unlike coreutils.
const COUNT: [&str; 2] = ["/usr/bin/mawk", "BEGIN { while (i < 3000) print ++i }"];

/// Counts with this profile folder: the output must be right, and what else is said must be
/// warnings. Gives those.
#[track_caller]
fn runs_with_profile(profiles: &Path) -> String {
    let outcome = guest(
        &["--profile-dir", profiles.to_str().expect("UTF-8")],
        &COUNT,
    );
    assert_eq!(outcome.end, End::Exit(0), "{outcome:?}");
    assert!(outcome.stdout.ends_with(b"2999\n3000\n"), "{outcome:?}");
    let said = text(&outcome.stderr);
    assert!(
        said.lines().all(|line| line.starts_with("temper: ")),
        "{said}"
    );
    said
}

#[test]
fn an_unusable_profile_folder_is_a_warning() {
    let folder = folder();
    let file = folder.path().join("file");
    fs::write(&file, "").expect("write");
    for unusable in [&file, &file.join("below"), Path::new("/proc/profiles")] {
        let said = runs_with_profile(unusable);
        assert_eq!(said.lines().count(), 1, "{unusable:?}: {said}");
        assert!(said.contains(unusable.to_str().expect("UTF-8")), "{said}");
    }
}

fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else if fs::metadata(&path).is_ok_and(|metadata| metadata.len() > 0) {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn damaged_profiles_are_a_warning_and_are_replaced() {
    let folder = folder();
    let profiles = folder.path().join("profiles");
    assert_eq!(runs_with_profile(&profiles), "", "the first run");
    let files = files_below(&profiles);
    assert!(!files.is_empty(), "nothing was saved");
    for file in &files {
        fs::write(file, b"this is not a profile").expect("write");
    }
    assert_ne!(runs_with_profile(&profiles), "", "no warning");
    assert_eq!(
        runs_with_profile(&profiles),
        "",
        "the damage is still there"
    );
}

#[test]
fn truncated_and_flipped_profiles_do_no_harm() {
    let folder = folder();
    let profiles = folder.path().join("profiles");
    runs_with_profile(&profiles);
    let good: Vec<_> = files_below(&profiles)
        .into_iter()
        .map(|path| (fs::read(&path).expect("readable"), path))
        .collect();
    assert!(!good.is_empty(), "nothing was saved");
    for round in 0..24usize {
        for (contents, path) in &good {
            let mut bytes = contents.clone();
            if round % 2 == 0 {
                bytes.truncate(contents.len() * round / 24);
            } else {
                let at = (round * 7919 + 13) % bytes.len();
                bytes[at] ^= 1 << (round % 8);
            }
            fs::write(path, bytes).expect("write");
        }
        runs_with_profile(&profiles);
    }
}

#[test]
fn a_full_disk_is_a_warning() {
    let folder = folder();
    let script = format!(
        "mount -t tmpfs -o size=4k,mode=700 none {0} || exit 99; head -c 9000 /dev/zero >{0}/fill; \
         exec \"$@\"",
        folder.path().display()
    );
    let namespace = |command: &mut Command| {
        let outer = command
            .get_args()
            .map(ToOwned::to_owned)
            .collect::<Vec<_>>();
        let mut inside = Command::new("unshare");
        inside.args(["-Urm", "sh", "-c", &script, "sh"]);
        inside.arg(command.get_program()).args(outer);
        run(inside, b"", LIMIT)
    };
    match namespace(&mut Command::new(TRUE)) {
        Ok(outcome) if outcome.end == End::Exit(0) => {}
        other => {
            eprintln!("skipped: no small disk can be mounted here: {other:?}");
            return;
        }
    }
    let mut command = temper();
    command.args(["run", "--profile-dir"]).arg(folder.path());
    command.args(COUNT);
    let outcome = namespace(&mut command).expect("unshare starts");
    assert_eq!(outcome.end, End::Exit(0), "{outcome:?}");
    assert!(outcome.stdout.ends_with(b"3000\n"), "{outcome:?}");
    let said: Vec<String> = text(&outcome.stderr)
        .lines()
        .filter(|line| !line.starts_with("head: "))
        .map(str::to_owned)
        .collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with("temper: "), "{said:?}");
}

#[test]
fn statistics_that_cannot_be_written_stop_the_run_before_it_begins() {
    let outcome = guest(
        &["--no-profile", "--stats-json", "/nonexistent/stats.json"],
        &["/usr/bin/echo", "hello"],
    );
    is_refused(&outcome, 125, "/nonexistent/stats.json");
}

#[test]
fn too_little_address_space_is_one_line() {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "ulimit -v 1000000; exec \"$@\"", "sh"]);
    let under = temper();
    command.arg(under.get_program());
    command.args(["run", "--no-profile", "/usr/bin/echo", "hello"]);
    let outcome = run(command, b"", LIMIT).expect("sh starts");
    if outcome.end == End::Exit(0) {
        assert_eq!(outcome.stdout, b"hello\n");
    } else {
        is_refused(&outcome, 125, "");
    }
}

#[test]
fn without_a_home_folder_a_run_warns_once_and_goes_on() {
    let mut command = temper();
    // The shell's child runs under Temper too.
    command.env_clear().args(["run", "--", "/bin/sh", "-c"]);
    command.arg("/usr/bin/env true && echo done");
    let outcome = run(command, b"", LIMIT).expect("temper starts");
    assert_eq!(outcome.end, End::Exit(0), "{outcome:?}");
    assert_eq!(text(&outcome.stdout), "done\n");
    let warning = text(&outcome.stderr);
    assert_eq!(warning.lines().count(), 1, "{warning}");
    assert!(warning.contains("no home folder"), "{warning}");
}
