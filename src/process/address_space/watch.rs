//! Notices writes to translated code. Only pages that the guest may write need it: they are
//! write-protected on the host, and the first write invalidates what was made from them.
//! A page that is written again and again is given up (the interpreter decodes its code
//! afresh each time) and tried again after a while. Does not know of blocks or fragments.

use std::collections::BTreeMap;
use std::ops::Range;

use super::host_map;
use super::vma::{Attributes, VmaMap};
use crate::addr::{GuestAddr, PAGE_SIZE, pages};
use crate::guest::{CodeControl, Watched};

/// After this many writes a page is no longer protected (DynamoRIO's figure).
const OFTEN_WRITTEN: u32 = 10;
/// After this many refusals a page that was given up is tried again.
const REFUSALS_BEFORE_RETRY: u32 = 1000;

#[derive(Default, Debug)]
struct Page {
    protected: bool,
    writes: u32,
    refusals: u32,
    /// Pages of code that alias this one (other mappings of the same file).
    aliases: Vec<GuestAddr>,
}

/// Pages that hold, or held, translated code and that the guest may write.
#[derive(Default, Debug)]
pub struct CodeWatch {
    pages: BTreeMap<GuestAddr, Page>,
    protected: usize,
    /// The map's generation, and whether it then held any writable shared file mapping.
    aliases_at: Option<(u64, bool)>,
}

impl CodeWatch {
    /// True while any page is write-protected on our account.
    pub fn is_active(&self) -> bool {
        self.protected > 0
    }

    /// Protects what `range` depends on, unless it is written too often, or `busy` says that
    /// the kernel may write to one of the pages this very moment.
    pub fn watch(
        &mut self,
        range: Range<GuestAddr>,
        map: &VmaMap,
        busy: &mut dyn FnMut(GuestAddr) -> bool,
    ) -> Watched {
        let before = self.protected;
        if !self.protect_all(range, map, busy) {
            Watched::Refused
        } else if self.protected > before {
            Watched::Newly
        } else {
            Watched::Already
        }
    }

    fn protect_all(
        &mut self,
        range: Range<GuestAddr>,
        map: &VmaMap,
        busy: &mut dyn FnMut(GuestAddr) -> bool,
    ) -> bool {
        let aliases_possible = self.aliases_possible(map);
        for page in pages(range) {
            let Some((entry, attributes)) = map.peek(page) else {
                return false;
            };
            if attributes.prot.writable() && !self.protect(page, attributes, None, busy) {
                return false;
            }
            let Some(backing) = attributes.backing.as_ref().filter(|_| aliases_possible) else {
                continue;
            };
            let offset = backing.offset + (page.0 - entry.start.0);
            for (alias, attributes) in writable_aliases(map, backing.key, offset) {
                if alias != page && !self.protect(alias, attributes, Some(page), busy) {
                    return false;
                }
            }
        }
        true
    }

    /// Writable shared file mappings are rare: most code needs no search for aliases.
    fn aliases_possible(&mut self, map: &VmaMap) -> bool {
        match self.aliases_at {
            Some((generation, any)) if generation == map.generation() => any,
            _ => {
                let any = map
                    .iter_ref()
                    .any(|(_, a)| a.shared && a.prot.writable() && a.backing.is_some());
                self.aliases_at = Some((map.generation(), any));
                any
            }
        }
    }

    fn protect(
        &mut self,
        addr: GuestAddr,
        attributes: &Attributes,
        alias_of: Option<GuestAddr>,
        busy: &mut dyn FnMut(GuestAddr) -> bool,
    ) -> bool {
        let page = self.pages.entry(addr).or_default();
        if let Some(code) = alias_of
            && !page.aliases.contains(&code)
        {
            page.aliases.push(code);
        }
        if page.protected {
            return true;
        }
        if page.writes >= OFTEN_WRITTEN {
            page.refusals += 1;
            if page.refusals < REFUSALS_BEFORE_RETRY {
                return false;
            }
            page.refusals = 0;
            page.writes = OFTEN_WRITTEN / 2;
        }
        if busy(addr) {
            return false;
        }
        let prot = attributes.prot.host() & !(libc::PROT_WRITE as u64);
        if host_map::protect(&page_range(addr), prot, None).is_err() {
            return false;
        }
        page.protected = true;
        self.protected += 1;
        true
    }

    /// The guest is about to write, or tried to write, somewhere in `range`: lets it.
    /// True if any page there was protected.
    pub fn release(
        &mut self,
        range: Range<GuestAddr>,
        map: &VmaMap,
        code: &mut dyn CodeControl,
    ) -> bool {
        if self.protected == 0 {
            return false;
        }
        let hit: Vec<_> = self
            .pages
            .range(range.start.page()..range.end)
            .filter(|(_, page)| page.protected)
            .map(|(addr, _)| *addr)
            .collect();
        for addr in &hit {
            let Some(page) = self.pages.get_mut(addr) else {
                continue;
            };
            page.protected = false;
            page.writes += 1;
            self.protected -= 1;
            code.invalidate(page_range(*addr));
            for alias in std::mem::take(&mut page.aliases) {
                code.invalidate(page_range(alias));
            }
            // Last: from here on other threads write there, and none may run the old code.
            if let Some((_, attributes)) = map.peek(*addr) {
                // Failing would only repeat the fault; the page was writable before.
                let _ = host_map::protect(&page_range(*addr), attributes.prot.host(), None);
            }
        }
        !hit.is_empty()
    }

    /// Forgets `range`: its mappings or their protection are being replaced. The caller
    /// invalidates the code inside `range`; code elsewhere that aliases it is invalidated here.
    pub fn forget(&mut self, range: Range<GuestAddr>, code: &mut dyn CodeControl) {
        if self.pages.is_empty() || range.start >= range.end {
            return;
        }
        let gone: Vec<_> = self.pages.range(range).map(|(addr, _)| *addr).collect();
        for addr in gone {
            if let Some(page) = self.pages.remove(&addr) {
                self.protected -= usize::from(page.protected);
                for alias in page.aliases {
                    code.invalidate(page_range(alias));
                }
            }
        }
    }
}

fn page_range(page: GuestAddr) -> Range<GuestAddr> {
    page..page.offset(PAGE_SIZE as i64)
}

/// Guest-writable shared mappings of byte `offset` of the file: their pages.
fn writable_aliases(
    map: &VmaMap,
    key: super::vma::FileKey,
    offset: u64,
) -> Vec<(GuestAddr, &Attributes)> {
    map.iter_ref()
        .filter(|(_, attributes)| attributes.shared && attributes.prot.writable())
        .filter_map(|(range, attributes)| {
            let backing = attributes.backing.as_ref().filter(|b| b.key == key)?;
            let delta = offset.checked_sub(backing.offset)?;
            (delta < host_map::bytes(&range))
                .then(|| (range.start.offset(delta as i64), attributes))
        })
        .collect()
}
