//! A gdb stub for machines on either engine: registers, memory by the guest's own page
//! tables, breakpoints at linear addresses, steps, and Ctrl-C. The target is described as a
//! 64-bit CPU in every mode.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use gdbstub::common::Signal;
use gdbstub::conn::ConnectionExt;
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::stub::{DisconnectReason, GdbStub, SingleThreadStopReason};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::singlethread::{
    SingleThreadBase, SingleThreadResume, SingleThreadResumeOps, SingleThreadSingleStep,
    SingleThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, SwBreakpoint, SwBreakpointOps,
};
use gdbstub::target::{Target, TargetError, TargetResult};
use gdbstub_arch::x86::X86_64_SSE;
use gdbstub_arch::x86::reg::X86_64CoreRegs;
use vm_memory::{Bytes, GuestAddress};

use super::control::Stop;
use super::machine::{Machine, MachineError, Pause, Until};
use super::memory::GuestRam;
use super::state::VcpuState;
use crate::addr::PAGE_SIZE;

/// gdb's order of the general registers, as indices into [`VcpuState::gpr`].
const ORDER: [usize; 16] = [0, 3, 1, 2, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15];
/// The same for segments (CS, SS, DS, ES, FS, GS).
const SEGMENTS: [usize; 6] = [1, 2, 3, 0, 4, 5];
const ST: usize = 32;
const XMM: usize = 160;
const MXCSR: usize = 24;

/// A machine with a debugger attached.
struct Debugged<'a> {
    machine: &'a mut Machine,
    breakpoints: Vec<u64>,
    step: bool,
    /// How the machine ended, once it has.
    ended: Option<Pause>,
}

/// Why debugging ended.
#[derive(Debug)]
pub enum DebuggerError {
    Io(io::Error),
    Machine(MachineError),
    /// The debugger and the stub misunderstood each other.
    Protocol(String),
}

/// Waits for a gdb on `listener` and lets it run the machine. Returns how the machine ended;
/// when the debugger detaches, the machine runs on alone until then.
///
/// # Errors
/// See [`DebuggerError`].
pub fn serve(machine: &mut Machine, listener: &TcpListener) -> Result<Pause, DebuggerError> {
    let (stream, _) = listener.accept().map_err(DebuggerError::Io)?;
    stream.set_nodelay(true).map_err(DebuggerError::Io)?;
    let mut debugged = Debugged {
        machine,
        breakpoints: Vec::new(),
        step: false,
        ended: None,
    };
    let result = GdbStub::new(stream).run_blocking::<EventLoop<'_>>(&mut debugged);
    if let Some(pause) = debugged.ended {
        return Ok(pause);
    }
    match result {
        Ok(DisconnectReason::Kill) => return Ok(Pause::Stopped(Stop::Quit)),
        Ok(_) => {}
        Err(error) => return Err(DebuggerError::Protocol(error.to_string())),
    }
    machine
        .set_debug(false, &[])
        .map_err(DebuggerError::Machine)?;
    machine
        .run(Until::default())
        .map_err(DebuggerError::Machine)
}

struct EventLoop<'a>(std::marker::PhantomData<&'a ()>);

impl<'a> BlockingEventLoop for EventLoop<'a> {
    type Target = Debugged<'a>;
    type Connection = TcpStream;
    type StopReason = SingleThreadStopReason<u64>;

    fn wait_for_stop_reason(
        target: &mut Self::Target,
        conn: &mut Self::Connection,
    ) -> Result<Event<Self::StopReason>, WaitForStopReasonError<String, io::Error>> {
        let pause = target
            .run_while_quiet(conn)
            .map_err(WaitForStopReasonError::Target)?;
        let reason = match pause {
            Pause::Stopped(Stop::Debugger) => {
                let byte = conn.read().map_err(WaitForStopReasonError::Connection)?;
                return Ok(Event::IncomingData(byte));
            }
            Pause::Debug if target.step => SingleThreadStopReason::DoneStep,
            Pause::Debug => SingleThreadStopReason::HwBreak(()),
            Pause::Reached => SingleThreadStopReason::Signal(Signal::SIGTRAP),
            Pause::Ended(_) | Pause::Stopped(_) => {
                target.ended = Some(pause);
                SingleThreadStopReason::Exited(0)
            }
        };
        Ok(Event::TargetStopped(reason))
    }

    fn on_interrupt(_target: &mut Self::Target) -> Result<Option<Self::StopReason>, String> {
        Ok(Some(SingleThreadStopReason::Signal(Signal::SIGINT)))
    }
}

