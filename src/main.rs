//! The `temper` program: hands over to [`temper::cli`].

/// Temper lives in its guest's address space. The guest's brk is emulated, but the host's
/// must stay untouched too, so the heap comes from mappings of its own.
#[global_allocator]
static HEAP: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() {
    println!("temper");
}
