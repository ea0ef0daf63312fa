//! The engine on small guest programs, assembled below 2 GiB, against what they must come to.
//! A test binary of its own: it forks, which only a process without other tests may.

use std::ops::Range;

use iced_x86::code_asm::*;

use temper::addr::{GuestAddr, HostAddr};
use temper::engine::Code;
use temper::engine::host_signals::SignalStack;
use temper::engine::{Engine, GuestThread, Outcome, Settings, Tier, World};
use temper::guest::{
    CallsInFlight, CodeControl, EnvAction, Gpr, GuestEnv, GuestTrap, ThreadContext, Watched,
};
use temper::host::DualMap;
use temper::native::IdentityMemory;
use temper::profile::Profile;

/// Passes every call to the kernel, but ends at `exit` with RDI's low byte.
struct Bare {
    memory: IdentityMemory,
    trap: Option<(GuestTrap, u64)>,
}

impl GuestEnv for Bare {
    type Memory = IdentityMemory;
    type Thread = ();

    fn memory(&mut self) -> &mut IdentityMemory {
        &mut self.memory
    }

    fn syscall(
        &mut self,
        _: &mut (),
        ctx: &mut ThreadContext,
        _: &mut dyn CodeControl,
    ) -> EnvAction {
        let number = ctx.cpu.get(Gpr::Rax) as i64;
        if number == libc::SYS_exit {
            return EnvAction::Exit(ctx.cpu.get(Gpr::Rdi) as i32);
        }
        assert_eq!(number, libc::SYS_getpid);
        ctx.cpu.set(Gpr::Rax, u64::from(std::process::id()));
        ctx.cpu.set(Gpr::Rcx, ctx.cpu.rip);
        ctx.cpu.set(Gpr::R11, ctx.cpu.rflags);
        EnvAction::Continue
    }

    fn call_returned(
        &mut self,
        _: &mut (),
        _: &mut ThreadContext,
        _: &mut dyn CodeControl,
        _: Option<i64>,
    ) -> EnvAction {
        unreachable!("no call is asked for")
    }

    fn trap(
        &mut self,
        _: &mut (),
        ctx: &mut ThreadContext,
        trap: GuestTrap,
        _: &mut dyn CodeControl,
    ) -> EnvAction {
        self.trap = Some((trap, ctx.cpu.rip));
        EnvAction::Kill(libc::SIGSEGV)
    }

    fn deliver_pending(
        &mut self,
        _: &mut (),
        ctx: &mut ThreadContext,
        _: &mut dyn CodeControl,
    ) -> EnvAction {
        ctx.set_signal_pending(false);
        EnvAction::Continue
    }

    fn watch_code(&mut self, _: Range<GuestAddr>, _: &dyn CallsInFlight) -> Watched {
        Watched::Already
    }
}

const CODE: u64 = 0x1800_0000;

/// fib(20), then sum through a jump table, then a few system calls; exits with a checksum.
fn program() -> Result<Vec<u8>, iced_x86::IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut fib, mut small, mut again, mut table) = (
        a.create_label(),
        a.create_label(),
        a.create_label(),
        a.create_label(),
    );
    let (mut one, mut two, mut next, mut calls) = (
        a.create_label(),
        a.create_label(),
        a.create_label(),
        a.create_label(),
    );
    a.mov(edi, 20)?;
    a.call(fib)?;
    a.mov(r12, rax)?;
    a.mov(r11, 0x1234_5678_9abc_u64)?;
    a.xor(ebx, ebx)?;
    a.set_label(&mut again)?;
    a.mov(eax, ebx)?;
    a.and(eax, 1)?;
    a.lea(rcx, ptr(table))?;
    a.mov(rcx, ptr(rcx + rax * 8))?;
    a.jmp(rcx)?;
    a.set_label(&mut one)?;
    a.add(r12, 3)?;
    a.jmp(next)?;
    a.set_label(&mut two)?;
    a.add(r12, r11)?;
    a.set_label(&mut next)?;
    a.inc(ebx)?;
    a.cmp(ebx, 1000)?;
    a.jne(again)?;
    a.mov(ebx, 50)?;
    a.set_label(&mut calls)?;
    a.mov(eax, libc::SYS_getpid as i32)?;
    a.syscall()?;
    a.add(r12, rax)?;
    a.dec(ebx)?;
    a.jne(calls)?;
    a.mov(rdi, r12)?;
    a.mov(eax, libc::SYS_exit as i32)?;
    a.syscall()?;
    a.set_label(&mut fib)?;
    a.cmp(edi, 2)?;
    a.jb(small)?;
    a.push(rdi)?;
    a.dec(edi)?;
    a.call(fib)?;
    a.xchg(ptr(rsp), rax)?;
    a.lea(edi, ptr(rax - 2))?;
    a.call(fib)?;
    a.pop(rcx)?;
    a.add(rax, rcx)?;
    a.ret()?;
    a.set_label(&mut small)?;
    a.mov(eax, edi)?;
    a.ret()?;
    a.set_label(&mut table)?;
    a.dq(&[0, 0])?;
    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let result = a.assemble_options(CODE, options)?;
    let mut bytes = result.inner.code_buffer.clone();
    let at = result.label_ip(&table)? - CODE;
    for (i, label) in [&one, &two].into_iter().enumerate() {
        let target = result.label_ip(label)?.to_le_bytes();
        bytes[at as usize + 8 * i..][..8].copy_from_slice(&target);
    }
    Ok(bytes)
}

