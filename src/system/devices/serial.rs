//! COM1, a 16550A: ports 0x3f8 to 0x3ff, interrupt line 4. What the guest sends goes out at
//! once; what is typed waits until the guest's FIFO has room.

use std::cell::Cell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::Write;

use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial as Uart, Trigger};

/// Where the guest's output goes.
pub type Output = Box<dyn Write + Send>;

const DATA: u8 = 0;
const INTERRUPT_ENABLE: u8 = 1;
const LINE_CONTROL: u8 = 3;
const LINE_STATUS: u8 = 5;
const DIVISOR_LATCH: u8 = 0x80;
const DATA_READY: u8 = 1;

/// Set when the UART has raised its line since somebody looked.
#[derive(Default)]
struct Raised(Cell<bool>);

impl Trigger for Raised {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(true);
        Ok(())
    }
}

/// The UART's registers, for a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SerialSnapshot {
    registers: [u8; 9],
    fifo: Vec<u8>,
    waiting: Vec<u8>,
}

/// See the module documentation.
pub struct Serial {
    uart: Uart<Raised, NoEvents, Output>,
    waiting: VecDeque<u8>,
}

impl Serial {
    pub fn new(output: Output) -> Serial {
        Serial {
            uart: Uart::new(Raised::default(), output),
            waiting: VecDeque::new(),
        }
    }

    /// Bytes that somebody typed.
    pub fn type_in(&mut self, bytes: &[u8]) {
        self.waiting.extend(bytes);
        self.feed();
    }

    fn feed(&mut self) {
        let room = self.uart.fifo_capacity().min(self.waiting.len());
        if room != 0 {
            let bytes: Vec<u8> = self.waiting.iter().copied().take(room).collect();
            // In loopback mode nothing is taken; a later access tries again.
            let taken = self.uart.enqueue_raw_bytes(&bytes).unwrap_or(0);
            self.waiting.drain(..taken);
        }
    }

    /// Whether the interrupt line has risen since the last call.
    pub fn take_interrupt(&mut self) -> bool {
        self.uart.interrupt_evt().0.take()
    }

    /// Reads the register at `offset`, 0 to 7.
    pub fn read(&mut self, offset: u8) -> u8 {
        let value = self.uart.read(offset);
        if offset == DATA && self.uart.read(LINE_CONTROL) & DIVISOR_LATCH == 0 {
            self.feed();
            if self.uart.read(LINE_STATUS) & DATA_READY != 0 {
                // The line stays high while data is ready; the model forgets it after the
                // first byte, and remembers when the enabling register is written.
                let enabled = self.uart.read(INTERRUPT_ENABLE);
                let _ = self.uart.write(INTERRUPT_ENABLE, enabled);
            }
        }
        value
    }

    /// Writes the register at `offset`, 0 to 7. A lost output (a closed pipe) is the
    /// reader's wish, and no error of the guest's.
    pub fn write(&mut self, offset: u8, value: u8) {
        let _ = self.uart.write(offset, value);
        self.feed();
    }

    pub fn snapshot(&self) -> SerialSnapshot {
        let state = self.uart.state();
        SerialSnapshot {
            registers: [
                state.baud_divisor_low,
                state.baud_divisor_high,
                state.interrupt_enable,
                state.interrupt_identification,
                state.line_control,
                state.line_status,
                state.modem_control,
                state.modem_status,
                state.scratch,
            ],
            fifo: state.in_buffer,
            waiting: self.waiting.iter().copied().collect(),
        }
    }

    /// # Errors
    /// `output` back, when the state is one that no UART can be in.
    pub fn restore(snapshot: &SerialSnapshot, output: Output) -> Result<Serial, String> {
        let [
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
        ] = snapshot.registers;
        let state = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: snapshot.fifo.clone(),
        };
        let uart = Uart::from_state(&state, Raised::default(), NoEvents, output)
            .map_err(|error| format!("the serial port's state is impossible ({error})"))?;
        Ok(Serial {
            uart,
            waiting: snapshot.waiting.iter().copied().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_bytes_beyond_the_fifo_wait_for_room() {
        let mut serial = Serial::new(Box::new(std::io::sink()));
        serial.write(INTERRUPT_ENABLE, 1);
        let typed: Vec<u8> = (0..200).collect();
        serial.type_in(&typed);
        assert!(serial.take_interrupt());
        let read: Vec<u8> = (0..200).map(|_| serial.read(DATA)).collect();
        assert_eq!(read, typed);
        assert_eq!(serial.read(LINE_STATUS) & DATA_READY, 0);
    }

    #[test]
    fn the_line_rises_again_while_bytes_are_left() {
        let mut serial = Serial::new(Box::new(std::io::sink()));
        serial.write(INTERRUPT_ENABLE, 1);
        serial.type_in(b"ab");
        assert!(serial.take_interrupt());
        serial.read(2);
        serial.read(DATA);
        assert!(serial.take_interrupt());
        serial.read(DATA);
        assert!(!serial.take_interrupt());
    }

    #[test]
    fn a_snapshot_holds_what_was_typed() {
        let mut serial = Serial::new(Box::new(std::io::sink()));
        serial.type_in(&[7; 100]);
        serial.read(DATA);
        let snapshot = serial.snapshot();
        let mut restored = Serial::restore(&snapshot, Box::new(std::io::sink())).expect("restored");
        assert_eq!(restored.snapshot(), snapshot);
        assert_eq!((0..200).filter(|_| restored.read(DATA) == 7).count(), 99);
    }
}
