//! Translated code that is kept beside profiles: used by later runs, never believed.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::{End, Outcome, run, temper};

/// Calls, loops, an indirect call, global data, a signal handler, a fault in a loop.
const SOURCE: &str = r#"
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned state = 12345, handled;
static sigjmp_buf back;
static unsigned next(void) { state = state * 1103515245u + 12345u; return state >> 8; }

static int compare(const void *a, const void *b) {
    return *(const int *)a < *(const int *)b ? -1 : *(const int *)a > *(const int *)b;
}

static void on_fault(int signal) { handled += signal; siglongjmp(back, 1); }

__attribute__((noinline)) static unsigned hash(const char *s) {
    unsigned h = 2166136261u;
    for (; *s; s++) h = (h ^ (unsigned char)*s) * 16777619u;
    return h;
}

int main(int argc, char **argv) {
    static int a[2000];
    for (int i = 0; i < 2000; i++) a[i] = next() % 1000;
    qsort(a, 2000, sizeof *a, compare);
    signal(SIGSEGV, on_fault);
    for (int i = 0; i < 20; i++)
        if (!sigsetjmp(back, 1)) *(volatile int *)(long)(i & 1) = 1;
    unsigned h = VARIANT;
    char text[64];
    for (int i = 0; i < 3000; i++) {
        snprintf(text, sizeof text, "%d %s %x", i, argc > 1 ? argv[1] : "-", a[i % 2000]);
        h ^= hash(text) + i;
    }
    printf("%u %u %d\n", h, handled, a[1000]);
    return 7;
}
"#;

struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    fn new() -> Folder {
        Folder {
            dir: tempfile::tempdir().expect("a folder"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Builds the program; `None`, and why, where that can't be done.
    fn build(&self, variant: &str, flags: &[&str]) -> Option<PathBuf> {
        let (from, to) = (self.path("program.c"), self.path("program"));
        fs::write(&from, SOURCE.replace("VARIANT", variant)).expect("write");
        let mut command = Command::new("gcc");
        command
            .args(["-O1", "-w"])
            .args(flags)
            .arg(&from)
            .arg("-o")
            .arg(&to);
        match command.status() {
            Ok(status) => {
                assert!(status.success(), "gcc");
                Some(to)
            }
            Err(error) => {
                println!("skipped: no gcc ({error})");
                None
            }
        }
    }

    fn start(&self, program: &Path, more: &[&str]) -> (Outcome, Value) {
        let (profiles, stats) = (self.path("profiles"), self.path("stats.json"));
        let mut command = temper();
        command.arg("run").args(more);
        command.arg("--profile-dir").arg(profiles);
        command.arg("--stats-json").arg(&stats).arg(program);
        let outcome = run(command, b"", Duration::from_secs(120)).expect("temper starts");
        let stats = fs::read(&stats).expect("statistics");
        (outcome, serde_json::from_slice(&stats).expect("JSON"))
    }

    /// Files of kept code, in the order of their names.
    fn code(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("profiles")).expect("profiles");
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|file| file.extension().is_some_and(|found| found == "code"));
        files.sort();
        files
    }
}

fn native(program: &Path) -> Outcome {
    run(Command::new(program), b"", Duration::from_secs(60)).expect("it starts")
}

fn reused(stats: &Value, what: &str) -> u64 {
    stats["reuse"][what].as_u64().expect("a number")
}

/// Runs until no run keeps anything new.
fn settle(folder: &Folder, program: &Path, native: &Outcome) -> Value {
    for _ in 0..6 {
        let (outcome, stats) = folder.start(program, &[]);
        assert_eq!(outcome, *native);
        if reused(&stats, "bytes_saved") == 0 && reused(&stats, "blocks") > 0 {
            return stats;
        }
    }
    panic!("each run keeps something new");
}

#[test]
fn later_runs_begin_with_the_code_of_earlier_ones() {
    let folder = Folder::new();
    let Some(program) = folder.build("1", &[]) else {
        return;
    };
    let expected = native(&program);
    let (first, cold) = folder.start(&program, &[]);
    assert_eq!(first, expected);
    assert_eq!(reused(&cold, "blocks"), 0);
    assert!(reused(&cold, "bytes_saved") > 0, "{cold}");
    let warm = settle(&folder, &program, &expected);
    let translated = warm["blocks"]["translated"].as_u64().expect("a number");
    let blocks = reused(&warm, "blocks");
    assert!(blocks > 20 * translated, "{blocks} and {translated}");
    // Switched off.
    for more in [
        &["--no-kept-code"][..],
        &["--verify"],
        &["--max-tier", "interpreter"],
    ] {
        let (outcome, stats) = folder.start(&program, more);
        assert_eq!(outcome, expected, "{more:?}");
        assert_eq!(reused(&stats, "blocks"), 0, "{more:?}");
    }
    // Under other bounds of the cache.
    let (outcome, _) = folder.start(&program, &["--cache-size", "1"]);
    assert_eq!(outcome, expected);
}

