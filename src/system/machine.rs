//! A machine: RAM, a board, one CPU on one of the engines, and the loop that runs it. Keeps
//! the timers going, feeds typed input, moves the CPU between the engines, and lets the
//! software engine execute what KVM can't.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::board::{Board, BoardSnapshot, Counts, Trace};
use super::boot::{self, BootError, Image, map};
use super::clock::TimeBase;
use super::control::{Control, Stop};
use super::devices::Ending;
use super::devices::serial::Output;
use super::engine::{Engine, EngineKind};
use super::memory::GuestRam;
use super::soft;
use super::state::VcpuState;
use super::vcpu::{VcpuError, VcpuExit};

/// How a machine is built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    pub engine: EngineKind,
    /// Bytes of guest memory, a multiple of 1 MiB.
    pub memory: u64,
    pub time: TimeBase,
    /// The date when it is switched on, in seconds since 1970.
    pub epoch: i64,
    pub trace: Trace,
}

/// Why `run` came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pause {
    Ended(Ending),
    Stopped(Stop),
    /// As many instructions or device accesses as were asked for.
    Reached,
    /// A step or a breakpoint.
    Debug,
}

/// Until when to run.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Until {
    /// So many further instructions; the software engine alone counts them.
    pub instructions: Option<u64>,
    /// So many further device accesses.
    pub accesses: Option<u64>,
}

/// What keeps a machine from being built or from going on.
#[derive(Debug)]
pub enum MachineError {
    Memory(io::Error),
    Boot(BootError),
    /// The engine can't be had, or failed.
    Engine(EngineKind, VcpuError),
    /// Neither engine can execute the instruction.
    Instruction {
        rip: u64,
        bytes: Vec<u8>,
    },
    /// A snapshot's state is one that no board can be in.
    Board(String),
}

impl fmt::Display for MachineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MachineError::Memory(error) => write!(f, "no memory for the guest ({error})"),
            MachineError::Boot(error) => error.fmt(f),
            MachineError::Engine(kind, error) => write!(f, "{kind}: {error}"),
            MachineError::Instruction { rip, bytes } => {
                write!(f, "the instruction at {rip:#x} can't be executed (")?;
                for byte in bytes {
                    write!(f, " {byte:02x}")?;
                }
                f.write_str(" )")
            }
            MachineError::Board(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for MachineError {}

impl From<BootError> for MachineError {
    fn from(error: BootError) -> Self {
        MachineError::Boot(error)
    }
}

/// What happened, for people.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct MachineStats {
    pub devices: Counts,
    /// Instructions that the software engine executed.
    pub instructions: u64,
    /// Entries of KVM.
    pub kvm_entries: u64,
    /// Instructions that KVM couldn't execute.
    pub lent_instructions: u64,
    pub switches: u64,
}

/// See the module documentation.
pub struct Machine {
    ram: Arc<GuestRam>,
    board: Board,
    engine: Engine,
    /// The software engine while KVM runs the CPU, for instructions that KVM can't execute.
    helper: Option<Box<soft::Vcpu>>,
    control: Arc<Control>,
    /// A debugger wants to see every instruction.
    stepping: bool,
    stats: MachineStats,
}

/// Counted time advances in steps of at most so many instructions.
const STEP: u64 = 10_000;

impl Machine {
    /// A machine with `image` loaded, about to start it.
    ///
    /// # Errors
    /// The image can't be booted, or the host lacks what the engine needs.
    pub fn boot(
        settings: Settings,
        image: &Image,
        output: Output,
    ) -> Result<Machine, MachineError> {
        let ram = map::new_ram(settings.memory).map_err(MachineError::Memory)?;
        let state = boot::load(&ram, image)?;
        let board = Board::new(
            settings.memory,
            settings.epoch,
            settings.time,
            output,
            settings.trace,
        );
        Machine::assemble(settings, ram, board, &state)
    }

    /// A machine in the state that was saved. Memory size and date are the snapshot's.
    ///
    /// # Errors
    /// The state is impossible, or the host's engine can't be put into it.
    pub fn restore(
        settings: Settings,
        ram: GuestRam,
        board: &BoardSnapshot,
        state: &VcpuState,
        output: Output,
    ) -> Result<Machine, MachineError> {
        let board = Board::restore(board, settings.time, output, settings.trace)
            .map_err(MachineError::Board)?;
        Machine::assemble(settings, ram, board, state)
    }

