//! The 8254 interval timer and the speaker gate at port 0x61 (Intel 8254 data sheet).
//! Channel 0 is interrupt line 0, channel 2 the speaker's, which kernels measure other
//! clocks with. A counter isn't ticked: it is computed from the time since it was loaded.

use serde::{Deserialize, Serialize};

use super::Nanos;

/// The input clock in Hz.
const FREQUENCY: u64 = 1_193_182;

/// Which half of a 16-bit count goes through the port next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Access {
    Low,
    High,
    Both,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Channel {
    /// 0 to 5; 6 and 7 as written are 2 and 3.
    mode: u8,
    decimal: bool,
    access: Access,
    /// 1 to 0x10000.
    reload: u32,
    /// The low byte of a count whose high byte is still to come.
    half_written: Option<u8>,
    /// The next read of `Access::Both` gives the high byte.
    half_read: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
    /// A mode was set and no count yet.
    unloaded: bool,
    gate: bool,
    /// When the counter was loaded or (by its gate) started.
    started: Nanos,
    /// Ticks that had passed when the gate went low.
    held: Option<u64>,
}

impl Channel {
    fn new(gate: bool) -> Channel {
        Channel {
            mode: 3,
            decimal: false,
            access: Access::Both,
            reload: 0x1_0000,
            half_written: None,
            half_read: false,
            latched_count: None,
            latched_status: None,
            unloaded: true,
            gate,
            started: 0,
            held: None,
        }
    }

    fn ticks(&self, now: Nanos) -> u64 {
        self.held.unwrap_or_else(|| {
            (u128::from(now.saturating_sub(self.started)) * u128::from(FREQUENCY) / 1_000_000_000)
                as u64
        })
    }

    /// When the counter will have counted `ticks`.
    fn time_of(&self, ticks: u64) -> Nanos {
        self.started + (u128::from(ticks) * 1_000_000_000).div_ceil(u128::from(FREQUENCY)) as Nanos
    }

    fn count(&self, now: Nanos) -> u16 {
        let (ticks, reload) = (self.ticks(now), u64::from(self.reload));
        let value = match self.mode {
            2 => reload - ticks % reload,
            // Counts by two, once for each half of the period.
            3 => reload - (ticks * 2) % reload,
            _ if ticks <= reload => reload - ticks,
            // One-shot modes wrap around and count on.
            _ => 0x1_0000 - (ticks - reload) % 0x1_0000,
        };
        if self.decimal {
            to_decimal(value)
        } else {
            value as u16
        }
    }

    fn output(&self, now: Nanos) -> bool {
        let (ticks, reload) = (self.ticks(now), u64::from(self.reload));
        match self.mode {
            0 | 1 => !self.unloaded && ticks >= reload,
            2 => self.unloaded || ticks % reload != reload - 1,
            3 => self.unloaded || ticks % reload < reload.div_ceil(2),
            _ => self.unloaded || ticks != reload,
        }
    }

    /// When the output next rises after `now`.
    fn next_rise(&self, now: Nanos) -> Option<Nanos> {
        if self.unloaded || self.held.is_some() {
            return None;
        }
        let (ticks, reload) = (self.ticks(now), u64::from(self.reload));
        match self.mode {
            2 | 3 => Some(self.time_of((ticks / reload + 1) * reload)),
            0 | 1 => (ticks < reload).then(|| self.time_of(reload)),
            _ => (ticks <= reload).then(|| self.time_of(reload + 1)),
        }
    }

    fn set_mode(&mut self, value: u8) {
        *self = Channel {
            mode: match value >> 1 & 7 {
                mode @ 0..6 => mode,
                mode => mode - 4,
            },
            decimal: value & 1 != 0,
            access: match value >> 4 & 3 {
                1 => Access::Low,
                2 => Access::High,
                _ => Access::Both,
            },
            ..Channel::new(self.gate)
        };
    }

    fn write(&mut self, value: u8, now: Nanos) {
        let value = u16::from(value);
        let count = match (self.access, self.half_written) {
            (Access::Low, _) => value,
            (Access::High, _) => value << 8,
            (Access::Both, None) => {
                self.half_written = Some(value as u8);
                return;
            }
            (Access::Both, Some(low)) => value << 8 | u16::from(low),
        };
        self.half_written = None;
        self.reload = match (count, self.decimal) {
            (0, false) => 0x1_0000,
            (0, true) => 10_000,
            (count, false) => u32::from(count),
            (count, true) => from_decimal(count),
        };
        self.unloaded = false;
        self.started = now;
        self.held = (!self.gate).then_some(0);
    }