impl Debugged<'_> {
    /// Runs until the machine stops or the debugger says something.
    fn run_while_quiet(&mut self, conn: &mut TcpStream) -> Result<Pause, String> {
        const LOOK: Duration = Duration::from_millis(50);
        let watched = conn.try_clone().map_err(|error| error.to_string())?;
        watched
            .set_read_timeout(Some(LOOK))
            .map_err(|error| error.to_string())?;
        let over = Arc::new(AtomicBool::new(false));
        let watcher = {
            let (over, control) = (Arc::clone(&over), self.machine.control());
            thread::spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    // Also an error: reading the connection will say which.
                    let waiting = |error: &io::Error| {
                        matches!(
                            error.kind(),
                            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                        )
                    };
                    if !watched.peek(&mut [0]).is_err_and(|error| waiting(&error)) {
                        control.stop(Stop::Debugger);
                        return;
                    }
                }
            })
        };
        let result = self
            .machine
            .set_debug(self.step, &self.breakpoints)
            .and_then(|()| self.machine.run(Until::default()));
        over.store(true, Ordering::SeqCst);
        let _ = watcher.join();
        // A request to stop that came too late must not stop the next run.
        if !matches!(result, Ok(Pause::Stopped(_))) {
            self.machine.control().forget(Stop::Debugger);
        }
        conn.set_read_timeout(None)
            .map_err(|error| error.to_string())?;
        result.map_err(|error| error.to_string())
    }

    fn state(&mut self) -> Result<VcpuState, String> {
        self.machine.state().map_err(|error| error.to_string())
    }
}

impl Target for Debugged<'_> {
    type Arch = X86_64_SSE;
    type Error = String;

    fn base_ops(&mut self) -> BaseOps<'_, Self::Arch, Self::Error> {
        BaseOps::SingleThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl SingleThreadBase for Debugged<'_> {
    fn read_registers(&mut self, regs: &mut X86_64CoreRegs) -> TargetResult<(), Self> {
        let state = self.state().map_err(TargetError::Fatal)?;
        for (value, &index) in regs.regs.iter_mut().zip(&ORDER) {
            *value = state.gpr[index];
        }
        regs.rip = state.rip;
        regs.eflags = state.rflags as u32;
        let selector = SEGMENTS.map(|index| u32::from(state.segments[index].selector));
        regs.segments.cs = selector[0];
        regs.segments.ss = selector[1];
        regs.segments.ds = selector[2];
        regs.segments.es = selector[3];
        regs.segments.fs = selector[4];
        regs.segments.gs = selector[5];
        let area = &state.xsave.0;
        for (index, st) in regs.st.iter_mut().enumerate() {
            st.copy_from_slice(&area[ST + index * 16..][..10]);
        }
        regs.fpu.fctrl = word(area, 0) & 0xffff;
        regs.fpu.fstat = word(area, 2) & 0xffff;
        for (index, xmm) in regs.xmm.iter_mut().enumerate() {
            let bytes = area[XMM + index * 16..][..16].try_into();
            *xmm = u128::from_le_bytes(bytes.expect("16 bytes"));
        }
        regs.mxcsr = word(area, MXCSR);
        Ok(())
    }

    /// General registers, flags and vectors; segments can't be set by selectors alone.
    fn write_registers(&mut self, regs: &X86_64CoreRegs) -> TargetResult<(), Self> {
        let mut state = self.state().map_err(TargetError::Fatal)?;
        for (value, &index) in regs.regs.iter().zip(&ORDER) {
            state.gpr[index] = *value;
        }
        state.rip = regs.rip;
        state.rflags = state.rflags & !0xffff_ffff | u64::from(regs.eflags);
        for (index, xmm) in regs.xmm.iter().enumerate() {
            state.xsave.0[XMM + index * 16..][..16].copy_from_slice(&xmm.to_le_bytes());
        }
        state.xsave.0[MXCSR..][..4].copy_from_slice(&regs.mxcsr.to_le_bytes());
        self.machine
            .set_state(&state)
            .map_err(|error| TargetError::Fatal(error.to_string()))
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8]) -> TargetResult<usize, Self> {
        let state = self.state().map_err(TargetError::Fatal)?;
        let ram = self.machine.ram();
        let mut done = 0;
        while done < data.len() {
            let linear = start.wrapping_add(done as u64);
            let len = left_in_page(linear).min(data.len() - done);
            let part = &mut data[done..done + len];
            let read = physical(ram, &state, linear)
                .and_then(|at| ram.read_slice(part, GuestAddress(at)).ok());
            if read.is_none() {
                break;
            }
            done += len;
        }
        if done == 0 && !data.is_empty() {
            return Err(TargetError::NonFatal);
        }
        Ok(done)
    }

    fn write_addrs(&mut self, start: u64, data: &[u8]) -> TargetResult<(), Self> {
        let state = self.state().map_err(TargetError::Fatal)?;
        let ram = self.machine.ram();
        let mut done = 0;
        while done < data.len() {
            let linear = start.wrapping_add(done as u64);
            let len = left_in_page(linear).min(data.len() - done);
            physical(ram, &state, linear)
                .and_then(|at| {
                    ram.write_slice(&data[done..done + len], GuestAddress(at))
                        .ok()
                })
                .ok_or(TargetError::NonFatal)?;
            done += len;
        }
        Ok(())
    }

    fn support_resume(&mut self) -> Option<SingleThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

