//! The pair of 8259A interrupt controllers, as in a PC: the slave hangs on line 2 of the
//! master (Intel 8259A data sheet; ELCR: Intel 82371SB). Upstream: the interrupt lines of
//! the bus. Downstream: the local APIC's LINT0, which asks for a vector. Plain data; the
//! bytes of a snapshot are its fields.

use serde::{Deserialize, Serialize};

/// The master's line that the slave's output is wired to.
const CASCADE: u8 = 2;

/// How far an initialization (ICW1 to ICW4) has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Setup {
    Ready,
    VectorBase { single: bool, fourth: bool },
    Cascade { fourth: bool },
    Mode,
}

/// One 8259A.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Chip {
    /// Levels of the inputs.
    lines: u8,
    /// Rising edges that were not acknowledged yet.
    edges: u8,
    /// Inputs that are level-triggered.
    level_triggered: u8,
    masked: u8,
    in_service: u8,
    vector_base: u8,
    /// The input of lowest priority; 7 unless priorities rotate.
    lowest: u8,
    setup: Setup,
    auto_end: bool,
    rotate_on_auto_end: bool,
    special_mask: bool,
    special_fully_nested: bool,
    read_in_service: bool,
    poll: bool,
}

impl Default for Chip {
    fn default() -> Self {
        Chip {
            lines: 0,
            edges: 0,
            level_triggered: 0,
            masked: 0xff,
            in_service: 0,
            vector_base: 0,
            lowest: 7,
            setup: Setup::Ready,
            auto_end: false,
            rotate_on_auto_end: false,
            special_mask: false,
            special_fully_nested: false,
            read_in_service: false,
            poll: false,
        }
    }
}