#[test]
fn the_commands_know_of_kept_code() {
    let folder = Folder::new();
    let Some(program) = folder.build("1", &[]) else {
        return;
    };
    folder.start(&program, &[]);
    let say = |words: &[&str]| {
        let mut command = temper();
        command.arg("profile").args(words);
        command.arg("--profile-dir").arg(folder.path("profiles"));
        let outcome = run(command, b"", Duration::from_secs(60)).expect("temper starts");
        (
            outcome.end,
            String::from_utf8(outcome.stdout).expect("UTF-8"),
        )
    };
    let (end, text) = say(&["verify"]);
    assert!(
        end == End::Exit(0) && text.contains("translated code are whole"),
        "{text}"
    );
    let (_, text) = say(&["list", "--json"]);
    let listed: Value = serde_json::from_str(&text).expect("JSON");
    let with_code = |l: &Value| l["code_bytes"].as_u64().is_some_and(|bytes| bytes > 0);
    assert!(
        listed.as_array().expect("a list").iter().any(with_code),
        "{text}"
    );
    let code = folder.code();
    let mut bytes = fs::read(&code[0]).expect("read");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&code[0], bytes).expect("write");
    let (end, text) = say(&["verify"]);
    assert!(
        end != End::Exit(0) && text.contains("a checksum doesn't match"),
        "{text}"
    );
    // Code goes with its profile, and doesn't stay alone.
    fs::remove_file(code[0].with_extension("profile")).expect("remove");
    say(&["prune"]);
    assert_eq!(folder.code(), code[1..]);
    say(&["prune", "--max-size", "0"]);
    assert_eq!(folder.code(), Vec::<PathBuf>::new());
}

#[test]
fn damaged_code_is_set_aside_and_harms_nobody() {
    let folder = Folder::new();
    let Some(program) = folder.build("1", &[]) else {
        return;
    };
    let expected = native(&program);
    settle(&folder, &program, &expected);
    let files = folder.code();
    let whole: Vec<Vec<u8>> = files.iter().map(|f| fs::read(f).expect("read")).collect();
    let largest = (0..files.len())
        .max_by_key(|&at| whole[at].len())
        .expect("a file");
    let (file, good) = (&files[largest], &whole[largest]);
    let restore = || {
        for (file, bytes) in files.iter().zip(&whole) {
            fs::write(file, bytes).expect("write");
        }
    };
    let check = |what: &str| {
        let (outcome, _) = folder.start(&program, &[]);
        assert_eq!(outcome.end, expected.end, "{what}: {outcome:?}");
        assert_eq!(outcome.stdout, expected.stdout, "{what}");
        let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
        let warnings = said.lines().count();
        assert!(warnings <= 1, "{what}: {said}");
        assert!(
            said.is_empty() || said.contains(".code is damaged"),
            "{what}: {said}"
        );
        restore();
        warnings
    };
    // Bits of the header, of the table, of each table of a piece and of its code.
    let mut warned = 0;
    let mut flips = 0;
    for at in (0..56)
        .step_by(5)
        .chain((56..good.len()).step_by(good.len() / 40))
    {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(file, bytes).expect("write");
        flips += 1;
        // A flip of the maker makes it somebody else's, which is no damage, once the
        // checksum is right; here it isn't.
        warned += check(&format!("a bit of byte {at}"));
    }
    assert!(warned * 10 >= flips * 8, "{warned} of {flips}");
    for len in [0, 1, 55, 56, 100, good.len() / 2, good.len() - 1] {
        fs::write(file, &good[..len]).expect("write");
        check(&format!("{len} bytes"));
    }
    let mut longer = good.clone();
    longer.extend_from_slice(&[0; 100]);
    fs::write(file, longer).expect("write");
    check("100 bytes more");
    // Another module's file under this name.
    fs::write(file, &whole[(largest + 1) % files.len()]).expect("write");
    check("another module's");
    let aside = folder
        .path("profiles")
        .join(Path::new(file.file_stem().expect("a stem")).with_extension("code.damaged"));
    assert!(aside.exists(), "set aside as {}", aside.display());
}

#[test]
fn code_of_another_build_of_the_module_is_not_used() {
    let folder = Folder::new();
    let Some(program) = folder.build("1", &["-static"]) else {
        return;
    };
    settle(&folder, &program, &native(&program));
    let before = folder.code();
    let Some(program) = folder.build("77", &["-static"]) else {
        return;
    };
    let expected = native(&program);
    let (outcome, _) = folder.start(&program, &[]);
    assert_eq!(outcome, expected);
    settle(&folder, &program, &expected);
    // The new build has a file of its own.
    assert_eq!(folder.code().len(), before.len() + 1);
}

#[test]
fn programs_that_end_at_once_keep_whole_files() {
    let folder = Folder::new();
    let Some(program) = folder.build("1", &[]) else {
        return;
    };
    let expected = native(&program);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let mut command = temper();
                command.arg("run").arg("--profile-dir");
                command.arg(folder.path("profiles")).arg(&program);
                let outcome = run(command, b"", Duration::from_secs(120)).expect("starts");
                assert_eq!(outcome, expected);
            });
        }
    });
    settle(&folder, &program, &expected);
}

#[test]
fn a_full_disk_keeps_nothing_and_harms_nobody() {
    let folder = Folder::new();
    let Some(program) = folder.build("1", &[]) else {
        return;
    };
    let expected = native(&program);
    let (outcome, _) = folder.start(&program, &[]);
    assert_eq!(outcome, expected);
    for code in folder.code() {
        fs::remove_file(code).expect("remove");
    }
    // No file may be longer than 8 KiB: code doesn't fit.
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -f 8; exec \"$@\"", "sh"]);
    command.arg(temper().get_program());
    command.args(["run", "--profile-dir"]);
    command.arg(folder.path("profiles")).arg(&program);
    let outcome = run(command, b"", Duration::from_secs(120)).expect("starts");
    assert_eq!(
        (outcome.end, &outcome.stdout),
        (expected.end, &expected.stdout)
    );
    let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
    assert!(said.lines().count() <= 1, "{said}");
    settle(&folder, &program, &expected);
}
