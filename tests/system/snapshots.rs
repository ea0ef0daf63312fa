//! Machines in files.

use std::fs;
use std::path::Path;

use super::guests::{Guest, Needs, image, kvm_can, vm};
use super::support::{End, Outcome};

fn save(guest: &Guest, options: &[&str], file: &Path) -> Outcome {
    let image = image(guest.name);
    let mut args = vec![
        "snapshot",
        "--memory",
        "8",
        "-o",
        file.to_str().expect("UTF-8"),
    ];
    args.extend(options);
    args.push(image.to_str().expect("UTF-8"));
    vm(&args)
}

/// What the guest said before and after adds up to all that it says.
#[track_caller]
fn goes_on(guest: &Guest, before: &Outcome, file: &Path, engine: &str) {
    assert_eq!(before.end, End::Exit(0), "{before:?}");
    let after = vm(&["restore", "--engine", engine, file.to_str().expect("UTF-8")]);
    assert_eq!(after.end, End::Exit(0), "{after:?}");
    let said = [before.stdout.clone(), after.stdout].concat();
    assert_eq!(String::from_utf8_lossy(&said), guest.says);
}

#[test]
fn a_saved_machine_goes_on_where_it_was() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("saved");
    let kernel = Guest::named("kernel");
    for after in ["1", "1000", "20000", "100000"] {
        let options = ["--engine", "software", "--after-instructions", after];
        let before = save(kernel, &options, &file);
        goes_on(kernel, &before, &file, "software");
    }
}

#[test]
fn a_saved_machine_goes_on_on_the_other_engine() {
    if !kvm_can(Needs::Anything) {
        return;
    }
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("saved");
    let kernel = Guest::named("kernel_integer");
    let on_kvm = ["--engine", "kvm", "--after-accesses", "60"];
    let before = save(kernel, &on_kvm, &file);
    goes_on(kernel, &before, &file, "software");
    goes_on(kernel, &before, &file, "kvm");
    let in_software = ["--engine", "software", "--after-instructions", "60000"];
    let before = save(kernel, &in_software, &file);
    goes_on(kernel, &before, &file, "kvm");
}

#[test]
fn a_damaged_snapshot_is_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("saved");
    let kernel = Guest::named("kernel");
    let options = ["--engine", "software", "--after-instructions", "20000"];
    save(kernel, &options, &file);
    let whole = fs::read(&file).expect("saved");
    let refused = |bytes: &[u8], word: &str| {
        let damaged = folder.path().join("damaged");
        fs::write(&damaged, bytes).expect("write");
        let path = damaged.to_str().expect("UTF-8");
        let outcome = vm(&["restore", "--engine", "software", path]);
        assert_eq!(outcome.end, End::Exit(126), "{outcome:?}");
        let line = String::from_utf8_lossy(&outcome.stderr).into_owned();
        assert!(line.contains(word), "`{word}` is missing in {line}");
    };
    refused(b"", "no snapshot");
    refused(&whole[..whole.len() - 1], "cut short");
    refused(&whole[..whole.len() / 2], "cut short");
    let mut version = whole.clone();
    version[8] = 99;
    refused(&version, "version 99");
    for at in [12, 20, 40, 100, whole.len() / 2, whole.len() - 3] {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        refused(&flipped, "damaged");
    }
}
