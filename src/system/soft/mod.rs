//! The software engine: a virtual CPU without any help of the host's virtualization. The
//! interpreter runs blocks over guest memory behind an MMU ([`mmu`], [`walk`], [`tlb`]);
//! what concerns the system's state ends a block and is executed here ([`instructions`] and
//! what it calls). [`run`] is the loop, [`exceptions`] the way into handlers, [`blocks`] what
//! is known of the guest's code.
//!
//! Left out, and refused in words: hardware task switches, virtual-8086 mode, SMM, code in
//! device memory.

mod accesses;
mod blocks;
mod code_pages;
mod control;
mod cpuid;
mod exceptions;
mod fast_calls;
mod host_access;
mod instructions;
mod mmu;
mod operands;
mod physical;
mod ports;
mod registers;
mod run;
mod segments;
#[cfg(test)]
mod tests;
mod tlb;
mod transfers;
mod units;
mod walk;

use std::arch::x86_64::_rdtsc;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::memory::GuestRam;
use super::state::{PendingEvent, SegmentRegister, VcpuState, XsaveArea};
use super::vcpu::{Bus, Kick, Kicker, VcpuError, VcpuExit};
use crate::decode::{Block, Units};
use crate::engine::host_signals;
use crate::guest::{CpuMode, CpuState, VectorState};
use crate::host::{Features, XsaveLayout};
use crate::interp::PredecodedBlock;
use crate::native::StubCache;
use crate::profile::Profile;
use blocks::{Blocks, Mode};
use exceptions::{Event, Source};
use mmu::Mmu;
use units::X87;

/// Why the loop must look up between two blocks.
#[derive(Default)]
struct Attention(AtomicU32);

impl Attention {
    /// Somebody wants `run` to return.
    const KICK: u32 = 1;
    /// Interrupts may be possible that weren't before.
    const LOOK: u32 = 2;

    #[inline]
    fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    fn raise(&self, bit: u32) {
        self.0.fetch_or(bit, Ordering::SeqCst);
    }

    fn take(&self) -> u32 {
        self.0.swap(0, Ordering::SeqCst)
    }
}

impl Kick for Attention {
    fn kick(&self) {
        self.raise(Attention::KICK);
    }
}

/// What the engine did.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Blocks executed.
    pub blocks: u64,
    /// Blocks decoded, and forgotten because their code changed.
    pub decoded: u64,
    pub forgotten: u64,
    /// By vector, interrupts included.
    pub exceptions: [u64; 256],
    pub interrupts: u64,
}

impl Default for Stats {
    fn default() -> Self {
        Stats {
            blocks: 0,
            decoded: 0,
            forgotten: 0,
            exceptions: [0; 256],
            interrupts: 0,
        }
    }
}

/// What the machine wants to be told of, for a debugger.
#[derive(Default)]
struct Debug {
    step: bool,
    breakpoints: Vec<u64>,
    /// The breakpoint at the first instruction was reported already.
    resuming: bool,
}

/// A virtual CPU. Stays on the thread that made it.
pub struct Vcpu {
    cpu: CpuState,
    vector: VectorState,
    x87: X87,
    mmu: Mmu,
    stubs: StubCache,
    blocks: Blocks,
    mode: Mode,
    /// Memory for decoding.
    scratch: Block,
    single: PredecodedBlock<Mmu>,
    attention: Arc<Attention>,
    /// Single steps, breakpoints or alignment checks: one instruction at a time.
    careful: bool,
    debug: Debug,
    shadow: bool,
    halted: bool,
    nmi_pending: bool,
    nmi_blocked: bool,
    pending: Option<PendingEvent>,
    /// The guest's time-stamp counter less [`Vcpu::clock`].
    tsc_offset: u64,
    stop_at: u64,
    /// Blocks may be run while `executed` is below this.
    near_stop: u64,
    /// When to look for interrupts, whether or not anybody called.
    poll_at: u64,
    /// The smaller of both.
    pause_at: u64,
    /// What the time-stamp counter is ahead of the instructions executed, when it counts
    /// those instead of the host's time.
    counted_time: Option<u64>,
    stats: Stats,
    profile: Option<Box<Profile>>,
}

