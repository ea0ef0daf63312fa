//! From a command to a guest that is ready to run its first instruction.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use syscalls::Sysno;

use super::Process;
use super::address_space::{AddressSpace, Placement};
use super::auxv::ProgramFacts;
use super::deferred::Deferred;
use super::descriptors::OwnDescriptor;
use super::elf::{self, Executable, Kind, LoadError, LoadedImage, Program};
use super::exec::{Kept, Relaunch};
use super::identity::Identity;
use super::memory::ProcessMemory;
use super::notice::Notices;
use super::record::{ProcessRecord, RecordId};
use super::signals::{Dispositions, Inherited, ThreadSignals};
use super::stack::{self, StackContents};
use super::thread::ThreadState;
use super::vdso;
use crate::addr::GuestAddr;
use crate::guest::{Gpr, ThreadContext, flags};
use crate::host::probe;
use crate::host::syscall::{Errno, call};

/// personality(2) bits.
pub const ADDR_NO_RANDOMIZE: u64 = 0x004_0000;
pub const READ_IMPLIES_EXEC: u64 = 0x040_0000;
const QUERY_PERSONALITY: u64 = 0xffff_ffff;
/// Huge pages take at most so small a part of the machine's memory.
const HUGE_SHARE: u64 = 4;

/// How to load.
#[derive(Default, Debug)]
pub struct LoadOptions {
    /// Places nothing at random, whatever the host's settings.
    pub no_randomization: bool,
    /// Asks for huge pages for the guest's large private memory.
    pub huge_pages: bool,
    /// A descriptor of Temper's that stays open while the guest runs, hidden from it.
    pub own_descriptor: Option<OwnedFd>,
    /// Temper's options for what the guest executes.
    pub relaunch: Relaunch,
    /// What this process was before, if it executed this program.
    pub kept: Option<Kept>,
}

/// The registers with which the guest starts; all others are zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    pub entry: GuestAddr,
    pub stack: GuestAddr,
    /// System calls that may go out from assembly at first.
    pub pass_through: [u64; 8],
    /// The host blocks more signals than the guest.
    pub settle_signals: bool,
}

impl Start {
    /// Makes `ctx` that of the guest's first instruction (ELF_PLAT_INIT of the kernel: all
    /// registers zero).
    pub fn apply(&self, ctx: &mut ThreadContext) {
        ctx.cpu.gpr = [0; 16];
        ctx.cpu.set(Gpr::Rsp, self.stack.0);
        ctx.cpu.rip = self.entry.0;
        ctx.cpu.rflags = flags::FIXED | flags::IF;
        ctx.cpu.fs_base = 0;
        ctx.cpu.gs_base = 0;
        ctx.set_pass_through(self.pass_through);
        // The first visit to the surroundings gives the host the guest's mask.
        ctx.set_signal_pending(self.settle_signals);
    }
}

/// A guest whose first thread can run.
#[derive(Debug)]
pub struct Loaded {
    pub process: Process,
    pub thread: ThreadState,
    pub start: Start,
}

