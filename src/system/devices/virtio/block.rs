//! The block device (Virtual I/O Device specification 1.2, section 5.2): reads, writes and
//! flushes of a file, in order and at once.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress};

use crate::system::memory::GuestRam;

pub const DEVICE_ID: u32 = 2;
const SECTOR: u64 = 512;

/// Feature bits: the disk can't be written; it can be flushed.
const READ_ONLY: u64 = 1 << 5;
const FLUSH: u64 = 1 << 9;

const HEADER_BYTES: usize = 16;
const IDENTIFIER: &[u8; 20] = b"temper disk\0\0\0\0\0\0\0\0\0";

/// Bytes that are copied at once.
const PIECE: usize = 64 << 10;

/// How a request ended.
#[derive(Clone, Copy)]
enum Status {
    Ok = 0,
    Failed = 1,
    Unsupported = 2,
}

/// The file behind a block device.
pub struct Disk {
    file: File,
    sectors: u64,
    read_only: bool,
}

/// The buffers of one request in one direction, used from the front.
#[derive(Default)]
struct Buffers(Vec<(u64, u64)>);

impl Buffers {
    fn len(&self) -> u64 {
        self.0.iter().map(|&(_, len)| len).sum()
    }

    /// The next piece of at most `limit` bytes.
    fn take(&mut self, limit: u64) -> Option<(GuestAddress, usize)> {
        loop {
            let (addr, len) = self.0.first_mut()?;
            if *len == 0 {
                self.0.remove(0);
                continue;
            }
            let taken = (*len).min(limit);
            let at = GuestAddress(*addr);
            // A range that wraps around is refused where it is used.
            *addr = addr.wrapping_add(taken);
            *len -= taken;
            return Some((at, taken as usize));
        }
    }
}

impl Disk {
    /// A disk with the file's content; a rest of less than a sector isn't seen.
    ///
    /// # Errors
    /// The file's length can't be told.
    pub fn new(file: File, read_only: bool) -> io::Result<Disk> {
        let sectors = file.metadata()?.len() / SECTOR;
        Ok(Disk {
            file,
            sectors,
            read_only,
        })
    }

    pub(super) fn features(&self) -> u64 {
        FLUSH | if self.read_only { READ_ONLY } else { 0 }
    }

    pub(super) fn read_config(&self, offset: u64, data: &mut [u8]) {
        let capacity = self.sectors.to_le_bytes();
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = *capacity.get(offset as usize + index).unwrap_or(&0);
        }
    }

    /// Serves one request; how many bytes were written into its buffers. `None`: it is none.
    pub(super) fn serve(&self, ram: &GuestRam, chain: DescriptorChain<&GuestRam>) -> Option<u32> {
        let (mut sent, mut wanted) = (Buffers::default(), Buffers::default());
        for descriptor in chain {
            let buffers = if descriptor.is_write_only() {
                &mut wanted
            } else {
                &mut sent
            };
            let len = u64::from(descriptor.len());
            buffers.0.push((descriptor.addr().0, len));
        }
        let mut header = [0; HEADER_BYTES];
        let mut filled = 0;
        while filled < HEADER_BYTES {
            let (at, len) = sent.take((HEADER_BYTES - filled) as u64)?;
            ram.read_slice(&mut header[filled..filled + len], at).ok()?;
            filled += len;
        }
        let kind = u32::from_le_bytes(header[..4].try_into().ok()?);
        let sector = u64::from_le_bytes(header[8..].try_into().ok()?);
        // The last byte that the driver lets us write is the status.
        let space = wanted.len().checked_sub(1)?;
        let mut answer = Buffers::default();
        let mut left = space;
        while left != 0 {
            let (at, len) = wanted.take(left)?;
            answer.0.push((at.0, len as u64));
            left -= len as u64;
        }
        let (status_at, _) = wanted.take(1)?;
        let (status, written) = match kind {
            0 => self.read(ram, sector, answer),
            1 => (self.write(ram, sector, sent), 0),
            4 => match self.file.sync_data() {
                Ok(()) => (Status::Ok, 0),
                Err(_) => (Status::Failed, 0),
            },
            8 => identify(ram, answer),
            _ => (Status::Unsupported, 0),
        };
        ram.write_slice(&[status as u8], status_at).ok()?;
        u32::try_from(written + 1).ok()
    }

    fn has(&self, sector: u64, bytes: u64) -> bool {
        bytes.is_multiple_of(SECTOR)
            && sector
                .checked_add(bytes / SECTOR)
                .is_some_and(|end| end <= self.sectors)
    }

    fn read(&self, ram: &GuestRam, sector: u64, mut into: Buffers) -> (Status, u64) {
        if !self.has(sector, into.len()) {
            return (Status::Failed, 0);
        }
        let mut offset = sector * SECTOR;
        let mut piece = vec![0; PIECE];
        let mut written = 0;
        while let Some((at, len)) = into.take(PIECE as u64) {
            let copied = self.file.read_exact_at(&mut piece[..len], offset).is_ok()
                && ram.write_slice(&piece[..len], at).is_ok();
            if !copied {
                return (Status::Failed, written);
            }
            offset += len as u64;
            written += len as u64;
        }
        (Status::Ok, written)
    }

    fn write(&self, ram: &GuestRam, sector: u64, mut from: Buffers) -> Status {
        if self.read_only || !self.has(sector, from.len()) {
            return Status::Failed;
        }
        let mut offset = sector * SECTOR;
        let mut piece = vec![0; PIECE];
        while let Some((at, len)) = from.take(PIECE as u64) {
            let copied = ram.read_slice(&mut piece[..len], at).is_ok()
                && self.file.write_all_at(&piece[..len], offset).is_ok();
            if !copied {
                return Status::Failed;
            }
            offset += len as u64;
        }
        Status::Ok
    }
}

