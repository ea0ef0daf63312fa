//! The board: a PC's devices wired up around one CPU. Upstream: an engine, which reaches it
//! as its [`Bus`]. Keeps the devices' time, routes interrupt lines through the 8259s and the
//! I/O APIC, and notes when the guest has ended the machine.

use serde::{Deserialize, Serialize};

use super::clock::{Clock, TimeBase};
use super::devices::cmos::Cmos;
use super::devices::ioapic::{self, IoApic};
use super::devices::lapic::{self, Delivery, Lapic, Message, Request};
use super::devices::pic::PicPair;
use super::devices::pit::Pit;
use super::devices::power::{self, Power};
use super::devices::serial::{Output, Serial, SerialSnapshot};
use super::devices::{Ending, Nanos};
use super::vcpu::{Bus, Kicker};

const TIMER_LINE: u8 = 0;
const SERIAL_LINE: u8 = 4;
/// The I/O APIC's pin for the timer: line 2 is the cascade, which it doesn't have (the
/// override in the MADT says so).
const TIMER_PIN: u8 = 2;

/// First port of COM1.
const SERIAL: u16 = 0x3f8;
/// A byte written here ends the machine, as QEMU's isa-debug-exit does.
const DEBUG_EXIT: u16 = 0xf4;

const APIC_BASE_MSR: u32 = 0x1b;
/// APIC base: the first CPU, and the local APIC is on.
const APIC_BASE_RESET: u64 = lapic::BASE | 0x900;
const APIC_ON: u64 = 1 << 11;

/// What the board says on standard error while it runs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Trace {
    /// Each device access.
    pub exits: bool,
    /// Each interrupt that the CPU takes.
    pub interrupts: bool,
}

/// How often devices were used.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Counts {
    pub port_accesses: u64,
    pub memory_accesses: u64,
    pub interrupts: u64,
}

impl Counts {
    /// Ports and memory together.
    pub fn accesses(&self) -> u64 {
        self.port_accesses + self.memory_accesses
    }
}

/// All devices that are plain data.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Devices {
    pics: PicPair,
    pit: Pit,
    lapic: Lapic,
    apic_base: u64,
    ioapic: IoApic,
    cmos: Cmos,
    power: Power,
    /// Port 0xcf9.
    reset_control: u8,
}

/// The board's state, for a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BoardSnapshot {
    devices: Devices,
    serial: SerialSnapshot,
    now: Nanos,
    counts: Counts,
}

/// See the module documentation.
pub struct Board {
    devices: Devices,
    serial: Serial,
    clock: Clock,
    counts: Counts,
    ending: Option<Ending>,
    trace: Trace,
    /// Makes the CPU's `run` return: something happened that the machine must see.
    kicker: Option<Kicker>,
    /// Stop at this count of accesses.
    stop_at_access: Option<u64>,
    /// The deadline that somebody watches.
    armed: Option<Nanos>,
}

impl Board {
    /// A board that was just switched on. `epoch`: its date, in seconds since 1970.
    pub fn new(memory: u64, epoch: i64, base: TimeBase, output: Output, trace: Trace) -> Board {
        Board {
            devices: Devices {
                pics: PicPair::default(),
                pit: Pit::default(),
                lapic: Lapic::new(0),
                apic_base: APIC_BASE_RESET,
                ioapic: IoApic::default(),
                cmos: Cmos::new(epoch, memory),
                power: Power::default(),
                reset_control: 0,
            },
            serial: Serial::new(output),
            clock: Clock::new(base, 0),
            counts: Counts::default(),
            ending: None,
            trace,
            kicker: None,
            stop_at_access: None,
            armed: None,
        }
    }

    pub fn snapshot(&self) -> BoardSnapshot {
        BoardSnapshot {
            devices: self.devices.clone(),
            serial: self.serial.snapshot(),
            now: self.clock.now(),
            counts: self.counts,
        }
    }

    /// # Errors
    /// The state is one that no board can be in, in words.
    pub fn restore(
        snapshot: &BoardSnapshot,
        base: TimeBase,
        output: Output,
        trace: Trace,
    ) -> Result<Board, String> {
        Ok(Board {
            devices: snapshot.devices.clone(),
            serial: Serial::restore(&snapshot.serial, output)?,
            clock: Clock::new(base, snapshot.now),
            counts: snapshot.counts,
            ending: None,
            trace,
            kicker: None,
            stop_at_access: None,
            armed: None,
        })
    }

