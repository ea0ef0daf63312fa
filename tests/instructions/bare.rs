//! The oracle: instructions on the bare CPU, in a forked child. The child lives in its signal
//! handler. Returning from it loads a case's registers from the signal frame; the INT3 after
//! the instruction, or its fault, enters the handler again with the results in the frame. So
//! the kernel does all loading and storing, and faults need no care.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use syscalls::{Sysno, raw::syscall3, raw::syscall4};
use temper::host::{Features, XsaveLayout};
use temper::native::trap_from_signal;

use crate::machine::{Case, INSTRUCTION_AT, Memory, Outcome, State};
use crate::machine::{place, take_memory};

/// Cases handed over at once.
pub const BATCH: usize = 64;
const STACK_BYTES: usize = 256 * 1024;
/// The longest that one case may take; a hanging child is replaced.
const PATIENCE: Duration = Duration::from_secs(5);

#[repr(C)]
struct Question {
    state: State,
    memory: Memory,
    bytes: [u8; 16],
    len: usize,
}

#[repr(C)]
struct Answer {
    state: State,
    memory: Memory,
    signal: i32,
    si_code: i32,
    trap_number: u64,
    error_code: u64,
    addr: u64,
}

#[repr(C)]
struct Shared {
    /// The number of the batch to run, and of the last that is done.
    asked: AtomicU32,
    answered: AtomicU32,
    count: AtomicU32,
    /// The case in progress; the next one while none is.
    at: AtomicU32,
    running: AtomicU32,
    questions: [Question; BATCH],
    answers: [Answer; BATCH],
    stack: [u8; STACK_BYTES],
}

/// The child's way to its shared memory from inside the handler.
static SHARED: AtomicU64 = AtomicU64::new(0);

/// A bare CPU, as a child process.
pub struct BareCpu {
    shared: *mut Shared,
    child: libc::pid_t,
    batch: u32,
}

impl BareCpu {
    pub fn start() -> BareCpu {
        crate::machine::map();
        assert!(Features::get().xsave, "the oracle needs XSAVE");
        // Detected here, since the handler may not allocate.
        XsaveLayout::get();
        // SAFETY: a fresh shared mapping; all-zero bytes are a valid `Shared`.
        let shared = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Shared>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(shared, libc::MAP_FAILED);
        let mut cpu = BareCpu {
            shared: shared.cast(),
            child: 0,
            batch: 0,
        };
        cpu.spawn();
        cpu
    }

    fn shared(&self) -> &Shared {
        // SAFETY: mapped for as long as this value lives; shared fields are atomics, the
        // rest belongs to one side at a time.
        unsafe { &*self.shared }
    }

    fn spawn(&mut self) {
        SHARED.store(self.shared as u64, Ordering::SeqCst);
        self.shared().running.store(0, Ordering::SeqCst);
        // SAFETY: the child calls nothing but system calls and code without locks.
        self.child = unsafe { libc::fork() };
        assert!(self.child >= 0, "fork failed");
        if self.child == 0 {
            // SAFETY: in the child, whose only thread this is.
            unsafe { child_main(self.shared) }
        }
    }

    /// Runs up to [`BATCH`] cases; `None` for one that killed or hung the child.
    pub fn run(&mut self, cases: &[Case]) -> Vec<Option<Outcome>> {
        assert!(cases.len() <= BATCH);
        for (i, case) in cases.iter().enumerate() {
            // SAFETY: the child waits, so the questions are ours.
            let question = unsafe { &mut (*self.shared).questions[i] };
            question.state = case.state.clone();
            question.memory = *case.memory;
            question.len = case.bytes.len();
            question.bytes[..case.bytes.len()].copy_from_slice(&case.bytes);
        }
        let mut died = [false; BATCH];
        let mut first = 0;
        while first < cases.len() {
            match self.ask(first, cases.len()) {
                Ok(()) => break,
                Err(culprit) => {
                    died[culprit] = true;
                    first = culprit + 1;
                }
            }
        }
        (0..cases.len())
            .map(|i| {
                // SAFETY: the child waits again (or is gone).
                (!died[i]).then(|| outcome(unsafe { &(*self.shared).answers[i] }))
            })
            .collect()
    }

