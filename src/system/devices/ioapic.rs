//! The I/O APIC (Intel 82093AA data sheet): 24 interrupt lines, each of which becomes a
//! message to local APICs as its redirection entry says.

use serde::{Deserialize, Serialize};

use super::lapic::{Delivery, Destination, Message};

/// The page that the registers are in.
pub const BASE: u64 = 0xfec0_0000;
/// Interrupt lines.
pub const PINS: usize = 24;
const VERSION: u32 = 0x11 | (PINS as u32 - 1) << 16;

const DELIVERING: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IoApic {
    id: u8,
    select: u8,
    lines: u32,
    redirections: [u64; PINS],
}

impl Default for IoApic {
    fn default() -> Self {
        IoApic {
            id: 0,
            select: 0,
            lines: 0,
            redirections: [MASKED; PINS],
        }
    }
}

impl IoApic {
    /// Drives a line; what is to be sent because of it.
    pub fn set_line(&mut self, pin: u8, high: bool) -> Option<Message> {
        let bit = 1 << pin;
        let rises = high && self.lines & bit == 0;
        self.lines = if high {
            self.lines | bit
        } else {
            self.lines & !bit
        };
        let entry = self.redirections[usize::from(pin)];
        if entry & LEVEL != 0 {
            self.service(pin)
        } else {
            rises.then(|| self.service(pin))?
        }
    }

    /// The message of a line that asks for service, if its entry lets it.
    fn service(&mut self, pin: u8) -> Option<Message> {
        let entry = &mut self.redirections[usize::from(pin)];
        if *entry & MASKED != 0 {
            return None;
        }
        let level_triggered = *entry & LEVEL != 0;
        if level_triggered {
            if self.lines & 1 << pin == 0 || *entry & REMOTE_IRR != 0 {
                return None;
            }
            *entry |= REMOTE_IRR;
        }
        let named = (*entry >> 56) as u8;
        Some(Message {
            destination: if *entry & 1 << 11 == 0 {
                Destination::Physical(named)
            } else {
                Destination::Logical(named)
            },
            delivery: Delivery::from_bits(*entry as u32),
            vector: *entry as u8,
            level_triggered,
        })
    }

    /// The end of a level-triggered vector: lines that are still high ask again.
    pub fn end(&mut self, vector: u8) -> Vec<Message> {
        let mut again = Vec::new();
        for pin in 0..PINS as u8 {
            let entry = &mut self.redirections[usize::from(pin)];
            if *entry as u8 == vector && *entry & LEVEL != 0 {
                *entry &= !REMOTE_IRR;
                again.extend(self.service(pin));
            }
        }
        again
    }

    pub fn read(&self, offset: u32) -> u32 {
        match (offset, self.select) {
            (0x00, select) => u32::from(select),
            (0x10, 0 | 2) => u32::from(self.id) << 24,
            (0x10, 1) => VERSION,
            (0x10, select @ 0x10..0x40) => {
                let entry = self.redirections[usize::from(select - 0x10) / 2];
                if select & 1 == 0 {
                    entry as u32
                } else {
                    (entry >> 32) as u32
                }
            }
            _ => 0,
        }
    }

    pub fn write(&mut self, offset: u32, value: u32) -> Option<Message> {
        match (offset, self.select) {
            (0x00, _) => self.select = value as u8,
            (0x10, 0) => self.id = (value >> 24) as u8 & 15,
            (0x10, select @ 0x10..0x40) => {
                let pin = (select - 0x10) / 2;
                let entry = &mut self.redirections[usize::from(pin)];
                let value = u64::from(value);
                if select & 1 == 0 {
                    let kept = DELIVERING | REMOTE_IRR;
                    *entry = *entry & (kept | !0xffff_ffff) | value & 0x1_ffff & !kept;
                    if *entry & LEVEL == 0 {
                        *entry &= !REMOTE_IRR;
                    }
                } else {
                    *entry = *entry & 0xffff_ffff | value << 32;
                }
                // An unmasked level is seen at once; an edge that came while masked is lost.
                if *entry & LEVEL != 0 {
                    return self.service(pin);
                }
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirect(apic: &mut IoApic, pin: u8, entry: u64) -> Option<Message> {
        apic.write(0, u32::from(0x11 + pin * 2));
        apic.write(0x10, (entry >> 32) as u32);
        apic.write(0, u32::from(0x10 + pin * 2));
        apic.write(0x10, entry as u32)
    }

    #[test]
    fn an_edge_sends_one_message() {
        let mut apic = IoApic::default();
        assert_eq!(apic.set_line(4, true), None);
        apic.set_line(4, false);
        redirect(&mut apic, 4, 3 << 56 | 0x44);
        let message = apic.set_line(4, true).expect("a message");
        assert_eq!(message.vector, 0x44);
        assert_eq!(message.destination, Destination::Physical(3));
        assert_eq!(apic.set_line(4, true), None);
    }

    #[test]
    fn a_level_asks_again_after_its_end_while_it_is_high() {
        let mut apic = IoApic::default();
        redirect(&mut apic, 9, LEVEL | 0x59);
        assert!(apic.set_line(9, true).is_some());
        assert_eq!(apic.set_line(9, true), None);
        assert_eq!(apic.end(0x59).len(), 1);
        apic.set_line(9, false);
        assert_eq!(apic.end(0x59), []);
        assert!(apic.set_line(9, true).is_some());
    }

    #[test]
    fn unmasking_a_high_level_sends() {
        let mut apic = IoApic::default();
        redirect(&mut apic, 10, LEVEL | MASKED | 0x60);
        assert_eq!(apic.set_line(10, true), None);
        assert!(redirect(&mut apic, 10, LEVEL | 0x60).is_some());
    }

    #[test]
    fn registers_that_are_not_there_read_as_zero() {
        let mut apic = IoApic::default();
        for select in 0..=255 {
            apic.write(0, select);
            apic.write(0x10, 0xffff_ffff);
            apic.read(0x10);
        }
        apic.write(0, 1);
        assert_eq!(apic.read(0x10), VERSION);
        apic.write(0, 0x80);
        assert_eq!(apic.read(0x10), 0);
    }
}
