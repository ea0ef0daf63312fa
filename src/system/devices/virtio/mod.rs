//! A virtio device behind memory-mapped registers (Virtual I/O Device specification 1.2,
//! section 4.2.2): the transport. What the device does with its one queue is
//! [`block`]'s. A guest's nonsense makes the device ask to be reset, as the specification
//! wants it.

pub mod block;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};

use crate::system::memory::GuestRam;
use block::Disk;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"TMPR");
const QUEUE_SIZE: u16 = 256;
/// VIRTIO_F_VERSION_1.
const MODERN: u64 = 1 << 32;

/// Device status (section 2.1).
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;

/// Interrupt status.
const USED_BUFFER: u32 = 1;
const CONFIGURATION: u32 = 2;

/// The driver's choices and the device's progress.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Registers {
    status: u32,
    interrupt: u32,
    features_page: u32,
    driver_page: u32,
    driver_features: u64,
    selected_queue: u32,
    size: u16,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
    next_available: u16,
    next_used: u16,
}

/// A disk behind the transport.
pub struct BlockDevice {
    pub registers: Registers,
    disk: Disk,
}

fn set_low(value: &mut u64, low: u32) {
    *value = *value & !0xffff_ffff | u64::from(low);
}

fn set_high(value: &mut u64, high: u32) {
    *value = *value & 0xffff_ffff | u64::from(high) << 32;
}

impl BlockDevice {
    pub fn new(disk: Disk, registers: Registers) -> BlockDevice {
        BlockDevice { registers, disk }
    }

    /// The level of the interrupt line.
    pub fn line(&self) -> bool {
        self.registers.interrupt != 0
    }

    fn features(&self) -> u64 {
        MODERN | self.disk.features()
    }

    /// Reads 1 to 8 bytes at `offset` in the device's page.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if offset >= 0x100 {
            self.disk.read_config(offset - 0x100, data);
            return;
        }
        let registers = &self.registers;
        let first = registers.selected_queue == 0;
        let value = match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => block::DEVICE_ID,
            0x0c => VENDOR,
            0x10 => match registers.features_page {
                0 => self.features() as u32,
                1 => (self.features() >> 32) as u32,
                _ => 0,
            },
            0x34 if first => u32::from(QUEUE_SIZE),
            0x44 if first => u32::from(registers.ready),
            0x60 => registers.interrupt,
            0x70 => registers.status,
            // The generation of the configuration, which never changes, and the rest.
            _ => 0,
        };
        let bytes = value.to_le_bytes();
        data.fill(0);
        let len = data.len().min(4);
        data[..len].copy_from_slice(&bytes[..len]);
    }

    /// Writes a 32-bit register. Requests are served at once.
    pub fn write(&mut self, offset: u64, value: u32, ram: &GuestRam) {
        let features = self.features();
        let registers = &mut self.registers;
        let first = registers.selected_queue == 0;
        match offset {
            0x14 => registers.features_page = value,
            0x20 => match registers.driver_page {
                0 => set_low(&mut registers.driver_features, value),
                1 => set_high(&mut registers.driver_features, value),
                _ => {}
            },
            0x24 => registers.driver_page = value,
            0x30 => registers.selected_queue = value,
            0x38 if first => registers.size = value.min(u32::from(u16::MAX)) as u16,
            0x44 if first => registers.ready = value & 1 != 0,
            0x50 if value == 0 => self.serve(ram),
            0x64 => registers.interrupt &= !value,
            0x70 => self.set_status(value, features),
            0x80 if first => set_low(&mut registers.descriptors, value),
            0x84 if first => set_high(&mut registers.descriptors, value),
            0x90 if first => set_low(&mut registers.available, value),
            0x94 if first => set_high(&mut registers.available, value),
            0xa0 if first => set_low(&mut registers.used, value),
            0xa4 if first => set_high(&mut registers.used, value),
            _ => {}
        }
    }

    fn set_status(&mut self, value: u32, features: u64) {
        let registers = &mut self.registers;
        if value == 0 {
            *registers = Registers::default();
            return;
        }
        registers.status = value & 0xff | registers.status & NEEDS_RESET;
        let chosen = registers.driver_features;
        let acceptable = chosen & !features == 0 && chosen & MODERN != 0;
        if value & FEATURES_OK != 0 && !acceptable {
            registers.status &= !FEATURES_OK;
        }
    }

    /// Something that no driver does: nothing more happens until it resets the device.
    fn give_up(&mut self) {
        self.registers.status |= NEEDS_RESET;
        self.registers.interrupt |= CONFIGURATION;
    }

    fn serve(&mut self, ram: &GuestRam) {
        let registers = &self.registers;
        if registers.status & (DRIVER_OK | NEEDS_RESET) != DRIVER_OK || !registers.ready {
            return;
        }
        let state = QueueState {
            max_size: QUEUE_SIZE,
            next_avail: registers.next_available,
            next_used: registers.next_used,
            event_idx_enabled: false,
            size: registers.size,
            ready: registers.ready,
            desc_table: registers.descriptors,
            avail_ring: registers.available,
            used_ring: registers.used,
        };
        let queue = Queue::try_from(state)
            .ok()
            .filter(|queue| queue.is_valid(ram));
        let Some(mut queue) = queue else {
            self.give_up();
            return;
        };
        // No more than a queue's worth at once: a guest can't keep the device busy forever.
        let mut served = 0;
        while served < QUEUE_SIZE {
            let Ok(mut chains) = queue.iter(ram) else {
                self.give_up();
                return;
            };
            let Some(chain) = chains.next() else {
                break;
            };
            let head = chain.head_index();
            let Some(written) = self.disk.serve(ram, chain) else {
                self.give_up();
                return;
            };
            if queue.add_used(ram, head, written).is_err() {
                self.give_up();
                return;
            }
            served += 1;
        }
        self.registers.next_available = queue.next_avail();
        self.registers.next_used = queue.next_used();
        if served != 0 {
            self.registers.interrupt |= USED_BUFFER;
        }
    }
}
