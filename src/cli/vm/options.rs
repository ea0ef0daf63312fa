//! The options that several commands of `temper vm` share, and what becomes of them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};

use crate::cli::failure::Failure;
use crate::system::board::Trace;
use crate::system::boot::Image;
use crate::system::clock::TimeBase;
use crate::system::control::{Control, Stop};
use crate::system::engine::EngineKind;
use crate::system::kvm::host::Abilities;
use crate::system::machine::{MachineError, Settings};
use crate::system::vcpu::VcpuError;

/// Which engine runs the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum EngineChoice {
    /// KVM where it runs kernels in hardware, else the software engine
    Auto,
    /// The host's KVM
    Kvm,
    /// Temper's own engine
    Software,
}

/// What moves the machine's time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ClockChoice {
    /// The host's clock
    Host,
    /// A nanosecond an instruction: every run is the same (software engine only)
    Counted,
}

/// What to print while the guest runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum TraceChoice {
    /// Each device access
    Exits,
    /// Each interrupt that the CPU takes
    Interrupts,
}

/// How the machine runs, for images and for snapshots.
#[derive(Args, Clone, Debug)]
pub struct EngineArgs {
    /// What runs the guest
    #[arg(long, value_enum, default_value = "auto")]
    pub engine: EngineChoice,

    /// Stop after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,

    /// What moves the guest's timers
    #[arg(long, value_enum, default_value = "host")]
    pub clock: ClockChoice,

    /// Print these on standard error as they happen
    #[arg(long, value_enum, value_delimiter = ',')]
    pub trace: Vec<TraceChoice>,

    /// Wait for gdb at this address, such as 127.0.0.1:1234, and let it run the machine
    #[arg(long, value_name = "ADDRESS")]
    pub gdb: Option<String>,

    /// Print what happened on standard error at the end
    #[arg(long)]
    pub stats: bool,
}

/// What the machine is made of.
#[derive(Args, Clone, Debug)]
pub struct ImageArgs {
    /// Guest memory
    #[arg(long, value_name = "MIB", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub memory: u32,

    /// An initial RAM disk (Linux, PVH) or a module (multiboot)
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub initrd: Option<PathBuf>,

    /// The guest's command line
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub cmdline: String,

    /// What to boot
    #[arg(value_hint = clap::ValueHint::FilePath)]
    pub image: PathBuf,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || "a number of seconds above 0".to_owned();
    let value: f64 = text.parse().map_err(|_| wrong())?;
    if value <= 0.0 {
        return Err(wrong());
    }
    Duration::try_from_secs_f64(value).map_err(|_| wrong())
}

impl ImageArgs {
    /// Reads the files.
    ///
    /// # Errors
    /// A file can't be read.
    pub fn load(&self) -> Result<Image, Failure> {
        Ok(Image {
            kernel: read(&self.image, "the image")?,
            initrd: match &self.initrd {
                Some(path) => Some(read(path, "the initial RAM disk")?),
                None => None,
            },
            cmdline: self.cmdline.clone(),
        })
    }
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| {
        let message = format!("{}: {what} can't be read ({error})", path.display());
        match error.kind() {
            io::ErrorKind::NotFound => Failure::not_found(message),
            _ => Failure::not_executable(message),
        }
    })
}

impl EngineArgs {
    /// The machine's settings.
    ///
    /// # Errors
    /// The choices contradict each other.
    pub fn settings(&self, memory_mib: u32) -> Result<Settings, Failure> {
        let counted = self.clock == ClockChoice::Counted;
        let engine = match self.engine {
            EngineChoice::Kvm if counted => {
                return Err(Failure::usage(
                    "KVM counts no instructions; use --engine software",
                ));
            }
            EngineChoice::Kvm => EngineKind::Kvm,
            EngineChoice::Software => EngineKind::Software,
            EngineChoice::Auto if counted => EngineKind::Software,
            EngineChoice::Auto => best_engine(),
        };
        let epoch = if counted {
            // 2000-01-01: counted time must be the same in every run.
            946_684_800
        } else {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            now.map_or(0, |now| now.as_secs() as i64)
        };
        Ok(Settings {
            engine,
            memory: u64::from(memory_mib) << 20,
            time: if counted {
                TimeBase::Instructions
            } else {
                TimeBase::Host
            },
            epoch,
            trace: Trace {
                exits: self.trace.contains(&TraceChoice::Exits),
                interrupts: self.trace.contains(&TraceChoice::Interrupts),
            },
        })
    }

    /// Starts the clock of `--timeout`.
    pub fn start_timeout(&self, control: &Arc<Control>) {
        if let Some(timeout) = self.timeout {
            let control = Arc::downgrade(control);
            thread::spawn(move || {
                thread::sleep(timeout);
                if let Some(control) = control.upgrade() {
                    control.stop(Stop::Timeout);
                }
            });
        }
    }
}

fn best_engine() -> EngineKind {
    match Abilities::probe() {
        Ok(abilities) if abilities.runs_kernels() => EngineKind::Kvm,
        Ok(abilities) => {
            tracing::info!(target: "temper::vm", ?abilities, "KVM emulates kernels here");
            EngineKind::Software
        }
        Err(error) => {
            tracing::info!(target: "temper::vm", %error, "there is no KVM to use");
            EngineKind::Software
        }
    }
}

/// A machine's error as a failure.
pub fn machine_failure(name: &Path, error: &MachineError) -> Failure {
    let name = name.display();
    match error {
        MachineError::Boot(error) => Failure::not_executable(format!("{name}: {error}")),
        MachineError::Engine(EngineKind::Kvm, VcpuError::Io(error)) => {
            Failure::own(match error.kind() {
                io::ErrorKind::NotFound => {
                    "there is no /dev/kvm on this host; use --engine software".to_owned()
                }
                io::ErrorKind::PermissionDenied => {
                    "no permission to use /dev/kvm; join the group `kvm`, or use \
                     --engine software"
                        .to_owned()
                }
                _ => format!("KVM: {error}; `temper doctor` says what this host's KVM can do"),
            })
        }
        error => Failure::own(error.to_string()),
    }
}
