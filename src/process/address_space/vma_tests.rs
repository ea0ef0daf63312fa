//! The interval map against a model that keeps one entry a page.

use super::vma::*;
use crate::addr::{GuestAddr, PAGE_SIZE};

const PAGES: usize = 48;

/// xorshift64*: enough randomness for operations, reproducible from a printed seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

fn page(index: usize) -> GuestAddr {
    GuestAddr(0x10_0000 + index as u64 * PAGE_SIZE)
}

fn seed() -> u64 {
    let seed = std::env::var("TEMPER_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| {
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(1, |d| d.as_nanos() as u64 | 1)
        });
    println!("TEMPER_TEST_SEED={seed}");
    seed
}

fn random_attributes(random: &mut Random) -> Attributes {
    let mut attributes = Attributes::anonymous(Prot::from_bits(random.below(8)));
    if random.below(2) == 0 {
        attributes.shared = random.below(2) == 0;
        attributes.backing = Some(Backing {
            key: FileKey {
                dev: 1,
                inode: random.below(2),
            },
            offset: random.below(4) * PAGE_SIZE,
            path: None,
        });
    }
    attributes
}

fn continued(attributes: &Attributes, delta: u64) -> Attributes {
    let mut attributes = attributes.clone();
    if let Some(backing) = &mut attributes.backing {
        backing.offset += delta;
    }
    attributes
}

#[test]
fn random_operations_agree_with_a_page_by_page_model() {
    let mut random = Random(seed());
    for _ in 0..60 {
        let mut map = VmaMap::default();
        let mut model: Vec<Option<Attributes>> = vec![None; PAGES];
        for _ in 0..60 {
            let first = random.below(PAGES as u64) as usize;
            let last = first + random.below((PAGES - first) as u64 + 1) as usize;
            let range = page(first)..page(last);
            match random.below(4) {
                0 | 1 => {
                    let attributes = random_attributes(&mut random);
                    map.insert(range, attributes.clone());
                    for (i, slot) in model[first..last].iter_mut().enumerate() {
                        *slot = Some(continued(&attributes, i as u64 * PAGE_SIZE));
                    }
                }
                2 => {
                    map.remove(range);
                    model[first..last].fill(None);
                }
                _ => {
                    let prot = Prot::from_bits(random.below(8));
                    map.change(range, |a| a.prot = prot);
                    for slot in model[first..last].iter_mut().flatten() {
                        slot.prot = prot;
                    }
                }
            }
            check(&map, &model);
        }
    }
}

fn check(map: &VmaMap, model: &[Option<Attributes>]) {
    for (index, expected) in model.iter().enumerate() {
        let at = page(index);
        let found = map
            .within(at..at.offset(PAGE_SIZE as i64))
            .pop()
            .map(|vma| vma.attributes);
        assert_eq!(&found, expected, "page {index}");
        assert_eq!(map.peek(at).is_some(), expected.is_some());
    }
    let entries: Vec<_> = map.iter().collect();
    for pair in entries.windows(2) {
        assert!(
            pair[0].range.end <= pair[1].range.start,
            "overlap: {pair:?}"
        );
        let joined = pair[0].range.end == pair[1].range.start
            && continued(&pair[0].attributes, pair[0].bytes()) == pair[1].attributes;
        assert!(!joined, "left apart: {pair:?}");
    }
    let gap_pages: u64 = map
        .gaps(page(0)..page(PAGES))
        .iter()
        .map(|gap| (gap.end.0 - gap.start.0) / PAGE_SIZE)
        .sum();
    assert_eq!(
        gap_pages,
        model.iter().filter(|m| m.is_none()).count() as u64
    );
    let prefix = model.iter().take_while(|m| m.is_some()).count();
    assert_eq!(map.mapped_up_to(page(0)..page(PAGES)), page(prefix));
}

#[test]
fn the_highest_gap_is_aligned_and_free() {
    let mut map = VmaMap::default();
    let anonymous = Attributes::anonymous(Prot::READ);
    map.insert(GuestAddr(0x9000)..GuestAddr(0xb000), anonymous);
    let within = GuestAddr(0x1000)..GuestAddr(0xd000);
    let find = |bytes, align| map.highest_gap(within.clone(), bytes, align);
    assert_eq!(find(0x1000, 0x1000), Some(GuestAddr(0xc000)));
    assert_eq!(find(0x2000, 0x2000), Some(GuestAddr(0x6000)));
    assert_eq!(find(0x8000, 0x1000), Some(GuestAddr(0x1000)));
    assert_eq!(find(0x9000, 0x1000), None);
}

#[test]
fn executable_memory_becomes_readable_on_the_host_never_executable() {
    assert_eq!(Prot::from_bits(4).host(), 1);
    assert_eq!(Prot::from_bits(7).host(), 3);
    assert_eq!(Prot::from_bits(6).host(), 3);
    assert_eq!(Prot::from_bits(2).host(), 2);
    assert_eq!(Prot::NONE.host(), 0);
}