fn identify(ram: &GuestRam, mut into: Buffers) -> (Status, u64) {
    let mut done = 0;
    while done < IDENTIFIER.len()
        && let Some((at, len)) = into.take((IDENTIFIER.len() - done) as u64)
    {
        if ram.write_slice(&IDENTIFIER[done..done + len], at).is_err() {
            return (Status::Failed, done as u64);
        }
        done += len;
    }
    (Status::Ok, done as u64)
}

#[cfg(test)]
mod tests {
    use super::super::{BlockDevice, Registers};
    use super::*;
    use crate::system::boot::map;
    use std::io::Write;

    const DESCRIPTORS: u64 = 0x1000;
    const AVAILABLE: u64 = 0x2000;
    const USED: u64 = 0x3000;
    const HEADER: u64 = 0x4000;
    const DATA: u64 = 0x5000;
    const STATUS: u64 = 0x6000;

    fn device(read_only: bool) -> (BlockDevice, GuestRam) {
        let mut file = tempfile::tempfile().expect("temporary file");
        for sector in 0..8u8 {
            file.write_all(&[sector; 512]).expect("written");
        }
        let disk = Disk::new(file, read_only).expect("disk");
        let ram = map::new_ram(1 << 20).expect("memory");
        let mut device = BlockDevice::new(disk, Registers::default());
        let setup = [
            (0x70, 1),
            (0x70, 3),
            (0x24, 1),
            (0x20, 1),
            (0x70, 11),
            (0x38, 8),
            (0x80, DESCRIPTORS as u32),
            (0x90, AVAILABLE as u32),
            (0xa0, USED as u32),
            (0x44, 1),
            (0x70, 15),
        ];
        for (offset, value) in setup {
            device.write(offset, value, &ram);
        }
        (device, ram)
    }

    fn put(ram: &GuestRam, at: u64, bytes: &[u8]) {
        ram.write_slice(bytes, GuestAddress(at)).expect("in memory");
    }

    fn descriptor(ram: &GuestRam, index: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        put(ram, DESCRIPTORS + index * 16, &bytes);
    }

    /// One request of `len` bytes; its status.
    fn request(device: &mut BlockDevice, ram: &GuestRam, kind: u32, sector: u64, len: u32) -> u8 {
        put(ram, HEADER, &kind.to_le_bytes());
        put(ram, HEADER + 8, &sector.to_le_bytes());
        put(ram, STATUS, &[0xff]);
        descriptor(ram, 0, HEADER, 16, 1, 1);
        descriptor(ram, 1, DATA, len, if kind == 1 { 1 } else { 3 }, 2);
        descriptor(ram, 2, STATUS, 1, 2, 0);
        let mut index = [0; 2];
        ram.read_slice(&mut index, GuestAddress(AVAILABLE + 2))
            .expect("in memory");
        let index = u16::from_le_bytes(index);
        put(ram, AVAILABLE + 4 + u64::from(index % 8) * 2, &[0, 0]);
        put(ram, AVAILABLE + 2, &(index + 1).to_le_bytes());
        device.write(0x50, 0, ram);
        let mut status = [0];
        ram.read_slice(&mut status, GuestAddress(STATUS))
            .expect("in memory");
        status[0]
    }

    #[test]
    fn sectors_are_read_and_written() {
        let (mut device, ram) = device(false);
        assert_eq!(request(&mut device, &ram, 0, 3, 1024), 0);
        assert!(device.line());
        device.write(0x64, 1, &ram);
        assert!(!device.line());
        let mut data = [0; 1024];
        ram.read_slice(&mut data, GuestAddress(DATA))
            .expect("in memory");
        assert_eq!((data[0], data[511], data[512]), (3, 3, 4));
        put(&ram, DATA, &[9; 512]);
        assert_eq!(request(&mut device, &ram, 1, 5, 512), 0);
        put(&ram, DATA, &[0; 512]);
        assert_eq!(request(&mut device, &ram, 0, 5, 512), 0);
        ram.read_slice(&mut data, GuestAddress(DATA))
            .expect("in memory");
        assert_eq!(data[0], 9);
    }

    #[test]
    fn what_is_not_there_fails() {
        let (mut device, ram) = device(true);
        assert_eq!(request(&mut device, &ram, 0, 8, 512), 1);
        assert_eq!(request(&mut device, &ram, 0, u64::MAX, 512), 1);
        assert_eq!(request(&mut device, &ram, 0, 0, 100), 1);
        assert_eq!(request(&mut device, &ram, 1, 0, 512), 1);
        assert_eq!(request(&mut device, &ram, 99, 0, 512), 2);
    }

    #[test]
    fn nonsense_makes_the_device_ask_for_a_reset() {
        let (mut device, ram) = device(false);
        descriptor(&ram, 0, u64::MAX - 3, 16, 0, 0);
        put(&ram, AVAILABLE + 2, &1u16.to_le_bytes());
        device.write(0x50, 0, &ram);
        let mut status = [0; 4];
        device.read(0x70, &mut status);
        assert_eq!(status[0] & 64, 64);
        device.write(0x70, 0, &ram);
        device.read(0x70, &mut status);
        assert_eq!(status, [0; 4]);
    }
}
