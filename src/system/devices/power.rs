//! How a guest turns the machine off: ACPI's fixed power management registers (ACPI
//! specification 6.5, section 4.8), the keyboard controller's reset line, the reset control
//! register and port 0x92. Also the power management timer.

use serde::{Deserialize, Serialize};

use super::{Ending, Nanos};

/// First port of the power management registers: status and enable (2 bytes each),
/// control (2 bytes), and at [`TIMER`] the timer.
pub const EVENTS: u16 = 0x600;
pub const CONTROL: u16 = 0x604;
pub const TIMER: u16 = 0x608;
/// The type of sleep that means "off", as the DSDT's `\_S5` names it.
pub const SLEEP_OFF: u16 = 0;
const SLEEP_ENABLE: u16 = 1 << 13;
const ACPI_ENABLED: u16 = 1;
/// The timer's clock in Hz (section 4.8.2.1).
const TIMER_FREQUENCY: u128 = 3_579_545;

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Power {
    enabled_events: u16,
    control: u16,
    keyboard_command: u8,
    port_92: u8,
}

impl Power {
    /// Reads 1, 2 or 4 bytes of the power management registers.
    pub fn read(&self, port: u16, now: Nanos) -> u32 {
        match port {
            TIMER..=0x60b => {
                let ticks = u128::from(now) * TIMER_FREQUENCY / 1_000_000_000;
                (ticks as u32 & 0xff_ffff) >> (8 * (port - TIMER))
            }
            CONTROL => u32::from(self.control | ACPI_ENABLED),
            0x605 => u32::from(self.control) >> 8,
            // No fixed event ever happens: the status stays clear.
            EVENTS => u32::from(self.enabled_events) << 16,
            0x602 => u32::from(self.enabled_events),
            _ => 0,
        }
    }

    pub fn write(&mut self, port: u16, value: u32) -> Option<Ending> {
        match port {
            0x602 => self.enabled_events = value as u16,
            CONTROL => {
                self.control = value as u16 & !SLEEP_ENABLE;
                let kind = value as u16 >> 10 & 7;
                if value as u16 & SLEEP_ENABLE != 0 && kind == SLEEP_OFF {
                    return Some(Ending::PowerOff);
                }
            }
            _ => {}
        }
        None
    }

    /// Ports 0x60 and 0x64. There is no keyboard; the controller says that it is idle.
    pub fn read_keyboard(&self, port: u16) -> u8 {
        match (port, self.keyboard_command) {
            // The output port: A20 is open, reset isn't asserted.
            (0x60, 0xd0) => 0x03,
            // The controller's self-test has passed.
            (0x60, 0xaa) => 0x55,
            (0x64, 0xaa | 0xd0) => 0x1d,
            (0x64, _) => 0x1c,
            _ => 0,
        }
    }

    pub fn write_keyboard(&mut self, port: u16, value: u8) -> Option<Ending> {
        if port == 0x64 {
            self.keyboard_command = value;
            // 0xf0 to 0xff pulse output lines that are 0 in the low bits; line 0 is reset.
            return (value >= 0xf0 && value & 1 == 0).then_some(Ending::Reset);
        }
        let command = std::mem::take(&mut self.keyboard_command);
        (command == 0xd1 && value & 1 == 0).then_some(Ending::Reset)
    }

    /// Port 0x92: bit 0 resets, bit 1 is A20, which is always open.
    pub fn read_92(&self) -> u8 {
        self.port_92 | 2
    }

    pub fn write_92(&mut self, value: u8) -> Option<Ending> {
        self.port_92 = value & !1;
        (value & 1 != 0).then_some(Ending::Reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_off_ends_the_machine_and_other_sleeps_do_not() {
        let mut power = Power::default();
        assert_eq!(power.write(CONTROL, 0x2000), Some(Ending::PowerOff));
        assert_eq!(power.write(CONTROL, 0x2400), None);
        assert_eq!(power.read(CONTROL, 0) & 1, 1);
    }

    #[test]
    fn the_keyboard_controller_resets() {
        let mut power = Power::default();
        assert_eq!(power.write_keyboard(0x64, 0xd1), None);
        assert_eq!(power.write_keyboard(0x60, 0xdf), None);
        assert_eq!(power.write_keyboard(0x64, 0xfe), Some(Ending::Reset));
    }

    #[test]
    fn the_timer_counts_24_bits() {
        let power = Power::default();
        assert_eq!(power.read(TIMER, 1_000_000_000), 3_579_545);
        assert_eq!(
            power.read(TIMER, 5_000_000_000),
            (5 * 3_579_545) & 0xff_ffff
        );
    }
}
