//! The real-time clock and its CMOS memory (Motorola MC146818): ports 0x70 and 0x71. The
//! clock runs from the date that the machine was started with. Its alarm and periodic
//! interrupts are not there; kernels use other timers.

use serde::{Deserialize, Serialize};

use super::Nanos;

const SECONDS: u8 = 0;
const MINUTES: u8 = 2;
const HOURS: u8 = 4;
const WEEKDAY: u8 = 6;
const DAY: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
const STATUS_A: u8 = 10;
const STATUS_B: u8 = 11;
const STATUS_C: u8 = 12;
const STATUS_D: u8 = 13;
const CENTURY: u8 = 0x32;

/// Status B: counts are binary instead of decimal.
const BINARY: u8 = 4;
/// Status B: hours from 0 to 23.
const HOURS_24: u8 = 2;

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cmos {
    index: u8,
    memory: Vec<u8>,
    /// Seconds since 1970 when the machine's time was 0.
    epoch: i64,
}

impl Cmos {
    /// `epoch`: seconds since 1970 at machine time 0. `memory`: bytes of guest memory.
    pub fn new(epoch: i64, memory: u64) -> Cmos {
        let mut bytes = vec![0u8; 128];
        bytes[usize::from(STATUS_A)] = 0x26;
        bytes[usize::from(STATUS_B)] = HOURS_24;
        bytes[usize::from(STATUS_D)] = 0x80;
        // KiB below 1 MiB, KiB above 1 MiB, and 64-KiB units above 16 MiB, as PC firmware says.
        let above_1 = (memory.saturating_sub(1 << 20) >> 10).min(0xffff) as u16;
        let above_16 = (memory.saturating_sub(16 << 20) >> 16).min(0xffff) as u16;
        for (at, value) in [
            (0x15, 640),
            (0x17, above_1),
            (0x30, above_1),
            (0x34, above_16),
        ] {
            bytes[at..at + 2].copy_from_slice(&u16::to_le_bytes(value));
        }
        Cmos {
            index: 0,
            memory: bytes,
            epoch,
        }
    }

    pub fn read(&self, port: u16, now: Nanos) -> u8 {
        if port == 0x70 {
            return 0xff;
        }
        let date = Date::at(self.epoch + (now / 1_000_000_000) as i64);
        match self.index {
            SECONDS => self.number(date.second),
            MINUTES => self.number(date.minute),
            HOURS => self.hour(date.hour),
            WEEKDAY => self.number(date.weekday),
            DAY => self.number(date.day),
            MONTH => self.number(date.month),
            YEAR => self.number((date.year % 100) as u8),
            CENTURY => self.number((date.year / 100) as u8),
            // The update in progress lasts 244 us in each second.
            STATUS_A => {
                let updating = now % 1_000_000_000 >= 999_756_000;
                self.memory[usize::from(STATUS_A)] | u8::from(updating) << 7
            }
            STATUS_C => 0,
            index => self.memory[usize::from(index)],
        }
    }

    /// Setting the clock is ignored: it is the host's.
    pub fn write(&mut self, port: u16, value: u8) {
        if port == 0x70 {
            self.index = value & 0x7f;
            return;
        }
        match self.index {
            STATUS_A => self.memory[usize::from(STATUS_A)] = value & 0x7f,
            STATUS_C | STATUS_D => {}
            index => self.memory[usize::from(index)] = value,
        }
    }

    fn number(&self, value: u8) -> u8 {
        if self.memory[usize::from(STATUS_B)] & BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn hour(&self, hour: u8) -> u8 {
        if self.memory[usize::from(STATUS_B)] & HOURS_24 != 0 {
            return self.number(hour);
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        let hour = if hour.is_multiple_of(12) {
            12
        } else {
            hour % 12
        };
        self.number(hour) | afternoon
    }
}

#[derive(PartialEq, Eq, Debug)]
struct Date {
    year: u16,
    month: u8,
    day: u8,
    /// Sunday is 1.
    weekday: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl Date {
    /// The Gregorian date in UTC, by counting eras of 400 years from 1 March.
    fn at(seconds: i64) -> Date {
        let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let from_march = days + 719_468;
        let era = from_march.div_euclid(146_097);
        let day_of_era = from_march.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let month = if shifted < 10 {
            shifted + 3
        } else {
            shifted - 9
        };
        Date {
            year: (year_of_era + era * 400 + i64::from(month <= 2)) as u16,
            month: month as u8,
            day: (day_of_year - (153 * shifted + 2) / 5 + 1) as u8,
            weekday: ((days + 4).rem_euclid(7) + 1) as u8,
            hour: (rest / 3600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(cmos: &mut Cmos, index: u8, now: Nanos) -> u8 {
        cmos.write(0x70, index);
        cmos.read(0x71, now)
    }

    #[test]
    fn the_date_is_the_hosts_in_decimal_digits() {
        // 2024-02-29 23:59:58 UTC, a Thursday.
        let mut cmos = Cmos::new(1_709_251_198, 64 << 20);
        let date = [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS];
        let read_all = |cmos: &mut Cmos, now| date.map(|index| read(cmos, index, now));
        let first = [0x20, 0x24, 2, 0x29, 5, 0x23, 0x59, 0x58];
        assert_eq!(read_all(&mut cmos, 0), first);
        let second = [0x20, 0x24, 3, 1, 6, 0, 0, 0];
        assert_eq!(read_all(&mut cmos, 2_000_000_000), second);
    }

    #[test]
    fn twelve_hour_counts_have_no_hour_zero() {
        let mut cmos = Cmos::new(0, 64 << 20);
        cmos.write(0x70, STATUS_B);
        cmos.write(0x71, BINARY);
        assert_eq!(read(&mut cmos, HOURS, 0), 12);
        assert_eq!(read(&mut cmos, HOURS, 13 * 3_600_000_000_000), 0x81);
    }

    #[test]
    fn firmware_bytes_say_how_much_memory_there_is() {
        let mut cmos = Cmos::new(0, 64 << 20);
        let units = u16::from_le_bytes([read(&mut cmos, 0x34, 0), read(&mut cmos, 0x35, 0)]);
        assert_eq!(units, 48 * 16);
    }
}
