//! One virtual CPU on KVM: runs, and turns KVM's exits into calls of the bus.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP,
    KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
    kvm_guest_debug, kvm_run, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit as KvmExit, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::host;
use super::kick::KvmKick;
use super::registers::{self, failed};
use crate::guest::flags;
use crate::system::memory::GuestRam;
use crate::system::state::VcpuState;
use crate::system::vcpu::{self, Bus, Kick, Kicker, VcpuError, VcpuExit};

/// Three pages that VMX wants for itself; where no RAM and no device is.
const TSS_PAGES: usize = 0xfffb_d000;
/// KVM_INTERRUPT: `_IOW(KVMIO, 0x86, struct kvm_interrupt)`.
const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;
const APIC_BASE: u32 = 0x1b;

/// See the module documentation.
pub struct Vcpu {
    fd: VcpuFd,
    /// Keeps the VM; its slots map `ram`.
    _vm: VmFd,
    _ram: Arc<GuestRam>,
    kick: Arc<KvmKick>,
    halted: bool,
    /// The last exit's instruction has not retired: KVM completes it on the next entry.
    incomplete: bool,
    apic_base: u64,
    exits: u64,
}

/// What an exit asks `run` to do.
enum Next {
    GoOn,
    Return(VcpuExit),
}

impl Vcpu {
    /// A virtual CPU after reset.
    ///
    /// # Errors
    /// There is no /dev/kvm, it can't be opened, or it lacks something.
    pub fn new(ram: Arc<GuestRam>) -> Result<Vcpu, VcpuError> {
        let kvm = Kvm::new().map_err(|error| VcpuError::Io(error.into()))?;
        let vm = kvm
            .create_vm()
            .map_err(|error| failed("a virtual machine", error))?;
        vm.set_tss_address(TSS_PAGES)
            .map_err(|error| failed("pages for its own use", error))?;
        for (slot, region) in ram.iter().enumerate() {
            let memory = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region's mapping lives as long as `ram`, which this CPU keeps
            // until after the VM; the guest may do with it what it likes.
            unsafe { vm.set_user_memory_region(memory) }
                .map_err(|error| failed("the guest's memory", error))?;
        }
        let mut fd = vm
            .create_vcpu(0)
            .map_err(|error| failed("a virtual CPU", error))?;
        fd.set_cpuid2(&host::guest_cpuid(&kvm)?)
            .map_err(|error| failed("this CPUID", error))?;
        let immediate_exit = &raw mut fd.get_kvm_run().immediate_exit;
        let mut cpu = Vcpu {
            kick: Arc::new(KvmKick::new(immediate_exit)),
            fd,
            _vm: vm,
            _ram: ram,
            halted: false,
            incomplete: false,
            apic_base: 0,
            exits: 0,
        };
        vcpu::Vcpu::set_state(&mut cpu, &VcpuState::default())?;
        Ok(cpu)
    }

    /// How often KVM came back from the guest.
    pub fn exits(&self) -> u64 {
        self.exits
    }

    /// Stop with [`VcpuExit::Debug`] after each instruction, or before those at up to four
    /// addresses.
    ///
    /// # Errors
    /// The host's KVM can't, or there are more than four.
    pub fn set_debug(&mut self, step: bool, breakpoints: &[u64]) -> Result<(), VcpuError> {
        if breakpoints.len() > 4 {
            return Err(VcpuError::Unsupported(
                "KVM has no more than four breakpoints".into(),
            ));
        }
        let mut debug = kvm_guest_debug::default();
        if step {
            debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
        }
        if !breakpoints.is_empty() {
            debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
            debug.arch.debugreg[7] = 0x400;
            for (index, addr) in breakpoints.iter().enumerate() {
                debug.arch.debugreg[index] = *addr;
                debug.arch.debugreg[7] |= 2 << (index * 2);
            }
        }
        self.fd
            .set_guest_debug(&debug)
            .map_err(|error| failed("to debug the guest", error))
    }

    /// Hands the CPU an interrupt if one awaits and can be taken now; otherwise asks KVM to
    /// come back when it can.
    fn offer_interrupt(&mut self, bus: &mut dyn Bus) -> Result<(), VcpuError> {
        let mut waiting = bus.interrupt_pending();
        if waiting && self.fd.get_kvm_run().ready_for_interrupt_injection != 0 {
            if let Some(vector) = bus.acknowledge_interrupt() {
                self.interrupt(vector)?;
                self.fd.get_kvm_run().ready_for_interrupt_injection = 0;
            }
            waiting = bus.interrupt_pending();
        }
        self.fd.get_kvm_run().request_interrupt_window = u8::from(waiting);
        Ok(())
    }