impl Chip {
    fn set_line(&mut self, line: u8, high: bool) {
        let bit = 1 << line;
        if high {
            self.edges |= bit & !self.lines;
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
    }

    fn requests(&self) -> u8 {
        (self.edges & !self.level_triggered) | (self.lines & self.level_triggered)
    }

    /// The rank of the most urgent input in `set`: 0 is the highest. 8 when it is empty.
    fn rank(&self, set: u8) -> u8 {
        (0..8)
            .find(|rank| set & 1 << self.input_at(*rank) != 0)
            .unwrap_or(8)
    }

    fn input_at(&self, rank: u8) -> u8 {
        (self.lowest + 1 + rank) & 7
    }

    /// The input that wants service now, if one outranks what is in service.
    fn pending(&self) -> Option<u8> {
        let wanting = self.rank(self.requests() & !self.masked);
        let mut serving = self.in_service;
        if self.special_mask {
            serving &= !self.masked;
        }
        if self.special_fully_nested {
            serving &= !(1 << CASCADE);
        }
        (wanting < self.rank(serving)).then(|| self.input_at(wanting))
    }

    /// INTA: the input goes into service.
    fn acknowledge(&mut self, input: u8) {
        self.edges &= !(1 << input);
        if self.auto_end {
            if self.rotate_on_auto_end {
                self.lowest = input;
            }
        } else {
            self.in_service |= 1 << input;
        }
    }

    fn end(&mut self, input: u8, rotate: bool) {
        self.in_service &= !(1 << input);
        if rotate {
            self.lowest = input;
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            *self = Chip {
                lines: self.lines,
                level_triggered: self.level_triggered,
                masked: 0,
                setup: Setup::VectorBase {
                    single: value & 2 != 0,
                    fourth: value & 1 != 0,
                },
                ..Chip::default()
            };
        } else if value & 0x08 != 0 {
            self.poll = value & 4 != 0;
            if value & 2 != 0 {
                self.read_in_service = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            self.write_end(value);
        }
    }

    /// OCW2: ends of interrupts and rotation.
    fn write_end(&mut self, value: u8) {
        let named = value & 7;
        match value >> 5 {
            0 => self.rotate_on_auto_end = false,
            command @ (1 | 5) => {
                let rank = self.rank(self.in_service);
                if rank < 8 {
                    self.end(self.input_at(rank), command == 5);
                }
            }
            3 => self.end(named, false),
            4 => self.rotate_on_auto_end = true,
            6 => self.lowest = named,
            7 => self.end(named, true),
            // 2 is "no operation".
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.setup {
            Setup::Ready => self.masked = value,
            Setup::VectorBase { single, fourth } => {
                self.vector_base = value & 0xf8;
                self.setup = match (single, fourth) {
                    (false, fourth) => Setup::Cascade { fourth },
                    (true, true) => Setup::Mode,
                    (true, false) => Setup::Ready,
                };
            }
            Setup::Cascade { fourth } => {
                self.setup = if fourth { Setup::Mode } else { Setup::Ready };
            }
            Setup::Mode => {
                self.auto_end = value & 2 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                self.setup = Setup::Ready;
            }
        }
    }

    fn read_command(&mut self) -> u8 {
        if std::mem::take(&mut self.poll) {
            return match self.pending() {
                Some(input) => {
                    self.acknowledge(input);
                    0x80 | input
                }
                None => 0,
            };
        }
        if self.read_in_service {
            self.in_service
        } else {
            self.requests()
        }
    }
}

/// Both controllers. Ports 0x20, 0x21 (master), 0xa0, 0xa1 (slave), 0x4d0, 0x4d1 (ELCR).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PicPair {
    master: Chip,
    slave: Chip,
}

impl PicPair {
    /// Drives interrupt line 0 to 15. Line 2 is the cascade and has no wire.
    pub fn set_line(&mut self, line: u8, high: bool) {
        match line {
            CASCADE => {}
            0..8 => self.master.set_line(line, high),
            _ => self.slave.set_line(line & 7, high),
        }
        self.cascade();
    }

    fn cascade(&mut self) {
        let wanting = self.slave.pending().is_some();
        // The slave's output falls and rises again between two of its requests.
        self.master.set_line(CASCADE, false);
        if !wanting {
            self.master.edges &= !(1 << CASCADE);
        }
        self.master.set_line(CASCADE, wanting);
    }

    /// The level of the INTR output.
    pub fn wants_service(&self) -> bool {
        self.master.pending().is_some()
    }

    /// An interrupt acknowledge cycle: the vector of the most urgent request, or the
    /// spurious vector (input 7) when there is none any more.
    pub fn acknowledge(&mut self) -> u8 {
        let Some(input) = self.master.pending() else {
            return self.master.vector_base + 7;
        };
        self.master.acknowledge(input);
        if input != CASCADE {
            return self.master.vector_base + input;
        }
        let vector = match self.slave.pending() {
            Some(input) => {
                self.slave.acknowledge(input);
                self.slave.vector_base + input
            }
            None => self.slave.vector_base + 7,
        };
        self.cascade();
        vector
    }

    pub fn read(&mut self, port: u16) -> u8 {
        let value = match port {
            0x20 => self.master.read_command(),
            0x21 => self.master.masked,
            0xa0 => self.slave.read_command(),
            0xa1 => self.slave.masked,
            0x4d0 => self.master.level_triggered,
            _ => self.slave.level_triggered,
        };
        self.cascade();
        value
    }

    pub fn write(&mut self, port: u16, value: u8) {
        match port {
            0x20 => self.master.write_command(value),
            0x21 => self.master.write_data(value),
            0xa0 => self.slave.write_command(value),
            0xa1 => self.slave.write_data(value),
            // The timer, the keyboard, the cascade and the clock can't be level-triggered.
            0x4d0 => self.master.level_triggered = value & 0xf8,
            _ => self.slave.level_triggered = value & 0xde,
        }
        self.cascade();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors 0x20 and 0x28, all lines open, as every PC kernel sets it up.
    fn ready() -> PicPair {
        let mut pics = PicPair::default();
        for (port, value) in [
            (0x20, 0x11),
            (0x21, 0x20),
            (0x21, 4),
            (0x21, 1),
            (0xa0, 0x11),
            (0xa1, 0x28),
            (0xa1, 2),
            (0xa1, 1),
        ] {
            pics.write(port, value);
        }
        pics
    }

    #[test]
    fn an_edge_is_served_once() {
        let mut pics = ready();
        pics.set_line(4, true);
        assert!(pics.wants_service());
        assert_eq!(pics.acknowledge(), 0x24);
        assert!(!pics.wants_service());
        pics.write(0x20, 0x20);
        assert!(!pics.wants_service());
        pics.set_line(4, false);
        pics.set_line(4, true);
        assert!(pics.wants_service());
    }

    #[test]
    fn lower_lines_come_first_and_wait_for_the_end_of_a_higher_one() {
        let mut pics = ready();
        pics.set_line(6, true);
        pics.set_line(1, true);
        assert_eq!(pics.acknowledge(), 0x21);
        assert!(!pics.wants_service());
        pics.write(0x20, 0x20);
        assert_eq!(pics.acknowledge(), 0x26);
    }

    #[test]
    fn the_slaves_lines_pass_through_the_cascade() {
        let mut pics = ready();
        pics.set_line(8, true);
        pics.set_line(12, true);
        assert_eq!(pics.acknowledge(), 0x28);
        pics.write(0xa0, 0x20);
        pics.write(0x20, 0x20);
        assert_eq!(pics.acknowledge(), 0x2c);
    }

    #[test]
    fn a_request_that_went_away_is_spurious() {
        let mut pics = ready();
        pics.write(0x4d0, 0x20);
        pics.set_line(5, true);
        pics.set_line(5, false);
        assert!(!pics.wants_service());
        assert_eq!(pics.acknowledge(), 0x27);
    }

    #[test]
    fn a_masked_line_waits() {
        let mut pics = ready();
        pics.write(0x21, 0xff);
        pics.set_line(0, true);
        assert!(!pics.wants_service());
        pics.write(0x21, 0xfe);
        assert_eq!(pics.acknowledge(), 0x20);
    }

    #[test]
    fn a_level_asks_again_until_it_falls() {
        let mut pics = ready();
        pics.write(0x4d1, 0x08);
        pics.set_line(11, true);
        assert_eq!(pics.acknowledge(), 0x2b);
        pics.write(0xa0, 0x20);
        pics.write(0x20, 0x20);
        assert_eq!(pics.acknowledge(), 0x2b);
        pics.set_line(11, false);
        pics.write(0xa0, 0x20);
        pics.write(0x20, 0x20);
        assert!(!pics.wants_service());
    }
}