    fn read(&mut self, now: Nanos) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let count = self.latched_count.unwrap_or_else(|| self.count(now));
        let high = match self.access {
            Access::Low => false,
            Access::High => true,
            Access::Both => {
                self.half_read = !self.half_read;
                !self.half_read
            }
        };
        if high || self.access == Access::Low {
            self.latched_count = None;
        }
        if high {
            (count >> 8) as u8
        } else {
            count as u8
        }
    }

    fn latch_status(&mut self, now: Nanos) {
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::Both => 3,
        };
        let status = u8::from(self.output(now)) << 7
            | u8::from(self.unloaded) << 6
            | access << 4
            | self.mode << 1
            | u8::from(self.decimal);
        self.latched_status.get_or_insert(status);
    }

    fn set_gate(&mut self, gate: bool, now: Nanos) {
        if gate == self.gate {
            return;
        }
        self.gate = gate;
        match (gate, self.mode) {
            // A rising gate starts these anew.
            (true, 1 | 2 | 3 | 5) => {
                self.started = now;
                self.held = None;
            }
            (true, _) => {
                if let Some(ticks) = self.held.take() {
                    let passed = u128::from(ticks) * 1_000_000_000 / u128::from(FREQUENCY);
                    self.started = now.saturating_sub(passed as Nanos);
                }
            }
            (false, 1 | 5) => {}
            (false, _) => self.held = Some(self.ticks(now)),
        }
    }
}

fn to_decimal(value: u64) -> u16 {
    let value = value % 10_000;
    ((value % 10) | ((value / 10 % 10) << 4) | (value / 100 % 10) << 8 | (value / 1000) << 12)
        as u16
}

fn from_decimal(count: u16) -> u32 {
    let digit = |at: u32| u32::from(count >> (at * 4) & 15);
    (digit(0) + digit(1) * 10 + digit(2) * 100 + digit(3) * 1000).max(1)
}

/// Ports 0x40 to 0x43, and 0x61.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pit {
    channels: [Channel; 3],
    /// Bit 1 of port 0x61: the speaker is connected.
    speaker: bool,
    /// When channel 0's output next rises.
    next_rise: Option<Nanos>,
    /// Rises that nobody has seen yet.
    owed: u32,
    /// None of those is shown before.
    next_owed: Nanos,
}

/// A guest that counts ticks must not lose those that came while the host didn't run it; it
/// is given them one by one, up to so many.
const MOST_OWED: u32 = 250;

impl Default for Pit {
    fn default() -> Self {
        Pit {
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            speaker: false,
            next_rise: None,
            owed: 0,
            next_owed: 0,
        }
    }
}

impl Pit {
    /// When [`Pit::take_interrupt`] will next say so.
    pub fn next_interrupt(&self) -> Option<Nanos> {
        let owed = (self.owed != 0).then_some(self.next_owed);
        [owed, self.next_rise].into_iter().flatten().min()
    }

    /// Whether channel 0 has risen. Rises that were missed come after one another, four
    /// times as fast as regular ones.
    pub fn take_interrupt(&mut self, now: Nanos) -> bool {
        let channel = &self.channels[0];
        let period = channel.time_of(u64::from(channel.reload)) - channel.started;
        if let Some(due) = self.next_rise.filter(|&due| due <= now) {
            let missed = match channel.mode {
                2 | 3 => (now - due) / period.max(1),
                _ => 0,
            };
            let owed = u64::from(self.owed) + missed + 1;
            self.owed = owed.min(u64::from(MOST_OWED)) as u32;
            self.next_rise = channel.next_rise(now);
        }
        let shown = self.owed != 0 && self.next_owed <= now;
        if shown {
            self.owed -= 1;
            self.next_owed = now + period / 4;
        }
        shown
    }

    pub fn read(&mut self, port: u16, now: Nanos) -> u8 {
        match port {
            0x40..=0x42 => self.channels[usize::from(port - 0x40)].read(now),
            0x61 => {
                let refresh = (now / 15_085) & 1;
                u8::from(self.channels[2].gate)
                    | u8::from(self.speaker) << 1
                    | (refresh as u8) << 4
                    | u8::from(self.channels[2].output(now)) << 5
            }
            // The mode register can't be read.
            _ => 0xff,
        }
    }