impl Vcpu {
    /// A CPU after reset.
    ///
    /// # Errors
    /// The kernel's: executable memory or signal handlers can't be had; or the host's CPU has
    /// no XSAVE.
    pub fn new(ram: Arc<GuestRam>) -> io::Result<Vcpu> {
        if !Features::get().xsave {
            return Err(io::Error::other(
                "the software engine needs a CPU with XSAVE",
            ));
        }
        host_signals::install_synchronous()?;
        let attention = Arc::<Attention>::default();
        let mut vcpu = Vcpu {
            cpu: CpuState::default(),
            vector: VectorState::default(),
            x87: X87::default(),
            mmu: Mmu::new(ram, Arc::clone(&attention)),
            stubs: StubCache::new()?,
            blocks: Blocks::new(),
            mode: Mode {
                code: CpuMode::Bits16,
                stack: CpuMode::Bits16,
                units: Units::ALL,
                user: false,
            },
            scratch: Block::default(),
            single: PredecodedBlock::default(),
            attention,
            careful: false,
            debug: Debug::default(),
            shadow: false,
            halted: false,
            nmi_pending: false,
            nmi_blocked: false,
            pending: None,
            tsc_offset: 0,
            stop_at: u64::MAX,
            near_stop: u64::MAX,
            poll_at: 0,
            pause_at: 0,
            counted_time: None,
            stats: Stats::default(),
            profile: None,
        };
        vcpu.restore(&VcpuState::default());
        Ok(vcpu)
    }

    /// Makes `run` return [`VcpuExit::LimitReached`] after `instructions` more; `None` is never.
    pub fn set_limit(&mut self, instructions: Option<u64>) {
        const BLOCK: u64 = crate::decode::MAX_BLOCK_INSTRUCTIONS as u64 + 1;
        self.stop_at = match instructions {
            Some(instructions) => self.mmu.physical.executed.saturating_add(instructions),
            None => u64::MAX,
        };
        self.near_stop = self.stop_at.saturating_sub(BLOCK);
        self.pause_at = self.near_stop.min(self.poll_at);
    }

    /// The guest's time-stamp counter follows a clock of nanoseconds that stands at `now`
    /// and counts one for each instruction: for machines whose timers do the same.
    pub fn set_clock(&mut self, now: u64) {
        let ahead = Some(now.wrapping_sub(self.mmu.physical.executed));
        if self.counted_time.is_some() {
            self.counted_time = ahead;
        } else {
            let tsc = self.tsc();
            self.counted_time = ahead;
            self.set_tsc(tsc);
        }
    }

    /// Makes `run` return [`VcpuExit::Debug`] after each instruction, or before those whose
    /// linear addresses are in `breakpoints` (not at the one where it starts).
    pub fn set_debug(&mut self, step: bool, breakpoints: &[u64]) {
        self.debug = Debug {
            step,
            breakpoints: breakpoints.to_vec(),
            resuming: false,
        };
        self.follow_mode();
    }

    /// Counts blocks, edges and paths in `profile` from now on. Its addresses are physical:
    /// what lies there is told by [`Profile::map_module`] with ranges of physical memory.
    pub fn set_profile(&mut self, profile: Profile) {
        self.forget_all_blocks();
        self.profile = Some(Box::new(profile));
    }

    pub fn profile(&mut self) -> Option<&mut Profile> {
        self.profile.as_deref_mut()
    }

    /// Instructions executed so far.
    pub fn executed(&self) -> u64 {
        self.mmu.physical.executed
    }

    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The guest's time-stamp counter.
    fn tsc(&self) -> u64 {
        self.clock().wrapping_add(self.tsc_offset)
    }

    /// What the time-stamp counter follows.
    fn clock(&self) -> u64 {
        if let Some(ahead) = self.counted_time {
            return self.mmu.physical.executed.wrapping_add(ahead);
        }
        // SAFETY: RDTSC is allowed in ring 3 under Linux.
        unsafe { _rdtsc() }
    }

    fn set_tsc(&mut self, value: u64) {
        self.tsc_offset = value.wrapping_sub(self.clock());
    }

    fn restore(&mut self, state: &VcpuState) {
        let sys = &mut self.mmu.sys;
        *sys = state.clone();
        self.cpu = CpuState {
            gpr: state.gpr,
            rip: state.rip,
            rflags: state.rflags,
            fs_base: state.segment(SegmentRegister::Fs).base,
            gs_base: state.segment(SegmentRegister::Gs).base,
        };
        self.mmu.cpl = if self.mmu.is_protected() {
            state.segment(SegmentRegister::Ss).dpl()
        } else {
            0
        };
        self.set_tsc(state.tsc);
        self.shadow = state.interrupt_shadow;
        self.halted = state.halted;
        self.nmi_pending = state.nmi_pending;
        self.nmi_blocked = state.nmi_blocked;
        self.pending = state.pending;
        self.restore_units(&state.xsave);
        self.mmu.flush();
        // A state with broken PDPTEs faults at its first access.
        let _ = self.mmu.load_pdptes(state.cr3);
        self.mmu.select_breakpoints();
        self.forget_all_blocks();
        self.follow_mode();
        self.look();
    }