    fn interrupt(&mut self, vector: u8) -> Result<(), VcpuError> {
        let number = u32::from(vector);
        // SAFETY: the ioctl reads the one 32-bit number of `struct kvm_interrupt`.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_INTERRUPT, &raw const number) };
        if result == 0 {
            Ok(())
        } else {
            Err(VcpuError::Io(std::io::Error::last_os_error()))
        }
    }

    /// Lets KVM finish the instruction of the last exit, and no other. A string instruction
    /// may come back with further accesses.
    fn complete(&mut self, bus: &mut dyn Bus) -> Result<Option<VcpuExit>, VcpuError> {
        while self.incomplete {
            self.fd.set_kvm_immediate_exit(1);
            let next = self.enter(bus);
            self.fd.set_kvm_immediate_exit(0);
            if let Next::Return(exit) = next? {
                return Ok(Some(exit));
            }
        }
        Ok(None)
    }

    /// A CPU in HLT: what it waits for decides.
    fn leave_halt(&mut self, bus: &mut dyn Bus) -> Result<Option<VcpuExit>, VcpuError> {
        let enabled = self
            .fd
            .get_regs()
            .map_err(|error| failed("to read registers", error))?
            .rflags
            & flags::IF
            != 0;
        let events = self
            .fd
            .get_vcpu_events()
            .map_err(|error| failed("to read pending events", error))?;
        if events.nmi.pending != 0 || events.nmi.injected != 0 {
            self.halted = false;
            return Ok(None);
        }
        if !enabled {
            return Ok(Some(VcpuExit::HaltedForever));
        }
        if !bus.interrupt_pending() {
            return Ok(Some(VcpuExit::Halted));
        }
        self.halted = false;
        // The instruction after STI is over: HLT was it.
        self.fd.get_kvm_run().ready_for_interrupt_injection = 1;
        Ok(None)
    }

    /// Enters the guest once and serves the exit.
    fn enter(&mut self, bus: &mut dyn Bus) -> Result<Next, VcpuError> {
        let before = bus.task_priority();
        let run: *mut kvm_run = self.fd.get_kvm_run();
        // SAFETY: the mapping lives as long as `fd`, and KVM writes it only within `run`.
        unsafe { (*run).cr8 = before };
        self.exits += 1;
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                self.incomplete = false;
                return Ok(Next::GoOn);
            }
            Err(error) => return Err(failed("to run the guest", error)),
        };
        self.incomplete = false;
        // SAFETY: as above; `exit` borrows the data behind the structure, not these fields.
        let (cr8, apic_base, reason) =
            unsafe { ((*run).cr8, (*run).apic_base, (*run).exit_reason) };
        if cr8 != before {
            bus.set_task_priority(cr8);
        }
        if apic_base != self.apic_base {
            self.apic_base = apic_base;
            let _ = bus.msr_write(APIC_BASE, apic_base);
        }
        // SAFETY: as above; the union's member is the one for I/O exits, whatever it holds.
        let element = unsafe { usize::from((*run).__bindgen_anon_1.io.size) };
        match exit {
            KvmExit::IoOut(port, data) => {
                for value in data.chunks_exact(element) {
                    bus.port_write(port, value);
                }
                self.incomplete = true;
                Ok(Next::GoOn)
            }
            KvmExit::IoIn(port, data) => {
                for value in data.chunks_exact_mut(element) {
                    bus.port_read(port, value);
                }
                self.incomplete = true;
                Ok(Next::GoOn)
            }
            KvmExit::MmioRead(addr, data) => {
                bus.mmio_read(addr, data);
                self.incomplete = true;
                Ok(Next::GoOn)
            }
            KvmExit::MmioWrite(addr, data) => {
                bus.mmio_write(addr, data);
                self.incomplete = true;
                Ok(Next::GoOn)
            }
            KvmExit::Hlt => {
                self.halted = true;
                Ok(Next::GoOn)
            }
            KvmExit::IrqWindowOpen | KvmExit::Intr => Ok(Next::GoOn),
            KvmExit::Shutdown => Ok(Next::Return(VcpuExit::Shutdown)),
            KvmExit::Debug(_) => Ok(Next::Return(VcpuExit::Debug)),
            // SAFETY: as above.
            KvmExit::InternalError => internal_error(unsafe { &*run }).map(Next::Return),
            KvmExit::FailEntry(hardware, cpu) => Err(VcpuError::InvalidState(format!(
                "the CPU refuses to enter the guest (reason {hardware:#x} on CPU {cpu})"
            ))),
            KvmExit::Unknown => {
                // SAFETY: as above; the member belongs to this exit reason.
                let hardware = unsafe { (*run).__bindgen_anon_1.hw.hardware_exit_reason };
                Err(VcpuError::Unsupported(format!(
                    "KVM doesn't know the hardware's exit {hardware:#x}"
                )))
            }
            // These come only from what Temper doesn't switch on, or on other architectures.
            KvmExit::Exception
            | KvmExit::Hypercall(_)
            | KvmExit::SetTpr
            | KvmExit::TprAccess
            | KvmExit::Nmi
            | KvmExit::Watchdog
            | KvmExit::SystemEvent(..)
            | KvmExit::IoapicEoi(_)
            | KvmExit::Hyperv
            | KvmExit::X86Rdmsr(_)
            | KvmExit::X86Wrmsr(_)
            | KvmExit::MemoryFault { .. }
            | KvmExit::S390Sieic
            | KvmExit::S390Reset
            | KvmExit::S390Ucontrol
            | KvmExit::S390Tsch
            | KvmExit::S390Stsi
            | KvmExit::Dcr
            | KvmExit::Osi
            | KvmExit::PaprHcall
            | KvmExit::Epr
            | KvmExit::Unsupported(_) => Err(VcpuError::Unsupported(format!(
                "KVM came back with {} (exit reason {reason}), which Temper didn't ask for",
                exit_name(reason)
            ))),
        }
    }
}

