//! What this host's KVM can do. Three kinds exist: KVM on VMX or SVM runs everything
//! natively; a nested KVM without them (PVM) runs only 64-bit user code natively and leaves
//! the rest to its instruction emulator, a thousand times slower and with holes; and there
//! may be none. Told apart by trying, never by name. All such differences live here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Kvm;
use vm_memory::{Bytes, GuestAddress};

use super::registers::failed;
use super::vcpu::Vcpu;
use crate::guest::Gpr;
use crate::system::boot::map;
use crate::system::state::{Segment, VcpuState};
use crate::system::vcpu::{Bus, Vcpu as _, VcpuError, VcpuExit};

/// How code of one kind runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Speed {
    /// In hardware.
    Native,
    /// By KVM's instruction emulator: slowly, and not all instructions.
    Emulated,
    /// Not at all.
    Not,
}

/// What was found out about the host's KVM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abilities {
    pub real_mode: Speed,
    /// 32-bit protected mode with paging.
    pub paged_32: Speed,
    /// 64-bit mode, ring 0.
    pub kernel_64: Speed,
    /// 64-bit mode, ring 3.
    pub user_64: Speed,
    /// SSE in ring 0.
    pub kernel_sse: Speed,
}

impl Abilities {
    /// Whether kernels run in hardware, so that KVM is the engine of choice.
    pub fn runs_kernels(&self) -> bool {
        [self.real_mode, self.kernel_64, self.kernel_sse] == [Speed::Native; 3]
    }

    /// Whether a return to ring 3 takes segments of ring 0 away, as CPUs do. KVMs that
    /// emulate ring 0 were seen to leave them; 64-bit code can't tell but by their selectors.
    pub fn nulls_segments(&self) -> bool {
        self.runs_kernels()
    }

    /// Tries all of it, in some milliseconds.
    ///
    /// # Errors
    /// There is no KVM, or no permission to use it.
    pub fn probe() -> Result<Abilities, VcpuError> {
        Ok(Abilities {
            real_mode: try_code(Mode::Real)?,
            paged_32: try_code(Mode::Paged32)?,
            kernel_64: try_code(Mode::Kernel64)?,
            user_64: try_code(Mode::User64)?,
            kernel_sse: try_code(Mode::KernelSse)?,
        })
    }
}

/// The CPUID that guests see: what KVM supports, but for what the board doesn't have and
/// what only KVM could carry on (its own paravirtual leaves).
pub fn guest_cpuid(kvm: &Kvm) -> Result<CpuId, VcpuError> {
    const X2APIC: u32 = 1 << 21;
    const TSC_DEADLINE: u32 = 1 << 24;
    const HYPERVISOR: u32 = 1 << 31;
    let mut cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(|error| failed("to say its CPUID", error))?;
    cpuid.retain(|entry| entry.function >> 8 != 0x40_0000);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => {
                entry.ecx &= !(X2APIC | TSC_DEADLINE);
                entry.ecx |= HYPERVISOR;
                // APIC 0, one logical processor.
                entry.ebx = entry.ebx & 0x0000_ffff | 1 << 16;
            }
            // No topology: one CPU, whose extended APIC identifier is 0.
            0xb | 0x1f => {
                entry.eax = 0;
                entry.ebx = 0;
                entry.ecx &= 0xff;
                entry.edx = 0;
            }
            _ => {}
        }
    }
    Ok(cpuid)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Real,
    Paged32,
    Kernel64,
    User64,
    KernelSse,
}

/// Enough to tell 3 million instructions a second from a billion, and over in 10 ms.
const ROUNDS: u32 = 15_000;
/// A native loop of that length takes 20 us; exits and a preemption come on top.
const NATIVE_AT_MOST: Duration = Duration::from_millis(2);

const TRIES: u32 = 4;

const CODE: u64 = 0x1000;
const TABLES: u64 = 0x2000;
/// Where 32-bit paging maps physical 0. Some KVMs drop CR0.PG without a word, and then
/// there is nothing here.
const PAGED_BASE: u64 = 4 << 20;

struct NoDevices;

impl Bus for NoDevices {
    fn port_read(&mut self, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&mut self, _port: u16, _data: &[u8]) {}
    fn mmio_read(&mut self, _addr: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&mut self, _addr: u64, _data: &[u8]) {}
    fn interrupt_pending(&mut self) -> bool {
        false
    }
    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        None
    }
    fn msr_read(&mut self, _index: u32) -> Option<u64> {
        None
    }
    fn msr_write(&mut self, _index: u32, _value: u64) -> Option<()> {
        None
    }
    fn set_task_priority(&mut self, _cr8: u64) {}
    fn task_priority(&mut self) -> u64 {
        0
    }
}

