//! The guest's physical memory, and the watch over those of its pages that hold code which
//! an engine has predecoded. Devices write through vm-memory, which reports every write to
//! the watch; the software engine's own stores ask it before they write.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

use crate::addr::PAGE_SIZE;

/// The guest's RAM, shared by engines, devices and boot loaders. Physical addresses that no
/// region covers are devices' (or nobody's).
pub type GuestRam = GuestMemoryMmap<CodeWatch>;

const PLAIN: u8 = 0;
const HOLDS_CODE: u8 = 1;
const CHANGED: u8 = 2;

/// One memory region's pages that hold predecoded code.
#[derive(Debug, Default)]
pub struct CodeWatch {
    pages: Box<[AtomicU8]>,
    any_changed: AtomicBool,
}

impl CodeWatch {
    /// From now on writes to the page (by number within the region) are noticed.
    pub fn watch(&self, page: usize) {
        let _ = self.pages[page].compare_exchange(
            PLAIN,
            HOLDS_CODE,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }

    /// The page holds no code any more.
    pub fn unwatch(&self, page: usize) {
        self.pages[page].store(PLAIN, Ordering::Relaxed);
    }

    #[inline]
    pub fn is_watched(&self, page: usize) -> bool {
        self.pages[page].load(Ordering::Relaxed) != PLAIN
    }

    /// The watched pages that were written since the last call. They stay watched.
    pub fn take_changed(&self) -> Vec<usize> {
        if !self.any_changed.load(Ordering::Relaxed) {
            return Vec::new();
        }
        self.any_changed.store(false, Ordering::SeqCst);
        let changed = |(page, state): (usize, &AtomicU8)| {
            state
                .compare_exchange(CHANGED, HOLDS_CODE, Ordering::SeqCst, Ordering::Relaxed)
                .ok()
                .map(|_| page)
        };
        self.pages.iter().enumerate().filter_map(changed).collect()
    }

    /// Whether [`CodeWatch::take_changed`] has something to say.
    #[inline]
    pub fn has_changed(&self) -> bool {
        self.any_changed.load(Ordering::Relaxed)
    }
}

impl<'a> WithBitmapSlice<'a> for CodeWatch {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for CodeWatch {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let first = offset / PAGE_SIZE as usize;
        let last = (offset + len.max(1) - 1) / PAGE_SIZE as usize;
        let end = (last + 1).min(self.pages.len());
        for state in self.pages.get(first..end).unwrap_or_default() {
            let noticed =
                state.compare_exchange(HOLDS_CODE, CHANGED, Ordering::SeqCst, Ordering::Relaxed);
            if noticed.is_ok() {
                self.any_changed.store(true, Ordering::SeqCst);
            }
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = self.pages.get(offset / PAGE_SIZE as usize);
        page.is_some_and(|state| state.load(Ordering::Relaxed) == CHANGED)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for CodeWatch {
    fn with_len(len: usize) -> Self {
        let pages = len.div_ceil(PAGE_SIZE as usize);
        CodeWatch {
            pages: (0..pages).map(|_| AtomicU8::new(PLAIN)).collect(),
            any_changed: AtomicBool::new(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    #[test]
    fn a_devices_write_to_a_page_with_code_is_noticed_and_others_are_not() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x8000)]).expect("memory");
        let region = ram.find_region(GuestAddress(0)).expect("the region");
        let watch = (**region).bitmap();
        watch.watch(3);
        ram.write_slice(&[1; 0x800], GuestAddress(0x1000))
            .expect("write");
        assert!(!watch.has_changed());
        ram.write_slice(&[1; 0x1800], GuestAddress(0x2000))
            .expect("write");
        assert!(watch.has_changed());
        assert_eq!(watch.take_changed(), [3]);
        assert!(watch.take_changed().is_empty());
    }
}
