//! What can't be booted, guests that go wrong, and hosts without KVM: one clear line, or a
//! state, and a status; never a hang.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use super::guests::{LIMIT, image, vm};
use super::support::{End, Outcome, run, temper};
use tempfile::TempDir;

fn written(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("image");
    fs::write(&path, bytes).expect("write");
    (folder, path)
}

fn boot(bytes: &[u8], options: &[&str]) -> Outcome {
    let (_folder, path) = written(bytes);
    let mut args = vec!["run", "--engine", "software"];
    args.extend(options);
    args.push(path.to_str().expect("UTF-8"));
    vm(&args)
}

/// A boot sector with this code.
fn sector(code: &[u8]) -> Vec<u8> {
    let mut bytes = code.to_vec();
    bytes.resize(510, 0x90);
    bytes.extend([0x55, 0xaa]);
    bytes
}

#[track_caller]
fn is_refused(outcome: &Outcome, status: i32, word: &str) {
    assert_eq!(outcome.end, End::Exit(status), "{outcome:?}");
    let line = String::from_utf8_lossy(&outcome.stderr).into_owned();
    assert!(line.starts_with("temper: "), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains(word), "`{word}` is missing in {line}");
}

#[test]
fn files_that_are_no_images_are_refused() {
    is_refused(&boot(b"", &[]), 126, "empty");
    is_refused(
        &boot(b"#!/bin/sh\nexit\n", &[]),
        126,
        "less than one sector",
    );
    is_refused(&boot(&[0x1f, 0x8b, 8, 0, 0], &[]), 126, "gzip");
    let own = fs::read("/proc/self/exe").expect("this program");
    is_refused(&boot(&own, &[]), 126, "without a multiboot header");
    is_refused(&vm(&["run", "/nonexistent/image"]), 127, "can't be read");
}

#[test]
fn truncated_images_are_refused() {
    let kernel = fs::read(image("kernel")).expect("built");
    is_refused(&boot(&kernel[..kernel.len() / 2], &[]), 126, "");
    let mut linux = vec![0u8; 2048];
    linux[0x1f1] = 3;
    linux[0x1f4..0x1f8].copy_from_slice(&1000u32.to_le_bytes());
    linux[0x202..0x206].copy_from_slice(b"HdrS");
    linux[0x206] = 0x0f;
    linux[0x207] = 2;
    linux[0x211] = 1;
    is_refused(&boot(&linux, &[]), 126, "cut short");
}

#[test]
fn images_larger_than_memory_are_refused() {
    let kernel = fs::read(image("kernel")).expect("built");
    is_refused(&boot(&kernel, &["--memory", "1"]), 126, "--memory");
}

#[test]
fn boot_sectors_take_no_command_line() {
    is_refused(
        &boot(&sector(&[0xf4]), &["--cmdline", "x"]),
        126,
        "command line",
    );
}

#[test]
fn a_triple_fault_is_reported_with_the_state() {
    // lidt of six zero bytes; int3.
    let code = [0x0f, 0x01, 0x1e, 0x20, 0x7c, 0xcc];
    let mut bytes = sector(&code);
    bytes[0x20..0x26].fill(0);
    let outcome = boot(&bytes, &[]);
    assert_eq!(outcome.end, End::Exit(128), "{outcome:?}");
    let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
    assert!(
        said.contains("triple fault") && said.contains("rip 0000000000007c05"),
        "{said}"
    );
}

#[test]
fn a_guest_that_never_halts_ends_with_the_timeout() {
    let outcome = boot(&sector(&[0xeb, 0xfe]), &["--timeout", "0.3"]);
    is_refused(&outcome, 124, "--timeout");
    // STI; HLT: asleep without any timer, while somebody could still type.
    let (_folder, path) = written(&sector(&[0xfb, 0xf4, 0xeb, 0xfc]));
    let mut command = temper();
    command.args(["vm", "run", "--engine", "software", "--timeout", "0.3"]);
    command.arg(&path);
    let outcome = run(command, &[b'x'; 100], LIMIT).expect("starts");
    assert!(matches!(outcome.end, End::Exit(124 | 0)), "{outcome:?}");
}

#[test]
fn a_guest_that_halts_for_good_has_ended() {
    assert_eq!(boot(&sector(&[0xfa, 0xf4]), &[]).end, End::Exit(0));
    assert_eq!(
        boot(&sector(&[0xfb, 0xf4, 0xeb, 0xfd]), &[]).end,
        End::Exit(0)
    );
}

#[test]
fn the_debug_exit_port_gives_the_status() {
    // mov $0x10, %al; out %al, $0xf4.
    let outcome = boot(&sector(&[0xb0, 0x10, 0xe6, 0xf4, 0xeb, 0xfe]), &[]);
    assert_eq!(outcome.end, End::Exit(33));
}

#[test]
fn the_keyboard_controller_resets() {
    let outcome = boot(&sector(&[0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe]), &[]);
    assert_eq!(outcome.end, End::Exit(0));
}

#[test]
fn devices_survive_nonsense() {
    // Writes to all ports in a row but for those that end the machine: for dx from 0 up,
    // out dx, al with al = dl * 7 + counter.
    let code = [
        0x31, 0xd2, // xor %dx, %dx
        0x80, 0xfa, 0xf4, 0x74, 0x19, // cmp $0xf4, %dl; je next
        0x80, 0xfa, 0x64, 0x74, 0x14, // cmp $0x64, %dl
        0x80, 0xfa, 0x60, 0x74, 0x0f, // cmp $0x60, %dl
        0x80, 0xfa, 0x92, 0x74, 0x0a, // cmp $0x92, %dl
        0x80, 0xfa, 0xf9, 0x74, 0x05, // cmp $0xf9, %dl
        0x88, 0xd0, // mov %dl, %al
        0xee, // out %al, %dx
        0xec, // in %dx, %al
        0x90, // nop
        0x42, // next: inc %dx
        0x81, 0xfa, 0x00, 0x05, // cmp $0x500, %dx
        0x75, 0xdb, // jne
        0xb0, 0x07, 0xe6, 0xf4, // out $7 to the debug exit port
    ];
    assert_eq!(boot(&sector(&code), &[]).end, End::Exit(15));
}

#[test]
fn a_host_without_permission_for_kvm_says_so() {
    // SAFETY: geteuid has no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    if !root || !std::path::Path::new("/dev/kvm").exists() {
        println!("skipped: only root can give up the permission to use /dev/kvm");
        return;
    }
    let (folder, path) = written(&sector(&[0xfa, 0xf4]));
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
    // Nobody may not even reach the program under test where it was built.
    let binary = folder.path().join("temper");
    fs::copy(temper().get_program(), &binary).expect("copy");
    let nobody = |engine: &str| {
        let mut command = std::process::Command::new(&binary);
        command.args(["vm", "run", "--engine", engine]).arg(&path);
        command.uid(65534).gid(65534);
        run(command, b"", LIMIT).expect("starts")
    };
    is_refused(&nobody("kvm"), 125, "no permission to use /dev/kvm");
    assert_eq!(nobody("auto").end, End::Exit(0));
}