impl Process {
    /// Loads `executable` with `args` from argv[0] on.
    ///
    /// # Errors
    /// What keeps the program from running.
    pub fn load(
        options: LoadOptions,
        executable: Executable,
        args: Vec<OsString>,
        env: &[OsString],
    ) -> Result<Loaded, LoadError> {
        let exec_name = executable.name.clone().into_os_string();
        let exec_name = exec_name.as_os_str();
        let nameless = executable.nameless;
        let program = elf::open_program(executable, args)?;
        let personality = personality()?;
        let randomize = !options.no_randomization
            && personality & ADDR_NO_RANDOMIZE == 0
            && randomization_enabled();
        let entropy = Entropy::new()?;
        let placement = Placement::new(randomize.then_some(entropy.places));
        let mut space = AddressSpace::new(placement);
        if options.huge_pages {
            space.use_huge_pages(probe::total_memory() / HUGE_SHARE);
        }
        space.read_implies_exec = personality & READ_IMPLIES_EXEC != 0;
        let mut memory = ProcessMemory::new(space);
        let images = load_images(&mut memory, &program)?;
        let (native, space) = memory.parts();
        let alias = vdso::install(space, native);
        let stack_region = stack::map_stack(
            &mut memory.space,
            program.main.image.executable_stack,
            &mut Deferred,
        )?;
        let facts = ProgramFacts {
            headers: images.main.headers,
            header_count: program.main.image.header_count,
            base: images.interpreter.as_ref().map_or(0, |image| image.bias),
            entry: images.main.entry,
            vdso: alias.map(|alias| alias.start),
        };
        let contents = StackContents {
            exec_name,
            args: &program.args,
            env,
            random: entropy.for_guest,
            jitter: if randomize {
                entropy.jitter & 0x1fff
            } else {
                0
            },
            facts,
        };
        let layout = stack::build(&mut memory, &stack_region, &contents)?;
        let entry = images.interpreter.as_ref().unwrap_or(&images.main).entry;
        let mut identity = Identity::new(program.main.real_path.clone(), &layout, personality);
        let named_after = if nameless {
            OsStr::from_bytes(program.main.real_path.to_bytes())
        } else {
            exec_name
        };
        identity.announce(elf::base_name(Path::new(named_after)), layout.pointer);
        let inherited = Inherited::read();
        let kept = options.kept;
        let record = ProcessRecord {
            identity,
            dispositions: Dispositions::inherited(inherited.ignored),
            memory_limits: kept
                .as_ref()
                .map(|kept| kept.memory_limits)
                .unwrap_or_default(),
            notices: Notices::default(),
            own_descriptor: OwnDescriptor::new(options.own_descriptor),
            relaunch: options.relaunch,
            is_child: false,
            shares_memory: false,
            threads: 1,
        };
        let mut process = Process::new(memory, alias, record);
        let mask = kept.as_ref().map_or(inherited.mask, |kept| kept.mask);
        let thread = ThreadState::new(RecordId::FIRST, ThreadSignals::new(mask));
        if let Some(kept) = &kept {
            process.filters.restrict(&kept.seccomp);
            thread.seccomp.set(kept.seccomp.clone());
        }
        let start = Start {
            entry,
            stack: layout.pointer,
            pass_through: process.pass_through_mask(),
            settle_signals: kept.is_some(),
        };
        Ok(Loaded {
            process,
            thread,
            start,
        })
    }
}

struct Images {
    main: LoadedImage,
    interpreter: Option<LoadedImage>,
}

fn load_images(memory: &mut ProcessMemory, program: &Program) -> Result<Images, LoadError> {
    let main = memory.load_image(&program.main, true)?;
    let interpreter = program
        .interpreter
        .as_ref()
        .map(|interpreter| memory.load_image(interpreter, false))
        .transpose()
        .map_err(|error| LoadError::Interpreter {
            of: program.main.path.clone(),
            error: Box::new(error),
        })?;
    // A fixed image's break follows it, as programs of that age expect; the break of an
    // image that can be anywhere is high, where it can grow.
    let space = &mut memory.space;
    let start = match program.main.image.kind {
        Kind::Fixed => space.break_after(main.end),
        Kind::PositionIndependent => Some(space.high_break()),
    };
    space.set_break_start(start.unwrap_or(main.span.end));
    Ok(Images { main, interpreter })
}

fn personality() -> Result<u64, LoadError> {
    // SAFETY: a query.
    unsafe { call(Sysno::personality, [QUERY_PERSONALITY, 0, 0, 0, 0, 0]) }.map_err(|errno| {
        LoadError::Host {
            what: "asking for the personality",
            errno,
        }
    })
}

fn randomization_enabled() -> bool {
    std::fs::read("/proc/sys/kernel/randomize_va_space").map_or(true, |text| text != b"0\n")
}

struct Entropy {
    for_guest: [u8; 16],
    places: [u64; 4],
    jitter: u64,
}

impl Entropy {
    fn new() -> Result<Entropy, LoadError> {
        let mut words = [0u64; 7];
        let bytes = size_of_val(&words) as u64;
        let args = [words.as_mut_ptr() as u64, bytes, 0, 0, 0, 0];
        // SAFETY: the kernel writes the seven words.
        let got = unsafe { call(Sysno::getrandom, args) };
        if got != Ok(bytes) {
            return Err(LoadError::Host {
                what: "getting random bytes",
                errno: got.err().unwrap_or(Errno(libc::EIO)),
            });
        }
        let [a, b, places @ .., jitter] = words;
        let mut for_guest = [0; 16];
        for_guest[..8].copy_from_slice(&a.to_le_bytes());
        for_guest[8..].copy_from_slice(&b.to_le_bytes());
        Ok(Entropy {
            for_guest,
            places,
            jitter,
        })
    }
}
