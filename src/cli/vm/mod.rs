//! `temper vm`: whole machines. Arguments, and what all of its commands share.

mod options;
mod report;
mod run;
mod saved;
mod verify;

use clap::{Args, Subcommand};

use super::failure::Failure;

/// The arguments of `temper vm`.
#[derive(Args, Debug)]
pub struct VmArgs {
    #[command(subcommand)]
    command: VmCommand,
}

#[derive(Subcommand, Debug)]
enum VmCommand {
    /// Run a machine from an image, its serial line on the terminal
    #[command(after_help = STATUS)]
    Run(run::RunArgs),
    /// Run a machine from an image, and save it to a file
    Snapshot(saved::SnapshotArgs),
    /// Go on with a saved machine
    #[command(after_help = STATUS)]
    Restore(saved::RestoreArgs),
    /// Run an image on both engines and compare them
    #[command(after_help = "Exit status: 0 when both agree, 1 when they differ.")]
    Verify(verify::VerifyArgs),
}

const STATUS: &str = "\
IMAGE is a Linux bzImage, a multiboot 1 or PVH ELF image, or a boot sector. On a terminal, \
Ctrl-A x quits.\n\n\
Exit status: 0 when the machine is turned off, reset or halted for good; after a byte N \
written to port 0xf4, 2N+1 (as QEMU's isa-debug-exit has it); 124 after --timeout; 128 after \
a triple fault; 128 and the number after a signal; 125 when Temper itself fails.";

/// Runs the command; its exit status.
///
/// # Errors
/// What keeps a machine from starting or going on.
pub fn run(args: VmArgs) -> Result<i32, Failure> {
    match args.command {
        VmCommand::Run(args) => run::run(args),
        VmCommand::Snapshot(args) => saved::snapshot(args),
        VmCommand::Restore(args) => saved::restore(args),
        VmCommand::Verify(args) => verify::run(args),
    }
}
