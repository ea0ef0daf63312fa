//! The local APIC (Intel SDM volume 3, chapter 12) in xAPIC mode: priorities, the local
//! vector table, the timer, inter-processor interrupts. Upstream: messages from the I/O APIC
//! and other local APICs. Downstream: the CPU, which asks for a vector. x2APIC mode and the
//! TSC deadline aren't offered; CPUID says so.

use serde::{Deserialize, Serialize};

use super::Nanos;

/// The page that the registers are in after reset.
pub const BASE: u64 = 0xfee0_0000;
/// The version register: version 14h, six entries in the local vector table.
const VERSION: u32 = 0x0005_0014;
/// SVR bit 8: the APIC is enabled by software.
const ENABLED: u32 = 1 << 8;
const MASKED: u32 = 1 << 16;
/// The timer's entry: bits 17 and 18 are its mode, 1 is periodic.
const TIMER_MODE: u32 = 3 << 17;
const PERIODIC: u32 = 1 << 17;
/// The timer's input clock has one tick a nanosecond.
const ESR_ILLEGAL_SEND: u32 = 1 << 5;
const ESR_ILLEGAL_RECEIVE: u32 = 1 << 6;
const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// How an interrupt message is to be taken (bits 8 to 10 of an ICR, an LVT entry or a
/// redirection entry).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Delivery {
    Fixed,
    LowestPriority,
    Smi,
    Reserved,
    Nmi,
    Init,
    Startup,
    External,
}

impl Delivery {
    pub fn from_bits(value: u32) -> Delivery {
        match value >> 8 & 7 {
            0 => Delivery::Fixed,
            1 => Delivery::LowestPriority,
            2 => Delivery::Smi,
            3 => Delivery::Reserved,
            4 => Delivery::Nmi,
            5 => Delivery::Init,
            6 => Delivery::Startup,
            _ => Delivery::External,
        }
    }
}

/// Which local APICs a message is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    Physical(u8),
    Logical(u8),
    Sender,
    All,
    Others,
}

/// An interrupt message on the (virtual) APIC bus.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    pub destination: Destination,
    pub delivery: Delivery,
    pub vector: u8,
    pub level_triggered: bool,
}

/// What a register write asks of the rest of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    Send(Message),
    /// A level-triggered vector has ended: the I/O APIC may deliver it again.
    End(u8),
}

/// A set of 256 vectors, as in IRR, ISR and TMR.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
struct Vectors([u32; 8]);

impl Vectors {
    fn set(&mut self, vector: u8, value: bool) {
        let bit = 1 << (vector & 31);
        let word = &mut self.0[usize::from(vector >> 5)];
        *word = if value { *word | bit } else { *word & !bit };
    }

    fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] & 1 << (vector & 31) != 0
    }

    fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|&word| word != 0)?;
        Some((word as u32 * 32 + self.0[word].ilog2()) as u8)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Local {
    Timer,
    Thermal,
    Counters,
    Lint0,
    Lint1,
    Error,
}

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lapic {
    id: u8,
    task_priority: u32,
    logical_id: u8,
    flat_model: bool,
    spurious: u32,
    in_service: Vectors,
    level_triggered: Vectors,
    requested: Vectors,
    errors: u32,
    /// Errors since the last write to ESR, which makes them visible.
    new_errors: u32,
    command: [u32; 2],
    /// Indexed by [`Local`].
    local: [u32; 6],
    timer_initial: u32,
    timer_divide: u32,
    timer_started: Nanos,
    /// When the timer next runs out.
    timer_due: Option<Nanos>,
    nmi: bool,
}

impl Lapic {
    /// The local APIC of CPU `id`, as firmware leaves it: LINT0 passes the 8259s' interrupts
    /// on the first CPU, LINT1 is NMI.
    pub fn new(id: u8) -> Lapic {
        let mut local = [MASKED; 6];
        if id == 0 {
            local[Local::Lint0 as usize] = 0x700;
            local[Local::Lint1 as usize] = 0x400;
        }
        Lapic {
            id,
            task_priority: 0,
            logical_id: 0,
            flat_model: true,
            spurious: 0xff,
            in_service: Vectors::default(),
            level_triggered: Vectors::default(),
            requested: Vectors::default(),
            errors: 0,
            new_errors: 0,
            command: [0; 2],
            local,
            timer_initial: 0,
            timer_divide: 0,
            timer_started: 0,
            timer_due: None,
            nmi: false,
        }
    }

