//! Code in a file, which nobody runs.

use crate::addr::GuestAddr;
use crate::guest::{Access, GuestMemory, GuestTrap, Width};

/// A file's code as memory: it can be fetched from, and nothing else.
pub struct FileCode<'data> {
    segments: Vec<(u64, &'data [u8])>,
}

impl<'data> FileCode<'data> {
    /// The code in `segments`, each with its address.
    pub fn new(segments: impl IntoIterator<Item = (u64, &'data [u8])>) -> FileCode<'data> {
        FileCode {
            segments: segments.into_iter().collect(),
        }
    }
}

/// What every access but a fetch gets.
const NOT_DATA: GuestTrap = GuestTrap::GeneralProtection;

impl GuestMemory for FileCode<'_> {
    fn fetch(&mut self, addr: GuestAddr, buffer: &mut [u8]) -> Result<usize, GuestTrap> {
        let rest = self.segments.iter().find_map(|(start, data)| {
            let offset = usize::try_from(addr.0.checked_sub(*start)?).ok()?;
            data.get(offset..).filter(|rest| !rest.is_empty())
        });
        let rest = rest.ok_or(NOT_DATA)?;
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn load(&mut self, _: GuestAddr, _: Width) -> Result<u64, GuestTrap> {
        Err(NOT_DATA)
    }

    fn store(&mut self, _: GuestAddr, _: Width, _: u64) -> Result<(), GuestTrap> {
        Err(NOT_DATA)
    }

    fn compare_exchange(
        &mut self,
        _: GuestAddr,
        _: Width,
        _: u64,
        _: u64,
    ) -> Result<u64, GuestTrap> {
        Err(NOT_DATA)
    }

    fn compare_exchange_16(&mut self, _: GuestAddr, _: u128, _: u128) -> Result<u128, GuestTrap> {
        Err(NOT_DATA)
    }

    fn read_bytes(&mut self, _: GuestAddr, _: &mut [u8]) -> Result<(), GuestTrap> {
        Err(NOT_DATA)
    }

    fn write_bytes(&mut self, _: GuestAddr, _: &[u8]) -> Result<(), GuestTrap> {
        Err(NOT_DATA)
    }

    fn direct(&mut self, _: GuestAddr, _: usize, _: Access) -> Option<*mut u8> {
        None
    }
}
