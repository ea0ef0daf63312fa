//! What was seen at one place of the code, as the targets of an indirect branch: a small
//! bounded set with counts.

use crate::addr::GuestAddr;

/// Every so many values that find no room, the coldest kept one gives up its place, so that
/// the first values seen don't hold theirs forever. A prime, so that a program's own
/// rhythm doesn't fall in step with it.
const EVICTION_INTERVAL: u32 = 61;

/// Where an indirect branch went.
pub(super) type Site = Usual<GuestAddr, 8>;

/// Up to `MAX` values with their counts.
#[derive(Debug)]
pub(super) struct Usual<T, const MAX: usize> {
    pub values: Vec<(T, u32)>,
    /// Times that a value found no room.
    pub overflow: u32,
}

impl<T, const MAX: usize> Default for Usual<T, MAX> {
    fn default() -> Self {
        Usual {
            values: Vec::new(),
            overflow: 0,
        }
    }
}

impl<T: Copy + PartialEq, const MAX: usize> Usual<T, MAX> {
    #[inline]
    pub fn count(&mut self, value: T) {
        for (known, count) in &mut self.values {
            if *known == value {
                *count = count.saturating_add(1);
                return;
            }
        }
        self.count_new(value);
    }

    #[cold]
    fn count_new(&mut self, value: T) {
        if self.values.len() < MAX {
            self.values.push((value, 1));
            return;
        }
        self.overflow = self.overflow.saturating_add(1);
        if self.overflow.is_multiple_of(EVICTION_INTERVAL)
            && let Some(coldest) = self.values.iter_mut().min_by_key(|(_, count)| *count)
        {
            // This value has found room after all.
            self.overflow = (self.overflow - 1).saturating_add(coldest.1);
            *coldest = (value, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_that_matter_find_room() {
        let mut site = Site::default();
        // Many cold targets first, then a hot one which found no room.
        for target in 0..20 {
            site.count(GuestAddr(target));
        }
        for _ in 0..1000 {
            site.count(GuestAddr(0x77));
        }
        assert_eq!(site.values.len(), 8);
        let hot = site.values.iter().find(|(target, _)| target.0 == 0x77);
        assert!(hot.is_some_and(|(_, count)| *count > 900));
        let sum: u32 = site.values.iter().map(|(_, count)| count).sum();
        assert_eq!(sum + site.overflow, 1020);
    }
}
