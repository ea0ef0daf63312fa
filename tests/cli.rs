//! The command line from outside: help, wrong usage, and the commands that run no guest.

mod support;

use std::time::Duration;

use support::{End, Outcome, run, temper};

fn say(args: &[&str]) -> Outcome {
    let mut command = temper();
    command.args(args).env("LC_ALL", "C");
    run(command, b"", Duration::from_secs(60)).expect("temper starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Exit status 2 and one line on standard error that holds `word`.
fn is_usage_error(args: &[&str], word: &str) {
    let outcome = say(args);
    assert_eq!(outcome.end, End::Exit(2), "{args:?}: {outcome:?}");
    let line = text(&outcome.stderr);
    assert!(line.starts_with("temper: "), "{args:?}: {line}");
    assert_eq!(line.lines().count(), 1, "{args:?}: {line}");
    assert!(line.contains(word), "{args:?}: {line}");
    assert!(outcome.stdout.is_empty());
}

#[test]
fn help_names_every_command() {
    let outcome = say(&["--help"]);
    assert_eq!(outcome.end, End::Exit(0));
    let help = text(&outcome.stdout);
    for command in ["run", "profile", "explain", "doctor", "completions", "man"] {
        let listed = help
            .lines()
            .any(|line| line.trim_start().starts_with(command));
        assert!(listed, "{command} is missing in\n{help}");
        let own = say(&[command, "--help"]);
        assert_eq!(own.end, End::Exit(0), "{command}");
        assert!(text(&own.stdout).contains("Usage:"), "{command}");
    }
}

#[test]
fn version_is_the_packages() {
    let outcome = say(&["--version"]);
    assert_eq!(
        text(&outcome.stdout),
        format!("temper {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn nothing_at_all_shows_the_help_and_fails() {
    let outcome = say(&[]);
    assert_eq!(outcome.end, End::Exit(2));
    assert!(text(&outcome.stderr).contains("Usage: temper"));
}

#[test]
fn wrong_usage_is_one_line_and_status_2() {
    is_usage_error(&["frobnicate"], "frobnicate");
    is_usage_error(&["run"], "PROGRAM");
    is_usage_error(&["run", "--frobnicate", "/bin/true"], "--frobnicate");
    is_usage_error(&["run", "--max-tier", "warp", "/bin/true"], "warp");
    is_usage_error(&["run", "--cache-size", "0", "/bin/true"], "0");
    is_usage_error(&["run", "--cache-size", "9999", "/bin/true"], "9999");
    is_usage_error(&["run", "--dump", "everything", "/bin/true"], "everything");
    is_usage_error(
        &["run", "--no-profile", "--profile-dir", "x", "/bin/true"],
        "--no-profile",
    );
    is_usage_error(&["explain", "/bin/true"], "--pc");
    is_usage_error(&["explain", "--pc", "main", "/bin/true"], "0x401136");
    is_usage_error(&["completions", "cobol"], "cobol");
}

#[test]
fn a_developer_variable_must_be_a_number() {
    let mut command = temper();
    command
        .args(["run", "/bin/true"])
        .env("TEMPER_FLUSH_EVERY", "often");
    let outcome = run(command, b"", Duration::from_secs(60)).expect("temper starts");
    assert_eq!(outcome.end, End::Exit(2));
    assert!(text(&outcome.stderr).contains("TEMPER_FLUSH_EVERY"));
}

#[test]
fn doctor_speaks_to_people_and_in_json() {
    let spoken = say(&["doctor"]);
    assert!(matches!(spoken.end, End::Exit(0 | 1)), "{spoken:?}");
    let json = say(&["doctor", "--json"]);
    assert_eq!(json.end, spoken.end);
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).expect("valid JSON");
    let checks = report["checks"].as_array().expect("a list of checks");
    assert!(checks.len() >= 8);
    let spoken = text(&spoken.stdout);
    for check in checks {
        let name = check["name"].as_str().expect("a name");
        assert!(spoken.contains(name), "{name} is missing in\n{spoken}");
        let state = check["state"].as_str().expect("a state");
        assert!(["ok", "limited", "missing"].contains(&state), "{state}");
        assert!(
            check["meaning"]
                .as_str()
                .is_some_and(|text| !text.is_empty())
        );
    }
    let lacks_a_need = checks
        .iter()
        .any(|check| check["needed"] == true && check["state"] == "missing");
    assert_eq!(lacks_a_need, json.end == End::Exit(1));
}

#[test]
fn completions_exist_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let outcome = say(&["completions", shell]);
        assert_eq!(outcome.end, End::Exit(0), "{shell}");
        assert!(text(&outcome.stdout).contains("max-tier"), "{shell}");
    }
}

#[test]
fn manual_pages_are_written() {
    let page = say(&["man"]);
    assert_eq!(page.end, End::Exit(0));
    assert!(text(&page.stdout).contains(".TH temper 1"));
    let dir = tempfile::tempdir().expect("temporary folder");
    let into = dir.path().join("man1");
    let outcome = say(&["man", into.to_str().expect("UTF-8")]);
    assert_eq!(outcome.end, End::Exit(0));
    assert!(into.join("temper-run.1").is_file());
    let outcome = say(&["man", "/dev/null/man"]);
    assert_eq!(outcome.end, End::Exit(125));
    assert!(text(&outcome.stderr).starts_with("temper: /dev/null/man"));
}

/// The address that a line of decoded code begins with.
fn address_in(line: &str) -> u64 {
    let word = line.split_whitespace().next().expect("an address");
    u64::from_str_radix(word, 16).expect("hexadecimal")
}

#[test]
fn explain_shows_exits_system_calls_and_stubs() {
    // cvtsi2sd %rdi,%xmm0; syscall; then xor %edi,%edi; jmp to the start.
    let code = [
        0xf2, 0x48, 0x0f, 0x2a, 0xc7, 0x0f, 0x05, 0x31, 0xff, 0xeb, 0xf5,
    ];
    let file = static_program(&code);
    let path = file.path().to_str().expect("UTF-8");
    let outcome = say(&["explain", "--pc", "0x400078", path]);
    assert_eq!(outcome.end, End::Exit(0), "{outcome:?}");
    let shown = text(&outcome.stdout);
    for part in [
        "[stub]",
        "[the system call layer's]",
        "(system call)",
        "exit to 0x40007f",
        "(guest rip)",
        "(leave)",
    ] {
        assert!(shown.contains(part), "{part} is missing in\n{shown}");
    }
}

/// An ELF executable of one segment at 0x400000 with code behind its headers.
fn static_program(code: &[u8]) -> tempfile::NamedTempFile {
    let size = (0x78 + code.len()) as u64;
    let mut bytes = Vec::new();
    bytes.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    // ET_EXEC, EM_X86_64, version, entry, program and section headers, flags.
    bytes.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [0x40_0078u64, 64, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    // PT_LOAD, readable and executable.
    bytes.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [0, 0x40_0000, 0x40_0000, size, size, 0x1000] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(code);
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    std::fs::write(file.path(), bytes).expect("written");
    file
}

#[test]
fn explain_shows_the_block_at_an_address() {
    // The entry point of any program begins with the ABI's zeroing of rbp.
    let program = "/usr/bin/true";
    let data = std::fs::read(program).expect("readable");
    let entry = u64::from_le_bytes(data[24..32].try_into().expect("8 bytes"));
    let outcome = say(&["explain", "--pc", &format!("{entry:#x}"), program]);
    assert_eq!(outcome.end, End::Exit(0), "{outcome:?}");
    let shown = text(&outcome.stdout);
    assert!(shown.contains(&format!("block {entry:#x}")), "{shown}");
    assert!(shown.contains("xor %ebp,%ebp"), "{shown}");
    // Through every tier: who interprets it, and what it is copied to.
    let lines: Vec<&str> = shown
        .lines()
        .filter(|line| line.contains("xor %ebp,%ebp"))
        .collect();
    assert!(lines[0].ends_with("[own]"), "{shown}");
    let copied = lines[1].trim_start();
    assert!(copied.starts_with("70000"), "{shown}");
    assert!(
        copied.ends_with(&format!("{:x}  xor %ebp,%ebp", address_in(lines[0]))),
        "{shown}"
    );
    let nowhere = say(&["explain", "--pc", "0x7", program]);
    assert_eq!(nowhere.end, End::Exit(125));
    assert!(text(&nowhere.stderr).contains("no code at 0x7"));
    let nameless = say(&["explain", "--symbol", "no_such_function", program]);
    assert_eq!(nameless.end, End::Exit(125));
}
