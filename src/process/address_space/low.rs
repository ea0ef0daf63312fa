//! Where guest code goes: below 2 GiB, so that indirect branches and returns stay cheap and
//! RIP-relative operands can be re-encoded. Images take the lower part upwards-free space,
//! libraries pack downwards from a random base near the top, as the kernel packs mmaps.

use std::ops::Range;

use super::vma::VmaMap;
use crate::addr::{GuestAddr, PAGE_SIZE};

/// Executable memory above this needs exact indirect branches.
pub const LOW_LIMIT: GuestAddr = GuestAddr(0x8000_0000);

/// Where Temper places guest code; what lies between it and the limit is Temper's own.
pub const LOW_CODE: Range<GuestAddr> = GuestAddr(0x1000_0000)..GuestAddr(0x7000_0000);

/// The code cache and the shadow map of indirect branches: never the guest's.
pub const RESERVED: Range<GuestAddr> = LOW_CODE.end..GuestAddr(0x4_8000_0000);

/// Images go below this, libraries and other code above while there is room.
const IMAGE_END: u64 = 0x4000_0000;

/// Requests for data larger than this aren't worth the scarce low addresses.
pub const LARGEST_LOW: u64 = 0x2000_0000;

/// The random part of where things go; all zero without address randomization.
#[derive(Clone, Debug)]
pub struct Placement {
    image: u64,
    library_top: u64,
    /// Bytes from the end of a fixed image to its break.
    pub brk_gap: u64,
    /// The break of images that can be anywhere; high, far from all that the kernel places.
    pub brk_high: GuestAddr,
}

impl Placement {
    /// `random`: four random words, or `None` without address randomization.
    pub fn new(random: Option<[u64; 4]>) -> Placement {
        let pages = |random: u64, bytes: u64| (random % (bytes / PAGE_SIZE)) * PAGE_SIZE;
        let [image, library, gap, high] = random.unwrap_or([0; 4]);
        Placement {
            image: LOW_CODE.start.0 + pages(image, 0x1800_0000),
            library_top: LOW_CODE.end.0 - pages(library, 0x1000_0000),
            // The kernel's ranges: arch/x86/kernel/process.c arch_randomize_brk.
            brk_gap: pages(gap, 0x200_0000),
            brk_high: GuestAddr(0x4100_0000_0000 + pages(high, 1 << 40)),
        }
    }

    /// Candidates for a position-independent program, best first.
    pub fn image(&self, map: &VmaMap, bytes: u64, align: u64) -> Option<GuestAddr> {
        let wanted = GuestAddr(self.image).0.next_multiple_of(align);
        let range = GuestAddr(wanted)..GuestAddr(wanted.checked_add(bytes)?);
        if range.end <= LOW_CODE.end && map.within(range).is_empty() {
            return Some(GuestAddr(wanted));
        }
        self.library(map, bytes, align)
    }

    /// Where a library or other code of `bytes` bytes can go, if anywhere.
    pub fn library(&self, map: &VmaMap, bytes: u64, align: u64) -> Option<GuestAddr> {
        let windows = [
            GuestAddr(IMAGE_END)..GuestAddr(self.library_top),
            GuestAddr(self.library_top)..LOW_CODE.end,
            LOW_CODE.start..GuestAddr(IMAGE_END),
        ];
        windows
            .into_iter()
            .find_map(|window| map.highest_gap(window, bytes, align))
    }
}

#[cfg(test)]
mod tests {
    use super::super::vma::{Attributes, Prot};
    use super::*;

    #[test]
    fn libraries_pack_downwards_and_never_leave_the_low_range() {
        let placement = Placement::new(Some([5, 7, 11, 13]));
        let mut map = VmaMap::default();
        let mut last = GuestAddr(u64::MAX);
        let size = 0x800_0000;
        let mut placed = 0;
        while let Some(at) = placement.library(&map, size, PAGE_SIZE) {
            assert!(at >= LOW_CODE.start && at.0 + size <= LOW_CODE.end.0);
            assert!(placed > 3 || at < last);
            last = at;
            placed += 1;
            let range = at..at.offset(size as i64);
            map.insert(range, Attributes::anonymous(Prot::READ));
        }
        // The random base may cut two windows short of a whole slot.
        assert!(placed >= 10, "{placed}");
    }

    #[test]
    fn without_randomization_places_are_the_same() {
        let map = VmaMap::default();
        let image = || Placement::new(None).image(&map, 0x1000, PAGE_SIZE);
        assert_eq!(image(), Some(LOW_CODE.start));
        assert_eq!(image(), image());
    }
}