    pub fn write(&mut self, port: u16, value: u8, now: Nanos) {
        match port {
            0x40..=0x42 => self.channels[usize::from(port - 0x40)].write(value, now),
            0x43 if value >> 6 == 3 => self.read_back(value, now),
            0x43 => {
                let channel = &mut self.channels[usize::from(value >> 6)];
                if value & 0x30 == 0 {
                    let count = channel.count(now);
                    channel.latched_count.get_or_insert(count);
                } else {
                    channel.set_mode(value);
                }
            }
            _ => {
                self.speaker = value & 2 != 0;
                self.channels[2].set_gate(value & 1 != 0, now);
            }
        }
        if matches!(port, 0x40 | 0x43) {
            self.next_rise = self.channels[0].next_rise(now);
            self.owed = 0;
            self.next_owed = now;
        }
    }

    fn read_back(&mut self, value: u8, now: Nanos) {
        for (index, channel) in self.channels.iter_mut().enumerate() {
            if value & 2 << index == 0 {
                continue;
            }
            if value & 0x20 == 0 {
                let count = channel.count(now);
                channel.latched_count.get_or_insert(count);
            }
            if value & 0x10 == 0 {
                channel.latch_status(now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Nanos = 1_000_000;

    #[test]
    fn a_periodic_channel_interrupts_at_its_rate() {
        let mut pit = Pit::default();
        pit.write(0x43, 0x34, 0);
        // 11932 ticks are 10 ms.
        pit.write(0x40, 0x9c, 0);
        pit.write(0x40, 0x2e, 0);
        let mut rises = 0;
        for now in 0..1000 {
            rises += u32::from(pit.take_interrupt(now * MS));
        }
        assert_eq!(rises, 99);
    }

    #[test]
    fn missed_interrupts_come_later_one_by_one() {
        let mut pit = Pit::default();
        pit.write(0x43, 0x34, 0);
        pit.write(0x40, 0x9c, 0);
        pit.write(0x40, 0x2e, 0);
        assert!(pit.take_interrupt(35 * MS));
        assert!(!pit.take_interrupt(36 * MS));
        assert!(pit.take_interrupt(38 * MS));
        assert_eq!(
            (39..100).filter(|&at| pit.take_interrupt(at * MS)).count(),
            7
        );
    }

    #[test]
    fn a_one_shot_interrupts_once() {
        let mut pit = Pit::default();
        pit.write(0x43, 0x30, 0);
        pit.write(0x40, 0x00, 0);
        pit.write(0x40, 0x10, 0);
        assert!(!pit.take_interrupt(MS));
        assert!(pit.take_interrupt(10 * MS));
        assert!(!pit.take_interrupt(1000 * MS));
        assert_eq!(pit.next_interrupt(), None);
    }

    #[test]
    fn the_speakers_channel_measures_time() {
        let mut pit = Pit::default();
        pit.write(0x61, 1, 0);
        pit.write(0x43, 0xb0, 0);
        pit.write(0x42, 0x9c, 0);
        pit.write(0x42, 0x2e, 0);
        assert_eq!(pit.read(0x61, 9 * MS) & 0x20, 0);
        assert_eq!(pit.read(0x61, 11 * MS) & 0x20, 0x20);
    }

    #[test]
    fn a_latched_count_stands_still() {
        let mut pit = Pit::default();
        pit.write(0x43, 0x34, 0);
        pit.write(0x40, 0xff, 0);
        pit.write(0x40, 0xff, 0);
        pit.write(0x43, 0x00, MS);
        let low = pit.read(0x40, 5 * MS);
        let high = pit.read(0x40, 9 * MS);
        assert_eq!(u16::from_le_bytes([low, high]), 0xffff - 1193);
        let live = u16::from_le_bytes([pit.read(0x40, 10 * MS), pit.read(0x40, 10 * MS)]);
        assert_eq!(live, 0xffff - 11931);
    }

    #[test]
    fn decimal_counts_are_read_in_decimal() {
        let mut pit = Pit::default();
        pit.write(0x43, 0x31, 0);
        pit.write(0x40, 0x00, 0);
        pit.write(0x40, 0x10, 0);
        assert_eq!(pit.channels[0].reload, 1000);
        assert_eq!(pit.channels[0].count(0), 0x1000);
    }

    #[test]
    fn nonsense_order_does_no_harm() {
        let mut pit = Pit::default();
        for round in 0..2000u64 {
            let port = 0x40 + (round % 4) as u16;
            pit.write(port, (round * 37) as u8, round * 999);
            pit.read(port, round * 1000);
            pit.take_interrupt(round * 1001);
        }
    }
}
