//! Tier 1: the instruction in a translation block, run by the engine. The INT3 behind it ends
//! the case, as it does on the bare CPU.

use std::ops::Range;

use iced_x86::{FlowControl, Instruction};
use temper::addr::GuestAddr;
use temper::engine::host_signals::SignalStack;
use temper::engine::{Code, Engine, GuestThread, Settings, World};
use temper::guest::{
    CallsInFlight, CodeControl, EnvAction, GuestEnv, GuestTrap, ThreadContext, Watched,
};
use temper::native::IdentityMemory;
use temper::profile::Profile;

use crate::executors::{Executor, execute};
use crate::machine::{CODE, Case, INSTRUCTION_AT, Outcome, PAGE};

/// Surroundings that end the run at the first trap.
struct UntilTrap {
    memory: IdentityMemory,
    trap: Option<GuestTrap>,
}

impl GuestEnv for UntilTrap {
    type Memory = IdentityMemory;
    type Thread = ();

    fn memory(&mut self) -> &mut IdentityMemory {
        &mut self.memory
    }

    fn syscall(&mut self, _: &mut (), _: &mut ThreadContext, _: &mut dyn CodeControl) -> EnvAction {
        unreachable!("no case makes system calls")
    }

    fn call_returned(
        &mut self,
        _: &mut (),
        _: &mut ThreadContext,
        _: &mut dyn CodeControl,
        _: Option<i64>,
    ) -> EnvAction {
        unreachable!("no case makes system calls")
    }

    fn trap(
        &mut self,
        _: &mut (),
        ctx: &mut ThreadContext,
        trap: GuestTrap,
        _: &mut dyn CodeControl,
    ) -> EnvAction {
        self.trap = Some(trap);
        if trap == GuestTrap::Breakpoint {
            ctx.cpu.rip -= 1;
        }
        EnvAction::Exit(0)
    }

    fn deliver_pending(
        &mut self,
        _: &mut (),
        _: &mut ThreadContext,
        _: &mut dyn CodeControl,
    ) -> EnvAction {
        unreachable!("nobody sends signals")
    }

    fn watch_code(&mut self, _: Range<GuestAddr>, _: &dyn CallsInFlight) -> Watched {
        Watched::Already
    }
}

/// See the module documentation.
pub struct TranslationBlocks {
    world: World<UntilTrap>,
    thread: Box<GuestThread<UntilTrap>>,
    _stack: SignalStack,
    /// The last case ran in generated code, not in the interpreter's hands.
    translated: bool,
}

impl TranslationBlocks {
    pub fn new() -> TranslationBlocks {
        let settings = Settings {
            promote_after: 0,
            cache_bytes: 1 << 20,
            profile: false,
            ..Settings::default()
        };
        let decoder = Code::<IdentityMemory>::plain_decoder();
        let engine = Engine::new(settings, decoder, Profile::new(None)).expect("an engine");
        let env = UntilTrap {
            memory: IdentityMemory,
            trap: None,
        };
        let stack = SignalStack::new().expect("a stack for signals");
        TranslationBlocks {
            world: World::new(engine, env),
            thread: GuestThread::new(ThreadContext::default(), ()),
            _stack: stack.make_current(),
            translated: false,
        }
    }
}

impl Executor for TranslationBlocks {
    fn name(&self) -> &'static str {
        "translation blocks"
    }

    fn run(&mut self, case: &Case, bare: &Outcome) -> Option<Outcome> {
        // A target that isn't canonical faults at the target, not at the branch: nothing
        // checks targets on their way through the map.
        const GENERAL_PROTECTION: u8 = 13;
        if is_indirect_branch(&case.instruction)
            && matches!(bare.trap, Some(GuestTrap::Memory(fault)) if fault.trap_number == GENERAL_PROTECTION)
        {
            return None;
        }
        let TranslationBlocks { world, thread, .. } = self;
        let mut held = world.hold();
        let code = &mut held.engine.code;
        code.invalidate(GuestAddr(CODE)..GuestAddr(CODE + PAGE));
        let entries = held.engine.stats.blocks.entries;
        held.env.trap = None;
        drop(held);
        let outcome = execute(case, |state| {
            thread.ctx.cpu = state.cpu.clone();
            thread.ctx.vector = state.vector.clone();
            let (held, _) = world.run(thread);
            state.cpu = thread.ctx.cpu.clone();
            state.vector = thread.ctx.vector.clone();
            state.vector.materialize();
            match held.env.trap {
                Some(GuestTrap::Breakpoint) if state.cpu.rip != INSTRUCTION_AT => Ok(()),
                Some(trap) => Err(trap),
                // The engine gave up on it.
                None => Err(GuestTrap::Unsupported),
            }
        });
        self.translated = self.world.hold().engine.stats.blocks.entries > entries;
        (outcome.trap != Some(GuestTrap::Unsupported)).then_some(outcome)
    }

    fn undefined_flags_match(&self) -> bool {
        self.translated
    }
}

fn is_indirect_branch(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::IndirectBranch | FlowControl::IndirectCall | FlowControl::Return
    )
}
