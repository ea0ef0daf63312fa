//! The targets of one indirect branch: a small bounded set with counts.

use crate::addr::GuestAddr;

/// Targets kept of one indirect branch.
const MAX_TARGETS: usize = 8;
/// Every so many targets that find no room, the coldest kept one gives up its place, so that
/// the first targets seen don't hold theirs forever. A prime, so that a program's own
/// rhythm doesn't fall in step with it.
const EVICTION_INTERVAL: u32 = 61;

/// Where an indirect branch went.
#[derive(Default, Debug)]
pub(super) struct Site {
    pub targets: Vec<(GuestAddr, u32)>,
    /// Times that the target found no room.
    pub overflow: u32,
}

impl Site {
    #[inline]
    pub fn count(&mut self, target: GuestAddr) {
        for (known, count) in &mut self.targets {
            if *known == target {
                *count = count.saturating_add(1);
                return;
            }
        }
        self.count_new(target);
    }

    #[cold]
    fn count_new(&mut self, target: GuestAddr) {
        if self.targets.len() < MAX_TARGETS {
            self.targets.push((target, 1));
            return;
        }
        self.overflow = self.overflow.saturating_add(1);
        if self.overflow.is_multiple_of(EVICTION_INTERVAL)
            && let Some(coldest) = self.targets.iter_mut().min_by_key(|(_, count)| *count)
        {
            // This target has found room after all.
            self.overflow = (self.overflow - 1).saturating_add(coldest.1);
            *coldest = (target, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_targets_that_matter_find_room() {
        let mut site = Site::default();
        // Many cold targets first, then a hot one which found no room.
        for target in 0..20 {
            site.count(GuestAddr(target));
        }
        for _ in 0..1000 {
            site.count(GuestAddr(0x77));
        }
        assert_eq!(site.targets.len(), MAX_TARGETS);
        let hot = site.targets.iter().find(|(target, _)| target.0 == 0x77);
        assert!(hot.is_some_and(|(_, count)| *count > 900));
        let sum: u32 = site.targets.iter().map(|(_, count)| count).sum();
        assert_eq!(sum + site.overflow, 1020);
    }
}
