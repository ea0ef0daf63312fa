//! gdb on machines of either engine.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use super::guests::{LIMIT, Needs, image, kvm_can};
use super::support::{run, temper};

/// Breaks at the LODSB of the boot sector, steps twice, and lets it run to its end.
const COMMANDS: [&str; 8] = [
    "break *0x7c0d",
    "continue",
    "printf \"at %x in sp %x\\n\", $rip, $rsp",
    "stepi",
    "stepi",
    "printf \"then %x, byte %x\\n\", $rip, *(unsigned char*)0x7c0d",
    "delete",
    "continue",
];

fn session(engine: &str) {
    if !Path::new("/usr/bin/gdb").exists() {
        println!("skipped: no gdb");
        return;
    }
    let mut command = temper();
    command.args(["vm", "run", "--engine", engine, "--gdb", "127.0.0.1:0"]);
    command.arg(image("boot_sector"));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut machine = command.spawn().expect("temper starts");
    let mut said = BufReader::new(machine.stderr.take().expect("piped"));
    let mut line = String::new();
    said.read_line(&mut line).expect("a line");
    let address = line
        .split("target remote ")
        .nth(1)
        .and_then(|rest| rest.split('`').next());
    let address = address.unwrap_or_else(|| panic!("no address in {line}"));

    let mut gdb = Command::new("gdb");
    gdb.args([
        "-q",
        "-nx",
        "-batch",
        "-ex",
        "set architecture i386:x86-64",
        "-ex",
    ]);
    gdb.arg(format!("target remote {address}"));
    for command in COMMANDS {
        gdb.args(["-ex", command]);
    }
    let outcome = run(gdb, b"", LIMIT).expect("gdb starts");
    let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert!(text.contains("at 7c0d in sp 7c00"), "{outcome:?}");
    assert!(text.contains("then 7c10, byte ac"), "{outcome:?}");
    assert!(text.contains("exited normally"), "{outcome:?}");
    let output = machine.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, b"hello from real mode\n");
}

#[test]
fn gdb_breaks_and_steps_in_software() {
    session("software");
}

#[test]
fn gdb_breaks_and_steps_on_kvm() {
    if kvm_can(Needs::Anything) {
        session("kvm");
    }
}