    fn assemble(
        settings: Settings,
        ram: GuestRam,
        board: Board,
        state: &VcpuState,
    ) -> Result<Machine, MachineError> {
        let ram = Arc::new(ram);
        let failed = |error| MachineError::Engine(settings.engine, error);
        let engine = Engine::new(settings.engine, &ram).map_err(failed)?;
        let mut machine = Machine {
            ram,
            board,
            engine,
            helper: None,
            control: Control::new(),
            stepping: false,
            stats: MachineStats::default(),
        };
        machine.set_state(state)?;
        machine.wire();
        Ok(machine)
    }

    /// Connects what wakes the CPU to the engine that runs it now.
    fn wire(&mut self) {
        let kicker = self.engine.vcpu().kicker();
        self.board.set_kicker(Arc::clone(&kicker));
        // Where time is counted, calls from outside must not cut it at random places; they
        // are heard after each step.
        let steps =
            self.engine() == EngineKind::Software && self.board.clock().base() != TimeBase::Host;
        self.control.set_kicker((!steps).then_some(kicker));
    }

    pub fn control(&self) -> Arc<Control> {
        Arc::clone(&self.control)
    }

    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    pub fn board(&self) -> &Board {
        &self.board
    }

    pub fn engine(&self) -> EngineKind {
        self.engine.kind()
    }

    pub fn stats(&self) -> MachineStats {
        let mut stats = self.stats;
        stats.devices = self.board.counts();
        self.count_engine(&mut stats);
        stats
    }

    fn count_engine(&self, stats: &mut MachineStats) {
        match &self.engine {
            Engine::Kvm(vcpu) => stats.kvm_entries += vcpu.exits(),
            Engine::Software(vcpu) => stats.instructions += vcpu.executed(),
        }
    }

    /// The CPU between two instructions.
    ///
    /// # Errors
    /// The engine's.
    pub fn state(&mut self) -> Result<VcpuState, MachineError> {
        let kind = self.engine.kind();
        let state = self.engine.vcpu().state();
        let mut state = state.map_err(|error| MachineError::Engine(kind, error))?;
        // The board has the one true copy of both.
        state.cr8 = super::Bus::task_priority(&mut self.board);
        state.apic_base = self.board.apic_base();
        Ok(state)
    }

    /// # Errors
    /// The engine's.
    pub fn set_state(&mut self, state: &VcpuState) -> Result<(), MachineError> {
        let kind = self.engine.kind();
        let result = self.engine.vcpu().set_state(state);
        result.map_err(|error| MachineError::Engine(kind, error))
    }

    /// Moves the CPU to the other engine.
    ///
    /// # Errors
    /// The other can't be had, or can't be put into this state. The machine is then as it
    /// was.
    pub fn switch(&mut self) -> Result<(), MachineError> {
        let state = self.state()?;
        let kind = self.engine.kind().other();
        let failed = |error| MachineError::Engine(kind, error);
        let mut engine = Engine::new(kind, &self.ram).map_err(failed)?;
        engine.vcpu().set_state(&state).map_err(failed)?;
        let mut stats = self.stats;
        self.count_engine(&mut stats);
        stats.switches += 1;
        self.stats = stats;
        self.engine = engine;
        self.helper = None;
        self.wire();
        Ok(())
    }

    /// Stops with [`Pause::Debug`] after each instruction, or before those at `breakpoints`.
    ///
    /// # Errors
    /// The engine can't.
    pub fn set_debug(&mut self, step: bool, breakpoints: &[u64]) -> Result<(), MachineError> {
        let kind = self.engine.kind();
        let result = self.engine.set_debug(step, breakpoints);
        result.map_err(|error| MachineError::Engine(kind, error))?;
        self.stepping = step;
        Ok(())
    }

    /// Runs until the guest ends, somebody stops it, or `until` is reached.
    ///
    /// # Errors
    /// Neither engine can go on.
    pub fn run(&mut self, until: Until) -> Result<Pause, MachineError> {
        let accesses = self.board.counts().accesses();
        self.board
            .set_stop_at_access(until.accesses.map(|count| accesses + count));
        let mut left = until.instructions;
        loop {
            self.board.type_in(&self.control.take_typed());
            self.board.advance();
            if let Some(stop) = self.control.take_stop() {
                return Ok(Pause::Stopped(stop));
            }
            if let Some(ending) = self.board.ending() {
                return Ok(Pause::Ended(ending));
            }
            if self.board.stop_is_reached() || left == Some(0) {
                return Ok(Pause::Reached);
            }
            if self.board.take_nmi() {
                let kind = self.engine.kind();
                let result = self.engine.vcpu().inject_nmi();
                result.map_err(|error| MachineError::Engine(kind, error))?;
            }
            if let Some(pause) = self.run_engine(&mut left)? {
                return Ok(pause);
            }
        }
    }