    pub fn set_kicker(&mut self, kicker: Kicker) {
        self.kicker = Some(kicker);
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    pub fn clock_mut(&mut self) -> &mut Clock {
        &mut self.clock
    }

    /// IA32_APIC_BASE.
    pub fn apic_base(&self) -> u64 {
        self.devices.apic_base
    }

    /// How the guest ended the machine, if it did.
    pub fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// Kick the CPU after the access that makes [`Counts::accesses`] reach this.
    pub fn set_stop_at_access(&mut self, at: Option<u64>) {
        self.stop_at_access = at;
    }

    pub fn stop_is_reached(&self) -> bool {
        self.stop_at_access
            .is_some_and(|at| self.counts.accesses() >= at)
    }

    /// Bytes typed on the serial line.
    pub fn type_in(&mut self, bytes: &[u8]) {
        self.serial.type_in(bytes);
        self.serial_line();
    }

    /// When a timer next wants attention.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let timers = [
            self.devices.pit.next_interrupt(),
            self.devices.lapic.next_interrupt(),
        ];
        timers.into_iter().flatten().min()
    }

    /// When a timer next wants attention. From now on the CPU is kicked when the guest sets
    /// one that comes earlier.
    pub fn arm(&mut self) -> Option<Nanos> {
        self.armed = self.next_deadline();
        self.armed
    }

    /// Lets timers run out whose time has come.
    pub fn advance(&mut self) {
        let now = self.clock.now();
        if self.devices.pit.take_interrupt(now) {
            self.pulse(TIMER_LINE);
        }
        self.devices.lapic.advance(now);
    }

    /// An NMI message that the CPU is to be given.
    pub fn take_nmi(&mut self) -> bool {
        self.devices.lapic.take_nmi()
    }

    /// A rising edge on an edge-triggered line.
    fn pulse(&mut self, line: u8) {
        self.set_line(line, true);
        self.set_line(line, false);
    }

    fn set_line(&mut self, line: u8, high: bool) {
        self.devices.pics.set_line(line, high);
        let pin = if line == TIMER_LINE { TIMER_PIN } else { line };
        if let Some(message) = self.devices.ioapic.set_line(pin, high) {
            self.send(message, None);
        }
    }

    fn serial_line(&mut self) {
        if self.serial.take_interrupt() {
            self.pulse(SERIAL_LINE);
        }
    }

    fn send(&mut self, message: Message, sender: Option<u8>) {
        if message.delivery == Delivery::External {
            // An I/O APIC pin in ExtINT mode stands for the 8259s' output, which reaches
            // the CPU through LINT0 already.
            return;
        }
        if self.devices.lapic.is_addressed(message.destination, sender) {
            self.devices.lapic.deliver(message);
        }
    }

    fn apic_is_on(&self) -> bool {
        self.devices.apic_base & APIC_ON != 0
    }

    /// Without a local APIC the 8259s' output is the CPU's interrupt pin.
    fn external_pending(&self) -> bool {
        (!self.apic_is_on() || self.devices.lapic.accepts_external())
            && self.devices.pics.wants_service()
    }

    fn end(&mut self, ending: Option<Ending>) {
        if ending.is_some() && self.ending.is_none() {
            self.ending = ending;
            self.kick();
        }
    }

    fn kick(&self) {
        if let Some(kicker) = &self.kicker {
            kicker.kick();
        }
    }

    fn count_access(&mut self) {
        self.clock.access();
        let earlier = match (self.next_deadline(), self.armed) {
            (Some(deadline), Some(armed)) => deadline < armed,
            (deadline, None) => deadline.is_some(),
            (None, Some(_)) => false,
        };
        if earlier || self.stop_is_reached() {
            self.armed = self.next_deadline();
            self.kick();
        }
    }

    fn read_port(&mut self, port: u16, width: usize) -> u32 {
        let now = self.clock.now();
        let devices = &mut self.devices;
        let byte = match port {
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => devices.pics.read(port),
            0x40..=0x43 | 0x61 => devices.pit.read(port, now),
            0x60 | 0x64 => devices.power.read_keyboard(port),
            0x70 | 0x71 => devices.cmos.read(port, now),
            0x92 => devices.power.read_92(),
            0xcf9 if width == 1 => devices.reset_control,
            SERIAL..=0x3ff => self.serial.read((port - SERIAL) as u8),
            power::EVENTS..=0x60b => return devices.power.read(port, now),
            _ => return u32::MAX,
        };
        // The upper bytes of a wide access go to ports without a device.
        u32::from(byte) | 0xffff_ff00
    }

    fn write_port(&mut self, port: u16, value: u32) {
        let (byte, now) = (value as u8, self.clock.now());
        let devices = &mut self.devices;
        let ending = match port {
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => {
                devices.pics.write(port, byte);
                None
            }
            0x40..=0x43 | 0x61 => {
                devices.pit.write(port, byte, now);
                None
            }
            0x60 | 0x64 => devices.power.write_keyboard(port, byte),
            0x70 | 0x71 => {
                devices.cmos.write(port, byte);
                None
            }
            0x92 => devices.power.write_92(byte),
            DEBUG_EXIT => Some(Ending::DebugExit(byte)),
            0xcf9 => {
                devices.reset_control = byte & 0x0e;
                (byte & 4 != 0).then_some(Ending::Reset)
            }
            SERIAL..=0x3ff => {
                self.serial.write((port - SERIAL) as u8, byte);
                None
            }
            power::EVENTS..=0x60b => devices.power.write(port, value),
            _ => None,
        };
        self.end(ending);
    }

    fn read_memory(&mut self, addr: u64) -> Option<u32> {
        let now = self.clock.now();
        match addr & !0xfff {
            lapic::BASE if self.apic_is_on() => {
                Some(self.devices.lapic.read(addr as u32 & 0xff0, now))
            }
            ioapic::BASE => Some(self.devices.ioapic.read(addr as u32 & 0xff)),
            _ => None,
        }
    }

    fn write_memory(&mut self, addr: u64, value: u32) {
        let now = self.clock.now();
        match addr & !0xfff {
            lapic::BASE if self.apic_is_on() => {
                match self.devices.lapic.write(addr as u32 & 0xff0, value, now) {
                    Some(Request::Send(message)) => {
                        let sender = self.devices.lapic.id();
                        self.send(message, Some(sender));
                    }
                    Some(Request::End(vector)) => {
                        for message in self.devices.ioapic.end(vector) {
                            self.send(message, None);
                        }
                    }
                    None => {}
                }
            }
            ioapic::BASE => {
                if let Some(message) = self.devices.ioapic.write(addr as u32 & 0xff, value) {
                    self.send(message, None);
                }
            }
            _ => {}
        }
    }
}