    fn restore_units(&mut self, image: &XsaveArea) {
        let present = u64::from_le_bytes(image.0[512..520].try_into().expect("8 bytes"));
        self.x87 = X87::default();
        if present & 1 != 0 {
            self.x87.area[..24].copy_from_slice(&image.0[..24]);
            self.x87.area[32..160].copy_from_slice(&image.0[32..160]);
        }
        self.vector = VectorState::default();
        let area = &mut self.vector.area;
        // Reserved bits would fault in the host's own LDMXCSR.
        area[24..26].copy_from_slice(&image.0[24..26]);
        if present & 2 != 0 {
            area[160..416].copy_from_slice(&image.0[160..416]);
        }
        for component in &XsaveLayout::get().components {
            let range = component.offset..component.offset + component.bytes;
            if present & component.bit != 0 && range.end <= image.0.len() {
                area[range.clone()].copy_from_slice(&image.0[range]);
            }
        }
    }

    fn save_units(&mut self) -> Box<XsaveArea> {
        self.vector.materialize();
        let mut image = Box::<XsaveArea>::default();
        image.0[..24].copy_from_slice(&self.x87.area[..24]);
        image.0[32..160].copy_from_slice(&self.x87.area[32..160]);
        let area = &self.vector.area;
        image.0[24..32].copy_from_slice(&area[24..32]);
        image.0[160..416].copy_from_slice(&area[160..416]);
        let mut present = 3u64;
        let enabled = cpuid::supported_xcr0();
        for component in &XsaveLayout::get().components {
            let range = component.offset..component.offset + component.bytes;
            if enabled & component.bit != 0 {
                present |= component.bit;
                image.0[range.clone()].copy_from_slice(&area[range]);
            }
        }
        image.0[512..520].copy_from_slice(&present.to_le_bytes());
        image
    }

    /// Delivers what was underway when the state was taken.
    fn finish_pending(&mut self) -> Result<Option<VcpuExit>, VcpuError> {
        let Some(pending) = self.pending.take() else {
            return Ok(None);
        };
        let (vector, code, source) = match pending {
            PendingEvent::Interrupt(vector) => (vector, None, Source::Hardware),
            PendingEvent::Exception { vector, error_code } => {
                (vector, error_code, Source::Exception)
            }
        };
        self.enter_handler(Event {
            vector,
            code,
            source,
            return_to: self.cpu.rip,
        })
    }
}

impl super::vcpu::Vcpu for Vcpu {
    fn run(&mut self, bus: &mut dyn Bus) -> Result<VcpuExit, VcpuError> {
        // SAFETY: detached below, before `bus` is anybody's again.
        unsafe { self.mmu.physical.attach(bus) };
        self.x87.load();
        self.debug.resuming = true;
        self.mmu.physical.begin_counting();
        if !self.kicked() {
            self.look();
        }
        let result = match self.finish_pending() {
            Ok(None) => self.run_loop(),
            other => other.map(|exit| exit.unwrap_or(VcpuExit::Interrupted)),
        };
        self.x87.store();
        self.mmu.physical.report();
        self.mmu.physical.detach();
        result
    }

    fn state(&mut self) -> Result<VcpuState, VcpuError> {
        let mut state = self.mmu.sys.clone();
        state.gpr = self.cpu.gpr;
        state.rip = self.cpu.rip;
        state.rflags = self.cpu.rflags;
        state.tsc = self.tsc();
        state.xsave = self.save_units();
        state.interrupt_shadow = self.shadow;
        state.halted = self.halted;
        state.nmi_pending = self.nmi_pending;
        state.nmi_blocked = self.nmi_blocked;
        state.pending = self.pending;
        Ok(state)
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), VcpuError> {
        self.restore(state);
        Ok(())
    }

    fn inject_nmi(&mut self) -> Result<(), VcpuError> {
        self.nmi_pending = true;
        self.look();
        Ok(())
    }

    fn kicker(&self) -> Kicker {
        Arc::clone(&self.attention) as Kicker
    }
}