    /// Runs the CPU until it comes back once.
    fn run_engine(&mut self, left: &mut Option<u64>) -> Result<Option<Pause>, MachineError> {
        let deadline = self.board.arm();
        let alarm = deadline.and_then(|at| self.board.clock().host_time_of(at));
        self.control.set_alarm(alarm);
        let before = self.instructions();
        if let Engine::Software(vcpu) = &mut self.engine {
            let step = match self.board.clock().base() {
                TimeBase::Host => None,
                // Another engine runs beside this one, and stops and takes interrupts at the
                // instruction of the access: blocks end too late for that.
                TimeBase::Accesses => Some(1),
                TimeBase::Instructions => {
                    let now = self.board.clock().now();
                    vcpu.set_clock(now);
                    Some(deadline.map_or(STEP, |at| at.saturating_sub(now).clamp(1, STEP)))
                }
            };
            vcpu.set_limit([step, *left].into_iter().flatten().min());
        }
        let kind = self.engine.kind();
        let exit = self.engine.vcpu().run(&mut self.board);
        let exit = exit.map_err(|error| MachineError::Engine(kind, error))?;
        let ran = self.instructions() - before;
        if let Some(left) = left {
            *left = left.saturating_sub(ran);
        }
        match exit {
            VcpuExit::Interrupted | VcpuExit::LimitReached => Ok(None),
            VcpuExit::Halted => Ok(self.wait().map(Pause::Ended)),
            VcpuExit::HaltedForever => Ok(Some(Pause::Ended(Ending::Halted))),
            VcpuExit::Shutdown => Ok(Some(Pause::Ended(Ending::TripleFault))),
            VcpuExit::Debug => Ok(Some(Pause::Debug)),
            VcpuExit::EmulationFailure { bytes, len } => match kind {
                EngineKind::Kvm => self.execute_for_kvm(),
                EngineKind::Software => Err(MachineError::Instruction {
                    rip: self.state()?.rip,
                    bytes: bytes[..usize::from(len)].to_vec(),
                }),
            },
        }
    }

    fn instructions(&self) -> u64 {
        match &self.engine {
            Engine::Kvm(_) => 0,
            Engine::Software(vcpu) => vcpu.executed(),
        }
    }

    /// HLT: until a timer is due or something comes from outside.
    fn wait(&mut self) -> Option<Ending> {
        let deadline = self.board.next_deadline();
        match (deadline, self.board.clock().base()) {
            (Some(at), TimeBase::Instructions | TimeBase::Accesses) => {
                self.board.clock_mut().skip_to(at);
                None
            }
            (deadline, _) => {
                let until = deadline.and_then(|at| self.board.clock().host_time_of(at));
                (!self.control.wait(until)).then_some(Ending::Halted)
            }
        }
    }

    /// One instruction that KVM's emulator doesn't know, by the software engine.
    fn execute_for_kvm(&mut self) -> Result<Option<Pause>, MachineError> {
        const KIND: EngineKind = EngineKind::Software;
        let state = self.state()?;
        let failed = |error| MachineError::Engine(KIND, error);
        let mut helper = match self.helper.take() {
            Some(helper) => helper,
            None => Box::new(
                soft::Vcpu::new(Arc::clone(&self.ram)).map_err(|error| failed(error.into()))?,
            ),
        };
        super::Vcpu::set_state(helper.as_mut(), &state).map_err(failed)?;
        helper.set_limit(Some(1));
        let exit = super::Vcpu::run(helper.as_mut(), &mut self.board).map_err(failed)?;
        let after = super::Vcpu::state(helper.as_mut()).map_err(failed)?;
        self.helper = Some(helper);
        self.stats.lent_instructions += 1;
        self.set_state(&after)?;
        match exit {
            VcpuExit::LimitReached
            | VcpuExit::Interrupted
            | VcpuExit::Debug
            | VcpuExit::Halted
            | VcpuExit::HaltedForever => Ok(self.stepping.then_some(Pause::Debug)),
            VcpuExit::Shutdown => Ok(Some(Pause::Ended(Ending::TripleFault))),
            VcpuExit::EmulationFailure { bytes, len } => Err(MachineError::Instruction {
                rip: after.rip,
                bytes: bytes[..usize::from(len)].to_vec(),
            }),
        }
    }
}