/// The names of exit reasons that aren't handled, for an error.
fn exit_name(reason: u32) -> &'static str {
    match reason {
        1 => "EXCEPTION",
        3 => "HYPERCALL",
        11 => "SET_TPR",
        12 => "TPR_ACCESS",
        16 => "NMI",
        21 => "WATCHDOG",
        24 => "SYSTEM_EVENT",
        26 => "IOAPIC_EOI",
        27 => "HYPERV",
        29 => "X86_RDMSR",
        30 => "X86_WRMSR",
        31 => "DIRTY_RING_FULL",
        32 => "AP_RESET_HOLD",
        33 => "X86_BUS_LOCK",
        34 => "XEN",
        37 => "NOTIFY",
        39 => "MEMORY_FAULT",
        _ => "an unknown exit",
    }
}

fn internal_error(run: &kvm_run) -> Result<VcpuExit, VcpuError> {
    // SAFETY: the exit reason says that the union holds this member.
    let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
    if failure.suberror != KVM_INTERNAL_ERROR_EMULATION {
        let what = match failure.suberror {
            2 => "exceptions came at once",
            3 => "an event couldn't be delivered",
            4 => "the hardware's exit was unexpected",
            _ => "of unknown kind",
        };
        return Err(VcpuError::Unsupported(format!(
            "KVM reports an internal error: {what} (suberror {})",
            failure.suberror
        )));
    }
    let has_bytes = failure.ndata >= 3
        && failure.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
    // SAFETY: plain bytes of the same member; whether they mean something is `has_bytes`.
    let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
    Ok(VcpuExit::EmulationFailure {
        bytes: instruction.insn_bytes,
        len: if has_bytes {
            instruction.insn_size.min(15)
        } else {
            0
        },
    })
}

impl vcpu::Vcpu for Vcpu {
    fn run(&mut self, bus: &mut dyn Bus) -> Result<VcpuExit, VcpuError> {
        self.kick.attach();
        loop {
            if self.kick.take() {
                let exit = self.complete(bus)?;
                return Ok(exit.unwrap_or(VcpuExit::Interrupted));
            }
            if self.halted
                && let Some(exit) = self.leave_halt(bus)?
            {
                return Ok(exit);
            }
            self.offer_interrupt(bus)?;
            if let Next::Return(exit) = self.enter(bus)? {
                return Ok(exit);
            }
        }
    }

    fn state(&mut self) -> Result<VcpuState, VcpuError> {
        let mut state = registers::get(&self.fd)?;
        state.halted = self.halted;
        Ok(state)
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), VcpuError> {
        registers::set(&self.fd, state)?;
        self.halted = state.halted;
        self.apic_base = state.apic_base;
        // What KVM said of the state before counts no more.
        let run = self.fd.get_kvm_run();
        run.ready_for_interrupt_injection = 0;
        Ok(())
    }

    fn inject_nmi(&mut self) -> Result<(), VcpuError> {
        self.fd.nmi().map_err(|error| failed("an NMI", error))
    }

    fn kicker(&self) -> Kicker {
        Arc::clone(&self.kick) as Arc<dyn Kick>
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.kick.detach();
    }
}
