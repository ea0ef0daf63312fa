//! Temper's heap. It lives in its guest's address space, so it takes memory by mappings of
//! its own, never by the host's brk; and it takes it in pieces that the kernel fills at
//! once, because a page fault costs several times what clearing the page does and a short
//! run makes thousands.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use dlmalloc::{Allocator, Dlmalloc};

use super::Lock;

/// Bytes taken from the kernel at a time, at least.
const PIECE: usize = 256 << 10;

/// The global allocator of the `temper` program. Its lock must not allocate.
pub struct Heap {
    lock: Lock,
    heap: UnsafeCell<Dlmalloc<Mappings>>,
}

// SAFETY: the heap is reached under the lock alone.
unsafe impl Sync for Heap {}

/// The heap while its lock is held.
struct Held<'a>(&'a Heap);

impl Default for Heap {
    fn default() -> Self {
        Self::new()
    }
}

impl Heap {
    pub const fn new() -> Heap {
        let mut heap = Dlmalloc::new_with_allocator(Mappings);
        assert!(heap.set_granularity(PIECE));
        Heap {
            lock: Lock::new(),
            heap: UnsafeCell::new(heap),
        }
    }

    fn lock(&self) -> Held<'_> {
        if self.lock.is_own() {
            broken();
        }
        self.lock.acquire();
        Held(self)
    }
}

impl Deref for Held<'_> {
    type Target = Dlmalloc<Mappings>;

    fn deref(&self) -> &Self::Target {
        // SAFETY: the lock is held as long as this lives.
        unsafe { &*self.0.heap.get() }
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        // SAFETY: as above.
        unsafe { &mut *self.0.heap.get() }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.lock.release();
    }
}

/// A child that shared this memory was killed while it changed the heap.
/// How far below this program its heap grows down: away from where the kernel puts what the
/// guest maps, whose holes are to stay holes.
const DISTANCE: usize = 2 << 40;

/// Where the next piece of so many bytes is to lie.
fn next_place(size: usize) -> *mut libc::c_void {
    static LOWEST: AtomicUsize = AtomicUsize::new(0);
    static ANCHOR: u8 = 0;
    const PAGE: usize = 4096;
    let start = (&raw const ANCHOR as usize).saturating_sub(DISTANCE) & !(PAGE - 1);
    let _ = LOWEST.compare_exchange(0, start, Ordering::Relaxed, Ordering::Relaxed);
    let size = size.next_multiple_of(PAGE);
    let before = LOWEST.fetch_sub(size, Ordering::Relaxed);
    before.wrapping_sub(size) as *mut libc::c_void
}

#[cold]
fn broken() -> ! {
    const LINE: &str = "temper: a child that shared memory was killed while it changed \
                        Temper's heap; the program can't go on\n";
    // SAFETY: a constant's bytes; the end takes no memory.
    unsafe {
        libc::write(2, LINE.as_ptr().cast(), LINE.len());
        libc::_exit(125)
    }
}

// SAFETY: dlmalloc keeps the allocator's promises; the lock makes it one caller at a time.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: any size and any power of two are legal.
        unsafe { self.lock().malloc(layout.size(), layout.align()) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's obligation: `at` is of this heap, with this layout.
        unsafe { self.lock().free(at, layout.size(), layout.align()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        unsafe { self.lock().calloc(layout.size(), layout.align()) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let mut heap = self.lock();
        // SAFETY: as in `dealloc`.
        unsafe { heap.realloc(at, layout.size(), layout.align(), size) }
    }
}

/// Anonymous mappings.
struct Mappings;

// SAFETY: each piece is a fresh mapping that nobody else uses until it is freed.
unsafe impl Allocator for Mappings {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        // Of a large allocation much may never be touched.
        let fill = if size == PIECE { libc::MAP_POPULATE } else { 0 };
        let wanted = next_place(size);
        // SAFETY: a mapping where nothing is disturbs nothing; the address is only a wish.
        let at = unsafe {
            libc::mmap(
                wanted,
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fill,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            (ptr::null_mut(), 0, 0)
        } else {
            (at.cast(), size, 0)
        }
    }

    fn remap(&self, at: *mut u8, old: usize, new: usize, can_move: bool) -> *mut u8 {
        let flags = if can_move { libc::MREMAP_MAYMOVE } else { 0 };
        // SAFETY: `at..at+old` is a mapping of `alloc`'s.
        let at = unsafe { libc::mremap(at.cast(), old, new, flags) };
        if at == libc::MAP_FAILED {
            ptr::null_mut()
        } else {
            at.cast()
        }
    }

    fn free_part(&self, at: *mut u8, old: usize, new: usize) -> bool {
        // SAFETY: as in `remap`; what lies beyond `new` is free.
        unsafe { libc::munmap(at.add(new).cast(), old - new) == 0 }
    }

    fn free(&self, at: *mut u8, size: usize) -> bool {
        // SAFETY: as in `remap`; all of it is free.
        unsafe { libc::munmap(at.cast(), size) == 0 }
    }

    fn can_release_part(&self, _flags: u32) -> bool {
        true
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        4096
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_take_turns() {
        let heap = Heap::new();
        let layout = Layout::from_size_align(64, 8).expect("a legal layout");
        std::thread::scope(|scope| {
            for number in 0..4u8 {
                let heap = &heap;
                scope.spawn(move || {
                    for _ in 0..5000 {
                        // SAFETY: used within its size, freed once with its layout.
                        unsafe {
                            let at = heap.alloc(layout);
                            at.write_bytes(number, 64);
                            std::thread::yield_now();
                            assert_eq!(*at.add(63), number);
                            heap.dealloc(at, layout);
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn blocks_of_all_sizes_are_kept_apart() {
        let heap = Heap::new();
        let layout = |size| Layout::from_size_align(size, 16).expect("a legal layout");
        let sizes = [1, 40, 4096, PIECE - 64, PIECE + 1, 3 * PIECE];
        // SAFETY: each block is used within its size and freed once with its layout.
        unsafe {
            let blocks = sizes.map(|size| (size, heap.alloc(layout(size))));
            for (number, (size, at)) in blocks.iter().enumerate() {
                at.write_bytes(number as u8, *size);
            }
            let blocks = blocks.map(|(size, at)| (size, heap.realloc(at, layout(size), 2 * size)));
            for (number, (size, at)) in blocks.iter().enumerate() {
                let bytes = std::slice::from_raw_parts(*at, *size);
                assert!(bytes.iter().all(|byte| usize::from(*byte) == number));
            }
            for (size, at) in blocks {
                heap.dealloc(at, layout(2 * size));
            }
            let zeroed = heap.alloc_zeroed(layout(PIECE));
            let bytes = std::slice::from_raw_parts(zeroed, PIECE);
            assert!(bytes.iter().all(|byte| *byte == 0));
            heap.dealloc(zeroed, layout(PIECE));
        }
    }
}
