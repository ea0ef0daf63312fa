//! The images on each engine, and on both in turn.

use super::guests::{GUESTS, Guest, Needs, image, kvm, kvm_can, vm};
use super::support::End;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn software(name: &str) {
    let guest = Guest::named(name);
    guest.is_right(&guest.run(&["--engine", "software"]));
}

#[track_caller]
fn on_kvm(name: &str) {
    let guest = Guest::named(name);
    if kvm_can(guest.needs) {
        guest.is_right(&guest.run(&["--engine", "kvm"]));
    }
}

#[test]
fn a_boot_sector_runs_in_software() {
    software("boot_sector");
}

#[test]
fn a_32_bit_image_with_paging_and_interrupts_runs_in_software() {
    software("protected");
}

#[test]
fn a_kernel_with_tasks_runs_in_software() {
    software("kernel");
    software("kernel_integer");
}

#[test]
fn benchmarks_run_in_software() {
    software("bench");
    software("bench_integer");
}

#[test]
fn a_boot_sector_runs_on_kvm() {
    on_kvm("boot_sector");
}

#[test]
fn a_32_bit_image_with_paging_and_interrupts_runs_on_kvm() {
    on_kvm("protected");
}

#[test]
fn a_kernel_with_tasks_runs_on_kvm() {
    on_kvm("kernel");
    on_kvm("kernel_integer");
}

#[test]
fn benchmarks_run_on_kvm() {
    on_kvm("bench");
    on_kvm("bench_integer");
}

#[test]
fn what_kvm_cannot_execute_the_software_engine_does() {
    // Vector instructions in ring 0: a KVM that emulates ring 0 hands them back.
    if kvm_can(Needs::Anything) {
        let image = image("vector");
        let run = |engine| vm(&["run", "--engine", engine, image.to_str().expect("UTF-8")]);
        let outcome = run("kvm");
        assert_eq!(outcome.end, End::Exit(0), "{outcome:?}");
        assert_eq!(text(&outcome.stdout), "sum 0x960\n");
        assert_eq!(outcome.stdout, run("software").stdout);
    }
}

#[test]
fn every_exception_and_privilege_rule_holds_in_software() {
    let image = image("checks");
    let outcome = vm(&[
        "run",
        "--engine",
        "software",
        image.to_str().expect("UTF-8"),
    ]);
    assert_eq!(outcome.end, End::Exit(0), "{outcome:?}");
    assert!(
        text(&outcome.stdout).ends_with(" passed, 0x0 failed\n"),
        "{outcome:?}"
    );
}

#[test]
fn every_exception_and_privilege_rule_holds_on_kvm() {
    if kvm_can(Needs::Hardware) {
        let image = image("checks");
        let outcome = vm(&["run", "--engine", "kvm", image.to_str().expect("UTF-8")]);
        assert_eq!(outcome.end, End::Exit(0), "{outcome:?}");
    }
}

#[test]
fn a_guest_moves_between_the_engines_at_any_boundary() {
    if !kvm_can(Needs::Anything) {
        return;
    }
    for name in ["boot_sector", "kernel_integer", "bench_integer"] {
        let guest = Guest::named(name);
        for (first, at) in [
            ("software", "7,1,300,20,9000,3,50000"),
            ("kvm", "1,40,3,4000,9"),
        ] {
            guest.is_right(&guest.run(&["--engine", first, "--switch-at", at]));
        }
    }
}

#[test]
fn both_engines_agree_at_every_device_access() {
    if !kvm_can(Needs::Anything) {
        return;
    }
    for name in ["boot_sector", "kernel_integer"] {
        let guest = Guest::named(name);
        let image = image(name);
        let path = image.to_str().expect("UTF-8");
        let outcome = vm(&["verify", "--interval", "3", "--memory", "4", path]);
        assert_eq!(outcome.end, End::Exit(0), "{name}: {outcome:?}");
        assert_eq!(text(&outcome.stdout), guest.says);
    }
}

#[test]
fn counted_time_makes_every_run_the_same() {
    let guest = Guest::named("kernel");
    let runs = [0, 1].map(|_| guest.run(&["--clock", "counted", "--trace", "interrupts"]));
    guest.is_right(&runs[0]);
    assert!(text(&runs[0].stderr).lines().count() >= 6);
    assert_eq!(runs[0].stderr, runs[1].stderr);
}

#[test]
fn auto_runs_every_image() {
    for guest in GUESTS {
        guest.is_right(&guest.run(&[]));
    }
}

#[test]
fn doctor_says_what_kvm_can_do() {
    let mut doctor = super::support::temper();
    doctor.arg("doctor");
    let outcome = super::support::run(doctor, b"", super::guests::LIMIT).expect("starts");
    let said = text(&outcome.stdout);
    assert!(said.contains("kvm"), "{said}");
    if kvm().is_some() {
        assert!(said.contains("natively"), "{said}");
    }
}