    pub fn id(&self) -> u8 {
        self.id
    }

    fn enabled(&self) -> bool {
        self.spurious & ENABLED != 0
    }

    fn processor_priority(&self) -> u32 {
        let serving = u32::from(self.in_service.highest().unwrap_or(0)) & 0xf0;
        if self.task_priority & 0xf0 >= serving {
            self.task_priority & 0xff
        } else {
            serving
        }
    }

    /// The vector that the CPU would be handed now.
    pub fn pending(&self) -> Option<u8> {
        let vector = self.requested.highest()?;
        (self.enabled() && u32::from(vector) & 0xf0 > self.processor_priority() & 0xf0)
            .then_some(vector)
    }

    /// The CPU takes [`Lapic::pending`]'s vector.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.requested.set(vector, false);
        self.in_service.set(vector, true);
        Some(vector)
    }

    /// Whether the 8259s' interrupts reach the CPU through LINT0.
    pub fn accepts_external(&self) -> bool {
        let entry = self.local[Local::Lint0 as usize];
        entry & MASKED == 0 && Delivery::from_bits(entry) == Delivery::External
    }

    /// An NMI message that the CPU hasn't been given.
    pub fn take_nmi(&mut self) -> bool {
        std::mem::take(&mut self.nmi)
    }

    /// CR8: bits 4 to 7 of the task priority.
    pub fn cr8(&self) -> u64 {
        u64::from(self.task_priority >> 4 & 15)
    }

    pub fn set_cr8(&mut self, value: u64) {
        self.task_priority = (value as u32 & 15) << 4;
    }

    /// Whether a message is for this CPU.
    pub fn is_addressed(&self, destination: Destination, sender: Option<u8>) -> bool {
        match destination {
            Destination::Physical(id) => id == self.id || id == 0xff,
            Destination::Logical(mask) if self.flat_model => mask & self.logical_id != 0,
            Destination::Logical(mask) => {
                (mask >> 4 == self.logical_id >> 4 || mask >> 4 == 15)
                    && mask & self.logical_id & 15 != 0
            }
            Destination::Sender => sender == Some(self.id),
            Destination::All => true,
            Destination::Others => sender != Some(self.id),
        }
    }

    /// Accepts a message. INIT and Startup are the machine's to act on.
    pub fn deliver(&mut self, message: Message) {
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                if message.vector < 16 {
                    self.error(ESR_ILLEGAL_RECEIVE);
                } else if self.enabled() {
                    self.requested.set(message.vector, true);
                    self.level_triggered
                        .set(message.vector, message.level_triggered);
                }
            }
            Delivery::Nmi => self.nmi = true,
            // There is no system management mode, and the rest has no meaning here.
            Delivery::Smi
            | Delivery::Reserved
            | Delivery::Init
            | Delivery::Startup
            | Delivery::External => {}
        }
    }

    fn deliver_local(&mut self, which: Local) {
        let entry = self.local[which as usize];
        if entry & MASKED == 0 {
            self.deliver(Message {
                destination: Destination::Sender,
                delivery: match which {
                    Local::Timer | Local::Error => Delivery::Fixed,
                    _ => Delivery::from_bits(entry),
                },
                vector: entry as u8,
                level_triggered: false,
            });
        }
    }

    fn error(&mut self, bit: u32) {
        self.new_errors |= bit;
        // An error in the error interrupt's own vector must not recurse.
        if self.local[Local::Error as usize] as u8 >= 16 {
            self.deliver_local(Local::Error);
        }
    }

    fn divisor(&self) -> u64 {
        match self.timer_divide & 3 | self.timer_divide >> 1 & 4 {
            7 => 1,
            shift => 2 << shift,
        }
    }

    fn period(&self) -> Nanos {
        u64::from(self.timer_initial) * self.divisor()
    }

    fn is_periodic(&self) -> bool {
        self.local[Local::Timer as usize] & TIMER_MODE == PERIODIC
    }

    fn timer_count(&self, now: Nanos) -> u32 {
        match self.timer_due {
            Some(due) => due.saturating_sub(now).div_ceil(self.divisor()) as u32,
            None => 0,
        }
    }

    /// When the timer next runs out.
    pub fn next_interrupt(&self) -> Option<Nanos> {
        self.timer_due
    }

    /// Lets the timer run out if it is time. Periods that were missed are one.
    pub fn advance(&mut self, now: Nanos) {
        let Some(due) = self.timer_due.filter(|&due| due <= now) else {
            return;
        };
        self.timer_due = self
            .is_periodic()
            .then(|| due + ((now - due) / self.period() + 1) * self.period());
        self.deliver_local(Local::Timer);
    }

    fn start_timer(&mut self, now: Nanos) {
        self.timer_started = now;
        self.timer_due = (self.timer_initial != 0).then(|| now + self.period());
    }

    /// Reads the 32-bit register at `offset` in the page.
    pub fn read(&mut self, offset: u32, now: Nanos) -> u32 {
        let word = (offset >> 4 & 7) as usize;
        match offset {
            0x20 => u32::from(self.id) << 24,
            0x30 => VERSION,
            0x80 => self.task_priority,
            0xa0 => self.processor_priority(),
            0xd0 => u32::from(self.logical_id) << 24,
            0xe0 if self.flat_model => 0xffff_ffff,
            0xe0 => 0x0fff_ffff,
            0xf0 => self.spurious,
            0x100..=0x170 => self.in_service.0[word],
            0x180..=0x1f0 => self.level_triggered.0[word],
            0x200..=0x270 => self.requested.0[word],
            0x280 => self.errors,
            0x300 => self.command[0],
            0x310 => self.command[1],
            0x380 => self.timer_initial,
            0x390 => self.timer_count(now),
            0x3e0 => self.timer_divide,
            // Arbitration priority and remote read; write-only EOI.
            0x90 | 0xb0 | 0xc0 => 0,
            _ => match local_at(offset) {
                Some(which) => self.local[which as usize],
                None => {
                    self.error(ESR_ILLEGAL_REGISTER);
                    0
                }
            },
        }
    }

    /// Writes the 32-bit register at `offset` in the page.
    pub fn write(&mut self, offset: u32, value: u32, now: Nanos) -> Option<Request> {
        match offset {
            0x20 => self.id = (value >> 24) as u8,
            0x80 => self.task_priority = value & 0xff,
            0xb0 => return self.end_of_interrupt(),
            0xd0 => self.logical_id = (value >> 24) as u8,
            0xe0 => self.flat_model = value >> 28 == 15,
            0xf0 => {
                self.spurious = value & 0x1ff;
                if !self.enabled() {
                    self.local.iter_mut().for_each(|entry| *entry |= MASKED);
                }
            }
            0x280 => self.errors = std::mem::take(&mut self.new_errors),
            0x300 => {
                self.command[0] = value & 0x000c_cfff;
                return self.send();
            }
            0x310 => self.command[1] = value & 0xff00_0000,
            0x380 => {
                self.timer_initial = value;
                self.start_timer(now);
            }
            0x3e0 => {
                let left = self.timer_count(now);
                self.timer_divide = value & 0xb;
                if self.timer_due.is_some() {
                    self.timer_due = Some(now + u64::from(left) * self.divisor());
                }
            }
            // Read-only registers ignore writes.
            0x30 | 0x90 | 0xa0 | 0xc0 | 0x100..=0x270 | 0x390 => {}
            _ => match local_at(offset) {
                Some(which) => self.write_local(which, value),
                None => self.error(ESR_ILLEGAL_REGISTER),
            },
        }
        None
    }

    fn write_local(&mut self, which: Local, value: u32) {
        let writable = match which {
            Local::Timer => 0x0007_00ff,
            Local::Thermal | Local::Counters => 0x0001_07ff,
            Local::Lint0 | Local::Lint1 => 0x0001_a7ff,
            Local::Error => 0x0001_00ff,
        };
        let forced = if self.enabled() { 0 } else { MASKED };
        self.local[which as usize] = value & writable | forced;
    }

    fn end_of_interrupt(&mut self) -> Option<Request> {
        let vector = self.in_service.highest()?;
        self.in_service.set(vector, false);
        self.level_triggered
            .contains(vector)
            .then_some(Request::End(vector))
    }

    fn send(&mut self) -> Option<Request> {
        let command = self.command[0];
        let delivery = Delivery::from_bits(command);
        let vector = command as u8;
        if matches!(delivery, Delivery::Fixed | Delivery::LowestPriority) && vector < 16 {
            self.error(ESR_ILLEGAL_SEND);
            return None;
        }
        // The de-assertion that follows an INIT in old kernels' start-up does nothing.
        if delivery == Delivery::Init && command & 1 << 14 == 0 {
            return None;
        }
        let named = (self.command[1] >> 24) as u8;
        Some(Request::Send(Message {
            destination: match command >> 18 & 3 {
                0 if command & 1 << 11 == 0 => Destination::Physical(named),
                0 => Destination::Logical(named),
                1 => Destination::Sender,
                2 => Destination::All,
                _ => Destination::Others,
            },
            delivery,
            vector,
            level_triggered: false,
        }))
    }
}

