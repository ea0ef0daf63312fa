//! Physical memory as the engine reaches it: host pointers to RAM pages, the bus for the
//! rest. Upstream: the MMU. Knows nothing of linear addresses.

use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::super::memory::{CodeWatch, GuestRam};
use super::super::vcpu::Bus;
use super::Attention;
use crate::addr::PAGE_SIZE;

/// One contiguous piece of RAM.
#[derive(Clone, Copy, Debug)]
struct Region {
    start: u64,
    len: u64,
    host: *mut u8,
}

/// The guest's RAM and, while a CPU runs, the bus.
pub struct Physical {
    ram: Arc<GuestRam>,
    regions: Vec<Region>,
    bus: Option<NonNull<dyn Bus>>,
    attention: Arc<Attention>,
    /// Instructions executed so far, those of a block counted when it begins.
    pub executed: u64,
    /// As many of them as the bus knows of.
    reported: u64,
}

impl Physical {
    pub fn new(ram: Arc<GuestRam>, attention: Arc<Attention>) -> Physical {
        let region = |region: &vm_memory::GuestRegionMmap<CodeWatch>| {
            let host = region.get_host_address(MemoryRegionAddress(0));
            Region {
                start: region.start_addr().0,
                // What doesn't fill a page is as if it weren't there.
                len: region.len() & !(PAGE_SIZE - 1),
                host: host.expect("a mapping of this process"),
            }
        };
        Physical {
            regions: ram.iter().map(region).collect(),
            ram,
            bus: None,
            attention,
            executed: 0,
            reported: 0,
        }
    }

    /// The host address of a physical one, valid to the end of its page; `None` if it isn't
    /// RAM.
    #[inline]
    pub fn host(&self, addr: u64) -> Option<*mut u8> {
        for region in &self.regions {
            let offset = addr.wrapping_sub(region.start);
            if offset < region.len {
                // SAFETY: within the region's mapping, which `ram` keeps alive.
                return Some(unsafe { region.host.add(offset as usize) });
            }
        }
        None
    }

    /// The watch over the page that holds RAM address `addr`, and the page's number in it.
    pub fn watch(&self, addr: u64) -> Option<(&CodeWatch, usize)> {
        let region = self.ram.find_region(vm_memory::GuestAddress(addr))?;
        let offset = addr - region.start_addr().0;
        Some(((**region).bitmap(), (offset / PAGE_SIZE) as usize))
    }

    /// Physical pages that devices wrote although they hold code.
    pub fn take_changed_code(&self) -> Vec<u64> {
        let mut changed = Vec::new();
        for region in self.ram.iter() {
            if (**region).bitmap().has_changed() {
                let start = region.start_addr().0;
                let pages = (**region).bitmap().take_changed();
                changed.extend(pages.iter().map(|&page| start + page as u64 * PAGE_SIZE));
            }
        }
        changed
    }

    /// Attaches the bus for the time of a run.
    ///
    /// # Safety
    /// `bus` outlives the next [`Physical::detach`], and nobody else uses it until then.
    pub unsafe fn attach(&mut self, bus: &mut dyn Bus) {
        let bus: NonNull<dyn Bus + '_> = NonNull::from(bus);
        // SAFETY: only the lifetime changes; by contract it isn't used beyond `detach`.
        self.bus = Some(unsafe {
            std::mem::transmute::<NonNull<dyn Bus + '_>, NonNull<dyn Bus + 'static>>(bus)
        });
    }

    pub fn detach(&mut self) {
        self.bus = None;
    }

    /// The bus hears of the instructions from here on.
    pub fn begin_counting(&mut self) {
        self.reported = self.executed;
    }

    /// Tells the bus of the instructions since the last time.
    pub fn report(&mut self) {
        let ran = self.executed.wrapping_sub(self.reported);
        self.reported = self.executed;
        self.attached().instructions_ran(ran);
    }

    /// The bus, for an access that may change interrupt lines.
    pub fn device(&mut self) -> &mut dyn Bus {
        self.attention.raise(Attention::LOOK);
        self.bus()
    }

    /// The bus, with its clock up to date.
    pub fn bus(&mut self) -> &mut dyn Bus {
        self.report();
        self.attached()
    }

    fn attached(&mut self) -> &mut dyn Bus {
        let mut bus = self.bus.expect("a CPU runs only with a bus");
        // SAFETY: attached for the time of this run, and lent out through `&mut self` alone.
        unsafe { bus.as_mut() }
    }

    /// Reads a page-table entry of `bytes` (4 or 8). What isn't RAM reads as not present.
    #[inline]
    pub fn entry(&self, addr: u64, bytes: u64) -> u64 {
        match self.host(addr) {
            // SAFETY: aligned and in RAM, since entries don't cross pages; devices may write
            // it meanwhile, hence volatile.
            Some(host) if bytes == 8 => unsafe { host.cast::<u64>().read_volatile() },
            // SAFETY: as above.
            Some(host) => unsafe { u64::from(host.cast::<u32>().read_volatile()) },
            None => 0,
        }
    }

    /// Sets bits of a page-table entry, as the CPU does: atomically.
    #[inline]
    pub fn set_entry_bits(&self, addr: u64, bits: u8) {
        if let Some(host) = self.host(addr) {
            // SAFETY: a byte of RAM; other CPUs and devices access it as bytes or atomically.
            let byte = unsafe { std::sync::atomic::AtomicU8::from_ptr(host) };
            byte.fetch_or(bits, std::sync::atomic::Ordering::SeqCst);
        }
    }
}