impl SingleThreadResume for Debugged<'_> {
    fn resume(&mut self, _signal: Option<Signal>) -> Result<(), Self::Error> {
        self.step = false;
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<SingleThreadSingleStepOps<'_, Self>> {
        Some(self)
    }
}

impl SingleThreadSingleStep for Debugged<'_> {
    fn step(&mut self, _signal: Option<Signal>) -> Result<(), Self::Error> {
        self.step = true;
        Ok(())
    }
}

impl Breakpoints for Debugged<'_> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }
}

impl Debugged<'_> {
    /// Whether the engine takes one more.
    fn add(&mut self, addr: u64) -> bool {
        self.breakpoints.push(addr);
        let taken = self.machine.set_debug(false, &self.breakpoints).is_ok();
        if !taken {
            self.breakpoints.pop();
        }
        taken
    }

    fn remove(&mut self, addr: u64) -> bool {
        let before = self.breakpoints.len();
        self.breakpoints.retain(|at| *at != addr);
        before != self.breakpoints.len()
    }
}

impl SwBreakpoint for Debugged<'_> {
    fn add_sw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.add(addr))
    }

    fn remove_sw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.remove(addr))
    }
}

impl HwBreakpoint for Debugged<'_> {
    fn add_hw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.add(addr))
    }

    fn remove_hw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.remove(addr))
    }
}

fn left_in_page(addr: u64) -> usize {
    (PAGE_SIZE - addr % PAGE_SIZE) as usize
}

/// The physical address behind a linear one, by the guest's page tables, which stay as they
/// are (Intel SDM volume 3, chapter 4).
pub fn physical(ram: &GuestRam, state: &VcpuState, linear: u64) -> Option<u64> {
    const PAGING: u64 = 1 << 31;
    const LARGE: u64 = 1 << 7;
    const FRAME: u64 = 0x000f_ffff_ffff_f000;
    const PAE: u64 = 1 << 5;
    const LONG_ACTIVE: u64 = 1 << 10;
    if state.cr0 & PAGING == 0 {
        return Some(linear & 0xffff_ffff);
    }
    let wide = state.cr4 & PAE != 0;
    // Levels, bits of index at each, bytes of an entry.
    let (levels, bits, size) = match (wide, state.efer & LONG_ACTIVE != 0) {
        (true, true) => (4, 9, 8),
        (true, false) => (3, 9, 8),
        (false, _) => (2, 10, 4),
    };
    let mut table = if levels == 3 {
        state.cr3 & 0xffff_ffe0
    } else {
        state.cr3 & FRAME
    };
    for level in (0..levels).rev() {
        let shift = 12 + bits * level;
        let index = (linear >> shift) & ((1 << bits) - 1);
        let mut bytes = [0; 8];
        let at = GuestAddress(table + index * size);
        ram.read_slice(&mut bytes[..size as usize], at).ok()?;
        let entry = u64::from_le_bytes(bytes);
        if entry & 1 == 0 {
            return None;
        }
        let is_leaf =
            level == 0 || (entry & LARGE != 0 && (level == 1 || level == 2 && levels == 4));
        if is_leaf {
            let offset = (1u64 << shift) - 1;
            return Some(entry & FRAME & !offset | linear & offset);
        }
        table = entry & FRAME;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::boot::map;

    fn ram_with(entries: &[(u64, u64)]) -> GuestRam {
        let ram = map::new_ram(1 << 20).expect("memory");
        for &(at, value) in entries {
            ram.write_slice(&value.to_le_bytes(), GuestAddress(at))
                .expect("in memory");
        }
        ram
    }

    #[test]
    fn addresses_go_through_the_guests_own_tables() {
        let ram = ram_with(&[(0x1000, 0x2003), (0x2000, 0x3003), (0x3008, 0x20_0083)]);
        let mut state = VcpuState {
            cr0: 0x8000_0011,
            cr3: 0x1000,
            cr4: 0x20,
            efer: 0x500,
            ..VcpuState::default()
        };
        assert_eq!(physical(&ram, &state, 0x20_1234), Some(0x20_1234));
        assert_eq!(physical(&ram, &state, 0x1234), None);
        state.cr0 = 0x11;
        assert_eq!(physical(&ram, &state, 0x1234), Some(0x1234));
    }
}