fn local_at(offset: u32) -> Option<Local> {
    match offset {
        0x320 => Some(Local::Timer),
        0x330 => Some(Local::Thermal),
        0x340 => Some(Local::Counters),
        0x350 => Some(Local::Lint0),
        0x360 => Some(Local::Lint1),
        0x370 => Some(Local::Error),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enabled() -> Lapic {
        let mut apic = Lapic::new(0);
        apic.write(0xf0, 0x1ff, 0);
        apic
    }

    fn fixed(vector: u8, level_triggered: bool) -> Message {
        Message {
            destination: Destination::All,
            delivery: Delivery::Fixed,
            vector,
            level_triggered,
        }
    }

    #[test]
    fn a_higher_class_interrupts_a_lower_one() {
        let mut apic = enabled();
        apic.deliver(fixed(0x31, false));
        assert_eq!(apic.acknowledge(), Some(0x31));
        apic.deliver(fixed(0x3f, false));
        assert_eq!(apic.pending(), None);
        apic.deliver(fixed(0x40, false));
        assert_eq!(apic.acknowledge(), Some(0x40));
        apic.write(0xb0, 0, 0);
        assert_eq!(apic.pending(), None);
        apic.write(0xb0, 0, 0);
        assert_eq!(apic.acknowledge(), Some(0x3f));
    }

    #[test]
    fn the_task_priority_holds_interrupts_back() {
        let mut apic = enabled();
        apic.deliver(fixed(0x51, false));
        apic.set_cr8(5);
        assert_eq!(apic.pending(), None);
        assert_eq!(apic.read(0x80, 0), 0x50);
        apic.write(0x80, 0x4f, 0);
        assert_eq!(apic.pending(), Some(0x51));
        assert_eq!(apic.cr8(), 4);
    }

    #[test]
    fn the_end_of_a_level_triggered_vector_is_told() {
        let mut apic = enabled();
        apic.deliver(fixed(0x60, true));
        apic.acknowledge();
        assert_eq!(apic.write(0xb0, 0, 0), Some(Request::End(0x60)));
        assert_eq!(apic.write(0xb0, 0, 0), None);
    }

    #[test]
    fn a_periodic_timer_goes_on_and_a_one_shot_does_not() {
        let mut apic = enabled();
        apic.write(0x3e0, 0xb, 0);
        apic.write(0x320, PERIODIC | 0x30, 0);
        apic.write(0x380, 1000, 0);
        apic.advance(999);
        assert_eq!(apic.pending(), None);
        assert_eq!(apic.read(0x390, 400), 600);
        apic.advance(1000);
        assert_eq!(apic.acknowledge(), Some(0x30));
        assert_eq!(apic.next_interrupt(), Some(2000));
        apic.advance(5500);
        assert_eq!(apic.next_interrupt(), Some(6000));
        apic.write(0x320, 0x30, 6000);
        apic.advance(6000);
        assert_eq!(apic.next_interrupt(), None);
        assert_eq!(apic.read(0x390, 7000), 0);
    }

    #[test]
    fn an_illegal_vector_is_an_error() {
        let mut apic = enabled();
        assert_eq!(apic.write(0x300, 0x0004_4005, 0), None);
        apic.write(0x280, 0, 0);
        assert_eq!(apic.read(0x280, 0), ESR_ILLEGAL_SEND);
    }

    #[test]
    fn logical_destinations_are_masks() {
        let mut apic = enabled();
        apic.write(0xd0, 0x0200_0000, 0);
        assert!(apic.is_addressed(Destination::Logical(3), None));
        assert!(!apic.is_addressed(Destination::Logical(5), None));
        apic.write(0xe0, 0x0fff_ffff, 0);
        apic.write(0xd0, 0x1200_0000, 0);
        assert!(apic.is_addressed(Destination::Logical(0x12), None));
        assert!(!apic.is_addressed(Destination::Logical(0x22), None));
    }
}