    /// Lets the child run cases `first..count`; the index of the one it died in otherwise.
    fn ask(&mut self, first: usize, count: usize) -> Result<(), usize> {
        self.batch += 1;
        // SAFETY: as in `shared`; not borrowed from `self`, since the child may be replaced.
        let shared = unsafe { &*self.shared };
        shared.at.store(first as u32, Ordering::SeqCst);
        shared.count.store(count as u32, Ordering::SeqCst);
        shared.asked.store(self.batch, Ordering::SeqCst);
        wake(&shared.asked);
        let mut progress = (first as u32, Instant::now());
        loop {
            let answered = shared.answered.load(Ordering::SeqCst);
            if answered == self.batch {
                return Ok(());
            }
            wait(&shared.answered, answered, Duration::from_millis(20));
            let mut status = 0;
            // SAFETY: our own child.
            let dead = unsafe { libc::waitpid(self.child, &mut status, libc::WNOHANG) } != 0;
            let at = shared.at.load(Ordering::SeqCst);
            if at != progress.0 {
                progress = (at, Instant::now());
            }
            if dead || progress.1.elapsed() > PATIENCE {
                if shared.answered.load(Ordering::SeqCst) == self.batch {
                    continue;
                }
                if !dead {
                    self.kill();
                }
                // The new child must not take up what killed the old one.
                shared.count.store(0, Ordering::SeqCst);
                self.spawn();
                return Err(at as usize);
            }
        }
    }

    fn kill(&mut self) {
        // SAFETY: our own child, not waited for yet.
        unsafe {
            libc::kill(self.child, libc::SIGKILL);
            libc::waitpid(self.child, std::ptr::null_mut(), 0);
        }
    }
}

impl Drop for BareCpu {
    fn drop(&mut self) {
        self.kill();
        // SAFETY: ours; the child is gone.
        unsafe { libc::munmap(self.shared.cast(), size_of::<Shared>()) };
    }
}

fn outcome(answer: &Answer) -> Outcome {
    let mut state = answer.state.clone();
    state.vector.materialize();
    let breakpoint = answer.signal == libc::SIGTRAP && answer.trap_number == 3;
    if breakpoint {
        // Where the INT3 is: one of the test's own, unless it is the instruction itself.
        state.cpu.rip -= 1;
    }
    let completed = breakpoint && state.cpu.rip != INSTRUCTION_AT;
    let trap = trap_from_signal(
        answer.signal,
        answer.si_code,
        answer.trap_number,
        answer.error_code,
        answer.addr,
    );
    Outcome {
        state,
        memory: Box::new(answer.memory),
        trap: (!completed).then_some(trap),
    }
}

/// Not FUTEX_PRIVATE: the word is shared between processes.
fn wait(word: &AtomicU32, seen: u32, at_most: Duration) {
    let timeout = libc::timespec {
        tv_sec: at_most.as_secs() as i64,
        tv_nsec: i64::from(at_most.subsec_nanos()),
    };
    // SAFETY: waits on a word that outlives the call.
    unsafe {
        syscall4(
            Sysno::futex as usize,
            word.as_ptr() as usize,
            libc::FUTEX_WAIT as usize,
            seen as usize,
            &raw const timeout as usize,
        );
    }
}

fn wake(word: &AtomicU32) {
    // SAFETY: as above.
    unsafe {
        syscall3(
            Sysno::futex as usize,
            word.as_ptr() as usize,
            libc::FUTEX_WAKE as usize,
            1,
        );
    }
}

/// Sets up the handler and enters it for good.
///
/// # Safety
/// Only in a forked child, with the shared mapping in place.
unsafe fn child_main(shared: *mut Shared) -> ! {
    // SAFETY: async-signal-safe calls with valid arguments.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let stack = libc::stack_t {
            ss_sp: (&raw mut (*shared).stack).cast(),
            ss_flags: 0,
            ss_size: STACK_BYTES,
        };
        libc::sigaltstack(&stack, std::ptr::null_mut());
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        for signal in [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGFPE,
            libc::SIGILL,
            libc::SIGTRAP,
        ] {
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
        std::arch::asm!("int3");
        libc::_exit(1)
    }
}

