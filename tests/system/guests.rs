//! The guests in workloads/vm, built once, and how a machine is run on one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use temper::system::kvm::host::{Abilities, Speed};
use tempfile::TempDir;

use super::support::{End, Outcome, run, temper};

/// No guest takes longer, even on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(300);

fn workloads() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads/vm")
}

/// A script in workloads/vm, about to run.
pub fn script(name: &str) -> Command {
    Command::new(workloads().join(name))
}

/// The built image of this name.
pub fn image(name: &str) -> PathBuf {
    static BUILT: OnceLock<TempDir> = OnceLock::new();
    let folder = BUILT.get_or_init(|| {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut build = script("build");
        build.arg(folder.path());
        let outcome = run(build, b"", LIMIT).expect("the build starts");
        assert_eq!(outcome.end, End::Exit(0), "{outcome:?}");
        folder
    });
    folder.path().join(name)
}

/// `temper vm` with these arguments.
pub fn vm(args: &[&str]) -> Outcome {
    let mut command = temper();
    command.arg("vm").args(args);
    run(command, b"", LIMIT).expect("temper starts")
}

/// What the host's KVM can do; `None` (and said so) when there is none.
pub fn kvm() -> Option<Abilities> {
    match Abilities::probe() {
        Ok(abilities) => Some(abilities),
        Err(error) => {
            println!("skipped: no KVM on this host ({error})");
            None
        }
    }
}

/// What an image asks of KVM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Needs {
    /// Integer instructions in any mode but paged 32-bit.
    Anything,
    Paged32,
    /// System calls and vector instructions in hardware.
    Hardware,
}

/// Whether the host's KVM can run an image; says why not.
pub fn kvm_can(needs: Needs) -> bool {
    let Some(abilities) = kvm() else {
        return false;
    };
    let can = match needs {
        Needs::Anything => abilities.kernel_64 != Speed::Not,
        Needs::Paged32 => abilities.paged_32 != Speed::Not,
        Needs::Hardware => abilities.runs_kernels(),
    };
    if !can {
        println!("skipped: this host's KVM can't do it ({abilities:?})");
    }
    can
}

/// The images, what they need, and what they say.
pub struct Guest {
    pub name: &'static str,
    pub cmdline: &'static str,
    pub needs: Needs,
    pub says: &'static str,
}

pub const GUESTS: &[Guest] = &[
    Guest {
        name: "boot_sector",
        cmdline: "",
        needs: Needs::Anything,
        says: "hello from real mode\n",
    },
    Guest {
        name: "protected",
        cmdline: "hello",
        needs: Needs::Paged32,
        says: "magic 0x2badb002\ncommand line: hello\npaging is on\n\
               faults 0x10, sum 0x3e000\ncalls 0xc\nthe timer ticks\n",
    },
    Guest {
        name: "kernel",
        cmdline: "",
        needs: Needs::Hardware,
        says: KERNEL,
    },
    Guest {
        name: "kernel_integer",
        cmdline: "",
        needs: Needs::Anything,
        says: KERNEL,
    },
    Guest {
        name: "bench",
        cmdline: "3",
        needs: Needs::Hardware,
        says: "rounds 0x3, sum 0xf3777dda5ef659\n",
    },
    Guest {
        name: "bench_integer",
        cmdline: "3",
        needs: Needs::Anything,
        says: "rounds 0x3, sum 0xf3777b360a5484\n",
    },
];

const KERNEL: &str = "64 bits\nself-modified sum 0x13ba\nentering ring 3\n\
                      task 0 sum 0x1e8ba6bcc296ea6\ntask 1 sum 0x31adfd0305c430\n\
                      pages 0x20, preempted\n";

impl Guest {
    pub fn named(name: &str) -> &'static Guest {
        let guest = GUESTS.iter().find(|guest| guest.name == name);
        guest.expect("a guest of that name")
    }

    /// `temper vm run` with further options.
    pub fn run(&self, options: &[&str]) -> Outcome {
        let image = image(self.name);
        let mut args = vec!["run"];
        args.extend(options);
        if !self.cmdline.is_empty() {
            args.extend(["--cmdline", self.cmdline]);
        }
        args.push(image.to_str().expect("UTF-8"));
        vm(&args)
    }

    /// It says what it should and turns the machine off.
    #[track_caller]
    pub fn is_right(&self, outcome: &Outcome) {
        assert_eq!(outcome.end, End::Exit(0), "{}: {outcome:?}", self.name);
        let said = String::from_utf8_lossy(&outcome.stdout);
        assert_eq!(said, self.says, "{}: {outcome:?}", self.name);
    }
}