/// `mov $rounds,%ecx; 1: dec %ecx; jnz 1b; hlt`.
fn program(mode: Mode) -> Vec<u8> {
    let mut code = Vec::new();
    if mode == Mode::Real {
        // 16-bit code needs prefixes for 32-bit operands.
        code.push(0x66);
    }
    if mode == Mode::KernelSse {
        // pxor %xmm0,%xmm0
        code.extend([0x66, 0x0f, 0xef, 0xc0]);
    }
    code.push(0xb9);
    code.extend(ROUNDS.to_le_bytes());
    match mode {
        Mode::Real => code.extend([0x66, 0x49, 0x75, 0xfc]),
        Mode::Paged32 => code.extend([0x49, 0x75, 0xfd]),
        Mode::Kernel64 | Mode::User64 | Mode::KernelSse => code.extend([0xff, 0xc9, 0x75, 0xfc]),
    }
    // In ring 3 HLT faults, which shuts the machine down for want of an IDT.
    code.push(0xf4);
    code
}

fn initial_state(mode: Mode) -> VcpuState {
    let mut state = VcpuState::default();
    let segment = |selector, attributes| Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        attributes: attributes | Segment::G | Segment::P | Segment::S,
        unusable: false,
    };
    let (code, data) = match mode {
        Mode::Real => (
            Segment {
                attributes: 0x9b,
                ..Segment::real_mode(0)
            },
            Segment::real_mode(0),
        ),
        Mode::Paged32 => (
            segment(8, Segment::DB | 0xb),
            segment(0x10, Segment::DB | 3),
        ),
        Mode::Kernel64 | Mode::KernelSse => {
            (segment(8, Segment::L | 0xb), segment(0x10, Segment::DB | 3))
        }
        Mode::User64 => (
            segment(0x2b, Segment::L | 0x6b),
            segment(0x23, Segment::DB | 0x63),
        ),
    };
    state.segments = [data, code, data, data, data, data];
    state.rip = match mode {
        Mode::Paged32 => CODE + PAGED_BASE,
        Mode::Real | Mode::Kernel64 | Mode::User64 | Mode::KernelSse => CODE,
    };
    state.idtr.limit = 0;
    // The loop's count, which ends at 0.
    state.gpr[Gpr::Rcx as usize] = 1;
    match mode {
        Mode::Real => {}
        Mode::Paged32 => {
            state.cr0 = 0x8000_0011;
            state.cr3 = TABLES;
            // 4 MiB pages.
            state.cr4 = 0x10;
        }
        Mode::Kernel64 | Mode::User64 | Mode::KernelSse => {
            state.cr0 = 0x8000_0013;
            state.cr3 = TABLES;
            // PAE, and SSE by OSFXSR.
            state.cr4 = 0x620;
            state.efer = 0x500;
        }
    }
    state
}

fn try_code(mode: Mode) -> Result<Speed, VcpuError> {
    let ram = map::new_ram(1 << 20)?;
    let place = |addr: u64, bytes: &[u8]| {
        ram.write_slice(bytes, GuestAddress(addr))
            .map_err(|error| VcpuError::Io(std::io::Error::other(error)))
    };
    place(CODE, &program(mode))?;
    if mode == Mode::Paged32 {
        place(TABLES + 4, &0x87u32.to_le_bytes())?;
    } else {
        place(TABLES, &((TABLES + 0x1000) | 7).to_le_bytes())?;
        place(TABLES + 0x1000, &((TABLES + 0x2000) | 7).to_le_bytes())?;
        place(TABLES + 0x2000, &0x87u64.to_le_bytes())?;
    }
    let mut cpu = Vcpu::new(Arc::new(ram))?;
    let mut best = Speed::Not;
    // The first run may be slow for other reasons: the host's page faults, or a preemption.
    for _ in 0..TRIES {
        if cpu.set_state(&initial_state(mode)).is_err() {
            return Ok(Speed::Not);
        }
        let started = Instant::now();
        let exit = cpu.run(&mut NoDevices);
        let took = started.elapsed();
        let finished = cpu.state()?.gpr[Gpr::Rcx as usize] as u32 == 0;
        match exit {
            Ok(VcpuExit::Halted | VcpuExit::HaltedForever | VcpuExit::Shutdown) if finished => {}
            Ok(_) | Err(_) => return Ok(Speed::Not),
        }
        if took <= NATIVE_AT_MOST {
            return Ok(Speed::Native);
        }
        best = Speed::Emulated;
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_kvm_is_told_by_trying() {
        match Abilities::probe() {
            Ok(found) => {
                assert_ne!(found.user_64, Speed::Not, "{found:?}");
                assert!(found.real_mode != Speed::Not, "{found:?}");
            }
            Err(error) => println!("skipped: no KVM here ({error})"),
        }
    }
}
