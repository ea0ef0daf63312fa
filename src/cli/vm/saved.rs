//! `temper vm snapshot` and `temper vm restore`.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::Args;

use super::options::{EngineArgs, ImageArgs, machine_failure};
use super::run::{self, OutputArgs, SwitchArgs};
use crate::cli::failure::Failure;
use crate::system::control::{Control, Stop};
use crate::system::machine::{Machine, Pause, Until};
use crate::system::snapshot::{self, SnapshotError};

/// The arguments of `temper vm snapshot`.
#[derive(Args, Debug)]
#[command(after_help = "\
Without a condition the machine is saved when Ctrl-A s is typed. Exit status: 0 when it was \
saved; 1 when the guest ended before.")]
pub struct SnapshotArgs {
    #[command(flatten)]
    engine: EngineArgs,

    #[command(flatten)]
    output: OutputArgs,

    /// Save after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    after_seconds: Option<u32>,

    /// Save after this many device accesses
    #[arg(long, value_name = "N")]
    after_accesses: Option<u64>,

    /// Save after this many instructions (software engine only)
    #[arg(long, value_name = "N")]
    after_instructions: Option<u64>,

    #[command(flatten)]
    image: ImageArgs,
}

/// The arguments of `temper vm restore`.
#[derive(Args, Debug)]
pub struct RestoreArgs {
    #[command(flatten)]
    engine: EngineArgs,

    #[command(flatten)]
    switch: SwitchArgs,

    /// What `temper vm snapshot` wrote
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
}

/// Runs an image and saves the machine.
///
/// # Errors
/// The machine can't be started, or the file can't be written.
pub fn snapshot(args: SnapshotArgs) -> Result<i32, Failure> {
    let image = args.image.load()?;
    let settings = args.engine.settings(args.image.memory)?;
    let path = &args.output.output;
    let mut machine = Machine::boot(settings, &image, Box::new(io::stdout()))
        .map_err(|error| machine_failure(&args.image.image, &error))?;
    let control = machine.control();
    let terminal = run::attach(&machine)?;
    args.engine.start_timeout(&control);
    if let Some(seconds) = args.after_seconds {
        stop_after(&control, Duration::from_secs(seconds.into()));
    }
    let until = Until {
        instructions: args.after_instructions,
        accesses: args.after_accesses,
    };
    let result = machine.run(until);
    drop(terminal);
    match result.map_err(|error| machine_failure(&args.image.image, &error))? {
        Pause::Reached | Pause::Stopped(Stop::Snapshot) => {
            save(&mut machine, path)?;
            Ok(0)
        }
        Pause::Stopped(Stop::Signal(number)) => Ok(128 + number),
        Pause::Ended(_)
        | Pause::Stopped(Stop::Quit | Stop::Timeout | Stop::Debugger)
        | Pause::Debug => {
            eprintln!("temper: the guest ended before it was to be saved; nothing was written");
            Ok(1)
        }
    }
}

fn stop_after(control: &Arc<Control>, time: Duration) {
    let control = Arc::downgrade(control);
    thread::spawn(move || {
        thread::sleep(time);
        if let Some(control) = control.upgrade() {
            control.stop(Stop::Snapshot);
        }
    });
}

/// Writes the file whole or not at all.
fn save(machine: &mut Machine, path: &Path) -> Result<(), Failure> {
    let failed = |error: SnapshotError| {
        Failure::own(format!("{}: can't be saved ({error})", path.display()))
    };
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let partial = PathBuf::from(name);
    let write = |machine: &mut Machine| -> Result<(), SnapshotError> {
        let mut file = BufWriter::new(File::create(&partial)?);
        snapshot::save(machine, &mut file)?;
        file.flush()?;
        file.get_ref().sync_all()?;
        std::fs::rename(&partial, path)?;
        Ok(())
    };
    write(machine).map_err(|error| {
        let _ = std::fs::remove_file(&partial);
        failed(error)
    })
}

/// Goes on with a saved machine.
///
/// # Errors
/// The file can't be read, or the engine can't be put into its state.
pub fn restore(args: RestoreArgs) -> Result<i32, Failure> {
    let unreadable = |error: SnapshotError| {
        let message = format!("{}: {error}", args.file.display());
        match error {
            SnapshotError::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                Failure::not_found(message)
            }
            _ => Failure::not_executable(message),
        }
    };
    let file = File::open(&args.file).map_err(|error| unreadable(error.into()))?;
    let saved = snapshot::load(&mut BufReader::new(file)).map_err(unreadable)?;
    let settings = args.engine.settings(1)?;
    let output = Box::new(io::stdout());
    let machine = Machine::restore(settings, saved.ram, &saved.board, &saved.cpu, output)
        .map_err(|error| machine_failure(&args.file, &error))?;
    run::drive(machine, &args.engine, &args.switch, &args.file)
}
