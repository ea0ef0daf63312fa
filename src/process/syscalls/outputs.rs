//! Where a system call may write guest memory: watched pages there are released before the
//! call, because the kernel would return EFAULT for them, and retrying after that can lose
//! data. Asked only while a page is watched.
//!
//! Only buffers longer than a page need an entry here: for every other argument that points
//! to memory, a page from there on is assumed to be written.

use std::ops::Range;

use syscalls::Sysno;

use crate::addr::{GuestAddr, PAGE_SIZE};
use crate::guest::{GuestMemory, Width};

/// The kernel's limit on the elements of an I/O vector (UIO_MAXIOV).
const MAX_VECTOR: u64 = 1024;
const MESSAGE_BYTES: i64 = 56;
/// A struct mmsghdr: the message and its length.
const MESSAGE_STRIDE: i64 = 64;

/// How long a buffer is.
enum Buffer {
    /// Argument `.0` points to as many bytes as argument `.1` says.
    Bytes(usize, usize),
    /// As many elements of `.2` bytes as argument `.1` says.
    Elements(usize, usize, u64),
    /// Argument `.0` points to an I/O vector of as many entries as argument `.1` says.
    Vector(usize, usize),
    /// A struct msghdr.
    Message(usize),
    /// As many struct mmsghdr as argument `.1` says.
    Messages(usize, usize),
    /// One byte for each page of the length in argument `.1`.
    PageBytes(usize, usize),
}

fn long_buffer(call: Sysno) -> Option<Buffer> {
    Some(match call {
        Sysno::read
        | Sysno::pread64
        | Sysno::recvfrom
        | Sysno::getdents
        | Sysno::getdents64
        | Sysno::readlink
        | Sysno::listxattr
        | Sysno::llistxattr
        | Sysno::flistxattr
        | Sysno::mq_timedreceive
        | Sysno::modify_ldt => Buffer::Bytes(1, 2),
        // The message's type precedes its text.
        Sysno::msgrcv => Buffer::Elements(1, 2, 2),
        Sysno::getrandom | Sysno::getcwd => Buffer::Bytes(0, 1),
        Sysno::readlinkat | Sysno::getxattr | Sysno::lgetxattr | Sysno::fgetxattr => {
            Buffer::Bytes(2, 3)
        }
        Sysno::readv | Sysno::preadv | Sysno::preadv2 | Sysno::process_vm_readv => {
            Buffer::Vector(1, 2)
        }
        // Into this very process, perhaps.
        Sysno::process_vm_writev => Buffer::Vector(3, 4),
        Sysno::recvmsg => Buffer::Message(1),
        Sysno::recvmmsg => Buffer::Messages(1, 2),
        Sysno::poll | Sysno::ppoll => Buffer::Elements(0, 1, 8),
        Sysno::epoll_wait | Sysno::epoll_pwait | Sysno::epoll_pwait2 => Buffer::Elements(1, 2, 12),
        Sysno::io_getevents | Sysno::io_pgetevents => Buffer::Elements(3, 2, 32),
        Sysno::getgroups => Buffer::Elements(1, 0, 4),
        Sysno::mincore => Buffer::PageBytes(2, 1),
        _ => return None,
    })
}

/// The ranges that `call` may write to. An unknown call may write through any argument.
pub fn ranges(
    call: Option<Sysno>,
    args: &[u64; 6],
    memory: &mut impl GuestMemory,
) -> Vec<Range<GuestAddr>> {
    let mut ranges: Vec<_> = args.iter().map(|arg| span(*arg, PAGE_SIZE)).collect();
    match call.and_then(long_buffer) {
        None => {}
        Some(Buffer::Bytes(at, len)) => ranges.push(span(args[at], args[len])),
        Some(Buffer::Elements(at, count, size)) => {
            ranges.push(span(args[at], args[count].saturating_mul(size)));
        }
        Some(Buffer::PageBytes(at, len)) => ranges.push(span(args[at], args[len] / PAGE_SIZE + 1)),
        Some(Buffer::Vector(at, count)) => add_vector(&mut ranges, memory, args[at], args[count]),
        Some(Buffer::Message(at)) => add_message(&mut ranges, memory, GuestAddr(args[at])),
        Some(Buffer::Messages(at, count)) => {
            for index in 0..args[count].min(MAX_VECTOR) as i64 {
                let header = GuestAddr(args[at]).offset(index * MESSAGE_STRIDE);
                ranges.push(span(header.0, MESSAGE_STRIDE as u64));
                add_message(&mut ranges, memory, header);
            }
        }
    }
    ranges
}