fn checksum() -> i32 {
    let pid = u64::from(std::process::id());
    let sum = 6765u64
        .wrapping_add(500 * 3)
        .wrapping_add(0x1234_5678_9abc_u64.wrapping_mul(500))
        .wrapping_add(50 * pid);
    sum as i32
}

fn run(
    settings: Settings,
    pass_getpid: bool,
) -> (
    Outcome,
    Option<(GuestTrap, u64)>,
    temper::engine::stats::Stats,
) {
    let bytes = program().expect("assembles");
    let mut map = DualMap::new(4096, Some(HostAddr(CODE))).expect("low memory");
    map.write_at(0, &bytes);
    let mut stack = vec![0u64; 1 << 16];
    let mut thread = GuestThread::new(ThreadContext::default(), ());
    let ctx = &mut thread.ctx;
    ctx.cpu.rip = CODE;
    ctx.cpu
        .set(Gpr::Rsp, stack.as_mut_ptr_range().end as u64 & !15);
    if pass_getpid {
        let mut mask = [0; 8];
        mask[0] |= 1 << libc::SYS_getpid;
        ctx.set_pass_through(mask);
    }
    let env = Bare {
        memory: IdentityMemory,
        trap: None,
    };
    let engine = Engine::new(
        settings,
        Code::<IdentityMemory>::plain_decoder(),
        Profile::new(None),
    )
    .expect("an engine");
    let world = World::new(engine, env);
    let _stack = SignalStack::new()
        .expect("a stack for signals")
        .make_current();
    let (held, outcome) = world.run(&mut thread);
    (outcome, held.env.trap, held.engine.stats.clone())
}

// One test: the engine owns fixed addresses and the process's signal handlers.
#[test]
fn a_small_program_ends_as_it_does_natively_in_every_mode() {
    let hot = Settings {
        promote_after: 0,
        cache_bytes: 1 << 20,
        ..Settings::default()
    };
    let modes = [
        ("hot", hot, false),
        ("hot, calls passed through", hot, true),
        (
            "default",
            Settings {
                cache_bytes: 1 << 20,
                ..Settings::default()
            },
            true,
        ),
        (
            "interpreter",
            Settings {
                max_tier: Tier::Interpreter,
                ..hot
            },
            false,
        ),
        (
            "flushing",
            Settings {
                flush_every: 7,
                ..hot
            },
            true,
        ),
        (
            "verify",
            Settings {
                verify: true,
                ..hot
            },
            true,
        ),
    ];
    for (name, settings, pass) in modes {
        let child = fork_and(|| {
            let (outcome, trap, stats) = run(settings, pass);
            if outcome != Outcome::Exit(checksum()) {
                eprintln!(
                    "{name}: {outcome:?} {trap:x?} {stats:?}, not {:#x}",
                    checksum()
                );
                return 1;
            }
            0
        });
        assert_eq!(child, 0, "{name}");
    }
}

/// Runs `body` in a child process and returns its status.
fn fork_and(body: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child runs only `body` and leaves by _exit; it takes no lock that another
    // test thread could hold but the allocator's, which glibc keeps consistent over fork.
    unsafe {
        match libc::fork() {
            0 => libc::_exit(
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101),
            ),
            pid => {
                let mut status = 0;
                assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
                if libc::WIFEXITED(status) {
                    libc::WEXITSTATUS(status)
                } else {
                    -libc::WTERMSIG(status)
                }
            }
        }
    }
}
