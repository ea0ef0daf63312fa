//! Addresses. A guest address is what the guest program sees; a host address is where
//! Temper itself reads, writes or jumps. In process mode the two spaces coincide
//! (identity mapping), in system mode an MMU lies between them, so the types never mix
//! silently. Does not know of any memory map.

use std::fmt;
use std::ops::Range;

/// Bytes in a page (Intel SDM volume 3, section 4.3).
pub const PAGE_SIZE: u64 = 4096;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The start of the page that holds this address.
            pub const fn page(self) -> Self {
                Self(self.0 & !(PAGE_SIZE - 1))
            }

            /// The offset within its page, in bytes.
            pub const fn page_offset(self) -> u64 {
                self.0 & (PAGE_SIZE - 1)
            }

            /// The first page boundary at or above this address; `None` past the top.
            pub const fn page_up(self) -> Option<Self> {
                match self.0.checked_add(PAGE_SIZE - 1) {
                    Some(sum) => Some(Self(sum & !(PAGE_SIZE - 1))),
                    None => None,
                }
            }

            /// This address moved by `offset` bytes, wrapping as address arithmetic does.
            pub const fn offset(self, offset: i64) -> Self {
                Self(self.0.wrapping_add_signed(offset))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:#x})", stringify!($name), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address!(
    /// An address as the guest program sees it.
    GuestAddr
);
address!(
    /// An address in Temper's own address space.
    HostAddr
);

/// The start addresses of all pages that `range` touches.
pub fn pages(range: Range<GuestAddr>) -> impl Iterator<Item = GuestAddr> {
    let first = range.start.page().0;
    let last = range.end.0.max(range.start.0);
    (first..last).step_by(PAGE_SIZE as usize).map(GuestAddr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_cover_a_range_that_straddles_a_boundary() {
        let touched: Vec<_> = pages(GuestAddr(0x1ffe)..GuestAddr(0x2002)).collect();
        assert_eq!(touched, [GuestAddr(0x1000), GuestAddr(0x2000)]);
        assert_eq!(pages(GuestAddr(0x1000)..GuestAddr(0x1000)).count(), 0);
    }

    #[test]
    fn rounding_up_at_the_top_of_the_address_space_says_none() {
        assert_eq!(GuestAddr(0x1001).page_up(), Some(GuestAddr(0x2000)));
        assert_eq!(GuestAddr(u64::MAX).page_up(), None);
    }
}