fn span(start: u64, bytes: u64) -> Range<GuestAddr> {
    GuestAddr(start)..GuestAddr(start.saturating_add(bytes))
}

fn add_vector(
    ranges: &mut Vec<Range<GuestAddr>>,
    memory: &mut impl GuestMemory,
    at: u64,
    count: u64,
) {
    for index in 0..count.min(MAX_VECTOR) as i64 {
        let entry = GuestAddr(at).offset(index * 16);
        let (Ok(base), Ok(len)) = (
            memory.load(entry, Width::B8),
            memory.load(entry.offset(8), Width::B8),
        ) else {
            return;
        };
        ranges.push(span(base, len));
    }
}

/// struct msghdr: name, its length, vector, its length, control data, its length.
fn add_message(
    ranges: &mut Vec<Range<GuestAddr>>,
    memory: &mut impl GuestMemory,
    header: GuestAddr,
) {
    let mut word = |index: i64| {
        memory
            .load(header.offset(index * 8), Width::B8)
            .unwrap_or(0)
    };
    let words: [u64; 6] = std::array::from_fn(|index| word(index as i64));
    let [name, name_len, vector, count, control, control_len] = words;
    ranges.push(span(header.0, MESSAGE_BYTES as u64));
    ranges.push(span(name, name_len & 0xffff_ffff));
    ranges.push(span(control, control_len));
    add_vector(ranges, memory, vector, count);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native::{IdentityMemory, install_test_handler};

    fn covers(ranges: &[Range<GuestAddr>], addr: u64) -> bool {
        ranges.iter().any(|range| range.contains(&GuestAddr(addr)))
    }

    #[test]
    fn a_long_read_covers_its_whole_buffer() {
        let args = [3, 0x10_0000, 0x5000, 0, 0, 0];
        let ranges = ranges(Some(Sysno::read), &args, &mut IdentityMemory);
        assert!(covers(&ranges, 0x10_4fff));
        assert!(!covers(&ranges, 0x10_5000));
    }

    #[test]
    fn vectors_and_messages_are_followed() {
        install_test_handler();
        let vector = [0x50_0000u64, 0x3000, 0x60_0000, 0x10];
        let message = [
            0x70_0000u64,
            16,
            vector.as_ptr() as u64,
            2,
            0x80_0000,
            0x2000,
            0,
        ];
        let args = [3, message.as_ptr() as u64, 0, 0, 0, 0];
        let found = ranges(Some(Sysno::recvmsg), &args, &mut IdentityMemory);
        for addr in [
            0x50_2fff,
            0x60_000f,
            0x70_000f,
            0x80_1fff,
            message.as_ptr() as u64,
        ] {
            assert!(covers(&found, addr), "{addr:#x}");
        }
        let args = [3, vector.as_ptr() as u64, 2, 0, 0, 0];
        assert!(covers(
            &ranges(Some(Sysno::readv), &args, &mut IdentityMemory),
            0x50_2fff
        ));
    }

    #[test]
    fn an_unknown_call_may_write_through_any_argument() {
        let args = [0, 0, 0, 0, 0, 0x123_4000];
        assert!(covers(
            &ranges(None, &args, &mut IdentityMemory),
            0x123_4fff
        ));
    }
}
