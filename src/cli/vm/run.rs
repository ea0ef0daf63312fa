//! `temper vm run`.

use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;

use super::options::{EngineArgs, ImageArgs, machine_failure};
use super::report;
use crate::cli::failure::Failure;
use crate::system::debugger::{self, DebuggerError};
use crate::system::engine::EngineKind;
use crate::system::machine::{Machine, Pause, Until};
use crate::system::terminal::Terminal;

/// The arguments of `temper vm run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pub engine: EngineArgs,

    #[command(flatten)]
    pub switch: SwitchArgs,

    #[command(flatten)]
    pub image: ImageArgs,
}

/// `--switch-at`.
#[derive(Args, Clone, Debug, Default)]
pub struct SwitchArgs {
    /// Move to the other engine after N instructions (software) or device accesses (KVM), and
    /// again for each further N
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub switch_at: Vec<u64>,
}

/// Boots the image and runs it.
///
/// # Errors
/// What keeps it from starting or going on.
pub fn run(args: RunArgs) -> Result<i32, Failure> {
    let image = args.image.load()?;
    let settings = args.engine.settings(args.image.memory)?;
    let machine = Machine::boot(settings, &image, Box::new(io::stdout()))
        .map_err(|error| machine_failure(&args.image.image, &error))?;
    drive(machine, &args.engine, &args.switch, &args.image.image)
}

/// Runs a machine on the terminal to its end.
///
/// # Errors
/// Neither engine can go on, or the terminal can't be used.
pub fn drive(
    mut machine: Machine,
    engine: &EngineArgs,
    switch: &SwitchArgs,
    name: &Path,
) -> Result<i32, Failure> {
    let started = Instant::now();
    let control = machine.control();
    let terminal = attach(&machine)?;
    engine.start_timeout(&control);
    let result = match &engine.gdb {
        Some(address) => debug(&mut machine, address),
        None => run_with_switches(&mut machine, &switch.switch_at)
            .map_err(|error| machine_failure(name, &error)),
    };
    drop(terminal);
    let pause = result?;
    if engine.stats {
        let seconds = started.elapsed().as_secs_f64();
        eprintln!(
            "{}",
            report::stats(machine.engine(), &machine.stats(), seconds)
        );
    }
    report::conclude(&mut machine, pause)
}

/// Gives the terminal to the guest.
///
/// # Errors
/// The kernel refuses.
pub fn attach(machine: &Machine) -> Result<Terminal, Failure> {
    Terminal::attach(&machine.control())
        .map_err(|error| Failure::own(format!("the terminal can't be used ({error})")))
}

/// Waits for a debugger and lets it run the machine.
fn debug(machine: &mut Machine, address: &str) -> Result<Pause, Failure> {
    let unusable = |error: io::Error| {
        Failure::own(format!(
            "{address}: gdb can't be waited for there ({error})"
        ))
    };
    let listener = TcpListener::bind(address).map_err(unusable)?;
    let at = listener.local_addr().map_err(unusable)?;
    eprint!("temper: waiting for gdb; `target remote {at}` there starts the machine\r\n");
    debugger::serve(machine, &listener).map_err(|error| match error {
        DebuggerError::Io(error) => unusable(error),
        DebuggerError::Machine(error) => Failure::own(error.to_string()),
        DebuggerError::Protocol(what) => Failure::own(format!("gdb: {what}")),
    })
}

fn run_with_switches(
    machine: &mut Machine,
    switches: &[u64],
) -> Result<Pause, crate::system::machine::MachineError> {
    for &count in switches {
        let until = match machine.engine() {
            EngineKind::Software => Until {
                instructions: Some(count),
                accesses: None,
            },
            EngineKind::Kvm => Until {
                instructions: None,
                accesses: Some(count),
            },
        };
        match machine.run(until)? {
            Pause::Reached => machine.switch()?,
            pause => return Ok(pause),
        }
    }
    machine.run(Until::default())
}

/// Where a file is to be written.
#[derive(Args, Clone, Debug)]
pub struct OutputArgs {
    /// The file to write
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub output: PathBuf,
}