fn number(data: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes[..data.len()].copy_from_slice(data);
    u64::from_le_bytes(bytes)
}

impl Bus for Board {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        self.counts.port_accesses += 1;
        let value = self.read_port(port, data.len());
        data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
        self.serial_line();
        if self.trace.exits {
            eprintln!("port {port:#05x} read{} {:#x}", data.len(), number(data));
        }
        self.count_access();
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        self.counts.port_accesses += 1;
        if self.trace.exits {
            eprintln!("port {port:#05x} write{} {:#x}", data.len(), number(data));
        }
        self.write_port(port, number(data) as u32);
        self.serial_line();
        self.count_access();
    }

    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) {
        self.counts.memory_accesses += 1;
        // Memory without a device reads as all ones; the APICs' registers are 32 bits wide.
        let value = self.read_memory(addr).map_or(u64::MAX, u64::from);
        data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
        if self.trace.exits {
            eprintln!("memory {addr:#x} read{} {:#x}", data.len(), number(data));
        }
        self.count_access();
    }

    fn mmio_write(&mut self, addr: u64, data: &[u8]) {
        self.counts.memory_accesses += 1;
        if self.trace.exits {
            eprintln!("memory {addr:#x} write{} {:#x}", data.len(), number(data));
        }
        self.write_memory(addr, number(data) as u32);
        self.count_access();
    }

    fn instructions_ran(&mut self, count: u64) {
        self.clock.instructions(count);
    }

    fn interrupt_pending(&mut self) -> bool {
        self.advance();
        self.external_pending() || (self.apic_is_on() && self.devices.lapic.pending().is_some())
    }

    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        let vector = if self.external_pending() {
            Some(self.devices.pics.acknowledge())
        } else if self.apic_is_on() {
            self.devices.lapic.acknowledge()
        } else {
            None
        };
        if let Some(vector) = vector {
            self.counts.interrupts += 1;
            if self.trace.interrupts {
                eprintln!("interrupt {vector:#04x} at {} ns", self.clock.now());
            }
        }
        vector
    }

    fn msr_read(&mut self, index: u32) -> Option<u64> {
        (index == APIC_BASE_MSR).then_some(self.devices.apic_base)
    }

    fn msr_write(&mut self, index: u32, value: u64) -> Option<()> {
        // The page can't be moved, and there is no x2APIC mode: only "on" may change.
        let fixed = value & !APIC_ON == APIC_BASE_RESET & !APIC_ON;
        if index != APIC_BASE_MSR || !fixed {
            return None;
        }
        if !self.apic_is_on() && value & APIC_ON != 0 {
            self.devices.lapic = Lapic::new(self.devices.lapic.id());
        }
        self.devices.apic_base = value;
        Some(())
    }

    fn set_task_priority(&mut self, cr8: u64) {
        self.devices.lapic.set_cr8(cr8);
    }

    fn task_priority(&mut self) -> u64 {
        self.devices.lapic.cr8()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board() -> Board {
        Board::new(
            64 << 20,
            0,
            TimeBase::Accesses,
            Box::new(std::io::sink()),
            Trace::default(),
        )
    }

    fn out(board: &mut Board, port: u16, value: u8) {
        board.port_write(port, &[value]);
    }

    #[test]
    fn the_timer_interrupts_through_the_8259() {
        let mut board = board();
        for (port, value) in [
            (0x20, 0x11),
            (0x21, 0x20),
            (0x21, 4),
            (0x21, 1),
            (0x21, 0xfe),
        ] {
            out(&mut board, port, value);
        }
        for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
            out(&mut board, port, value);
        }
        assert!(!board.interrupt_pending());
        let deadline = board.next_deadline().expect("a deadline");
        board.clock_mut().skip_to(deadline);
        assert!(board.interrupt_pending());
        assert_eq!(board.acknowledge_interrupt(), Some(0x20));
        assert!(!board.interrupt_pending());
    }

    #[test]
    fn the_timer_is_pin_2_of_the_io_apic() {
        let mut board = board();
        board.mmio_write(lapic::BASE + 0xf0, &0x1ffu32.to_le_bytes());
        board.mmio_write(ioapic::BASE, &0x14u32.to_le_bytes());
        board.mmio_write(ioapic::BASE + 0x10, &0x31u32.to_le_bytes());
        board.pulse(TIMER_LINE);
        assert!(board.interrupt_pending());
        assert_eq!(board.acknowledge_interrupt(), Some(0x31));
    }

    #[test]
    fn what_has_no_device_reads_as_ones() {
        let mut board = board();
        let mut data = [0; 4];
        board.port_read(0xcfc, &mut data);
        assert_eq!(data, [0xff; 4]);
        board.mmio_read(0xd000_0000, &mut data);
        assert_eq!(data, [0xff; 4]);
        let mut wide = [0; 2];
        board.port_read(0x3f9, &mut wide);
        assert_eq!(wide, [0, 0xff]);
    }

    #[test]
    fn every_port_takes_every_width_without_harm() {
        let mut board = board();
        for round in 0..3u32 {
            for port in 0..=0xffff {
                for width in [1, 2, 4] {
                    let value = (port as u32).wrapping_mul(0x9e37_79b9) ^ round;
                    board.port_write(port, &value.to_le_bytes()[..width]);
                    board.port_read(port, &mut [0; 4][..width]);
                    board.interrupt_pending();
                    board.acknowledge_interrupt();
                }
            }
        }
    }

    #[test]
    fn a_snapshot_restores_the_same_board() {
        let mut first = board();
        for port in [0x20, 0x40, 0x70, 0x3f8] {
            out(&mut first, port, 0x13);
        }
        let snapshot = first.snapshot();
        let second = Board::restore(
            &snapshot,
            TimeBase::Accesses,
            Box::new(std::io::sink()),
            Trace::default(),
        );
        assert_eq!(second.expect("restored").snapshot(), snapshot);
    }

    #[test]
    fn the_first_ending_counts() {
        let mut board = board();
        out(&mut board, DEBUG_EXIT, 0x10);
        out(&mut board, 0x64, 0xfe);
        assert_eq!(board.ending(), Some(Ending::DebugExit(0x10)));
    }
}