/// Records how a case ended and sets up the next. The guest's fs base may be live: nothing
/// here uses thread-local storage, hence the raw system calls.
extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // The kernel leaves the interrupted code's alignment-check flag set, and sigreturn takes
    // NT and ID not from the frame but as they are here.
    // SAFETY: clears flags that no compiled code depends on.
    unsafe {
        std::arch::asm!(
            "pushfq",
            "and qword ptr [rsp], {keep}",
            "popfq",
            keep = const !(1 << 14 | 1 << 18 | 1 << 21),
        );
    }
    let shared = SHARED.load(Ordering::Relaxed) as *mut Shared;
    // SAFETY: the mapping outlives the child; while a batch runs, all of it is the child's.
    let (shared, context) = unsafe { (&mut *shared, &mut *context) };
    if shared.running.swap(0, Ordering::SeqCst) == 1 {
        let index = shared.at.load(Ordering::SeqCst) as usize;
        let answer = &mut shared.answers[index];
        // SAFETY: the kernel's frame, and the pages that the case ran on.
        unsafe {
            read_frame(context, &mut answer.state);
            take_memory(&mut answer.memory);
            answer.signal = signal;
            answer.si_code = (*info).si_code;
            answer.addr = (*info).si_addr() as u64;
        }
        answer.trap_number = context.uc_mcontext.gregs[libc::REG_TRAPNO as usize] as u64;
        answer.error_code = context.uc_mcontext.gregs[libc::REG_ERR as usize] as u64;
        shared.at.store(index as u32 + 1, Ordering::SeqCst);
    }
    while shared.at.load(Ordering::SeqCst) >= shared.count.load(Ordering::SeqCst) {
        let asked = shared.asked.load(Ordering::SeqCst);
        shared.answered.store(asked, Ordering::SeqCst);
        wake(&shared.answered);
        while shared.asked.load(Ordering::SeqCst) == asked {
            wait(&shared.asked, asked, Duration::from_secs(1));
        }
    }
    let question = &shared.questions[shared.at.load(Ordering::SeqCst) as usize];
    // SAFETY: as above.
    unsafe {
        place(&question.bytes[..question.len], &question.memory);
        write_frame(context, &question.state);
    }
    shared.running.store(1, Ordering::SeqCst);
}

/// Signal-frame indices of the registers in encoding order.
const GREGS: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

const XSTATE_BV: usize = 512;

/// # Safety
/// `context` is a live signal frame.
unsafe fn read_frame(context: &libc::ucontext_t, state: &mut State) {
    let gregs = &context.uc_mcontext.gregs;
    for (value, &index) in state.cpu.gpr.iter_mut().zip(&GREGS) {
        *value = gregs[index as usize] as u64;
    }
    state.cpu.rip = gregs[libc::REG_RIP as usize] as u64;
    state.cpu.rflags = gregs[libc::REG_EFL as usize] as u64;
    // SAFETY: reads the bases, which the handler didn't change.
    unsafe {
        if Features::get().fsgsbase {
            std::arch::asm!("rdfsbase {}", out(reg) state.cpu.fs_base);
            std::arch::asm!("rdgsbase {}", out(reg) state.cpu.gs_base);
        }
    }
    let frame = context.uc_mcontext.fpregs as *const u8;
    let area = state.vector.area.as_mut_ptr();
    // SAFETY: the frame holds a whole XSAVE area of the enabled components.
    unsafe {
        let present: u64 = frame.add(XSTATE_BV).cast::<u64>().read_unaligned();
        std::ptr::copy_nonoverlapping(frame, area, 416);
        area.add(XSTATE_BV)
            .cast::<u64>()
            .write(present & XsaveLayout::get().vector_mask);
        if present & 1 == 0 {
            initial_x87(area);
        }
        for component in &XsaveLayout::get().components {
            std::ptr::copy_nonoverlapping(
                frame.add(component.offset),
                area.add(component.offset),
                component.bytes,
            );
        }
    }
}

/// x87 as FNINIT leaves it, with zeroed registers.
///
/// # Safety
/// `area` is an XSAVE area.
unsafe fn initial_x87(area: *mut u8) {
    // SAFETY: by contract.
    unsafe {
        std::ptr::write_bytes(area, 0, 24);
        std::ptr::write_bytes(area.add(32), 0, 128);
        area.cast::<u16>().write(0x37f);
    }
}

/// # Safety
/// `context` is a live signal frame.
unsafe fn write_frame(context: &mut libc::ucontext_t, state: &State) {
    let gregs = &mut context.uc_mcontext.gregs;
    for (value, &index) in state.cpu.gpr.iter().zip(&GREGS) {
        gregs[index as usize] = *value as i64;
    }
    gregs[libc::REG_RIP as usize] = state.cpu.rip as i64;
    gregs[libc::REG_EFL as usize] = state.cpu.rflags as i64;
    let frame = context.uc_mcontext.fpregs as *mut u8;
    let area = &state.vector.area;
    // SAFETY: as in `read_frame`; the kernel's own marks beyond byte 416 stay.
    unsafe {
        if Features::get().fsgsbase {
            std::arch::asm!("wrfsbase {}", in(reg) state.cpu.fs_base);
            std::arch::asm!("wrgsbase {}", in(reg) state.cpu.gs_base);
        }
        std::ptr::copy_nonoverlapping(area.as_ptr(), frame, 416);
        let present = frame.add(XSTATE_BV).cast::<u64>();
        present.write_unaligned(present.read_unaligned() | XsaveLayout::get().vector_mask | 1);
        for component in &XsaveLayout::get().components {
            std::ptr::copy_nonoverlapping(
                area.as_ptr().add(component.offset),
                frame.add(component.offset),
                component.bytes,
            );
        }
    }
}
