use super::*;
use crate::decode::BlockEnd;
use profile_db::ModuleId;

pub(in crate::profile) fn block(start: u64, len: u32, end: BlockEnd) -> Block {
    Block {
        start: GuestAddr(start),
        instructions: Vec::new(),
        bytes: (0..len as u8).map(|i| i ^ start as u8).collect(),
        end,
        len,
        ..Block::default()
    }
}

pub(in crate::profile) fn branch(start: u64, len: u32, taken: u64) -> Block {
    let end = BlockEnd::Branch {
        taken: GuestAddr(taken),
        next: GuestAddr(start + u64::from(len)),
    };
    block(start, len, end)
}

pub(in crate::profile) fn identity(name: u8) -> Identity {
    Identity {
        id: ModuleId::Content([name; 16]),
        size: 4096,
    }
}

fn at(start: u64, end: u64) -> Range<GuestAddr> {
    GuestAddr(start)..GuestAddr(end)
}

#[test]
fn a_block_keeps_its_number_until_it_changes() {
    let mut profile = Profile::new(None);
    let first = profile.block_id(&branch(0x1000, 8, 0x1000));
    profile.enter(first);
    profile.edge(first, Outcome::Taken);
    assert_eq!(profile.block_id(&branch(0x1000, 8, 0x1000)), first);
    let other = profile.block_id(&branch(0x1008, 8, 0x1000));
    assert_ne!(first, other);
    assert_eq!(
        (profile.entered(first), profile.outcomes(first)),
        (1, (1, 0))
    );
    // Other bytes at the same place: counted anew.
    let changed = profile.block_id(&branch(0x1000, 9, 0x1000));
    assert_eq!(profile.entered(changed), 0);
    assert_eq!(profile.outcomes(changed), (0, 0));
}

#[test]
fn invalidation_forgets_the_blocks_that_a_range_touches() {
    let mut profile = Profile::new(None);
    let counted = |profile: &mut Profile, start| {
        let id = profile.block_id(&branch(start, 16, start));
        profile.enter(id);
        id
    };
    for start in [0x1000, 0x1010, 0x1020, 0x1030] {
        counted(&mut profile, start);
    }
    profile.invalidate(at(0x101f, 0x1021));
    let left = |profile: &Profile| {
        let all = profile.index.starting_in(at(0, u64::MAX));
        all.iter().map(|(start, _)| start.0).collect::<Vec<u64>>()
    };
    assert_eq!(left(&profile), [0x1000, 0x1030]);
    profile.invalidate(at(0x1010, 0x1030));
    assert_eq!(left(&profile), [0x1000, 0x1030]);
    // Numbers are used again, without what they counted before.
    let again = counted(&mut profile, 0x1010);
    assert_eq!(profile.entered(again), 1);
    assert!(again.0 < 4);
    profile.invalidate(at(0, u64::MAX));
    assert!(profile.index.pages().is_empty());
}

#[test]
fn counters_saturate() {
    let mut profile = Profile::new(None);
    let id = profile.block_id(&branch(0x1000, 8, 0x1000));
    profile.blocks[id].entered = u32::MAX;
    profile.blocks[id].next = u32::MAX;
    profile.enter(id);
    profile.edge(id, Outcome::Next);
    assert_eq!(profile.entered(id), u32::MAX);
    assert_eq!(profile.outcomes(id), (0, u32::MAX));
}

#[test]
fn only_indirect_branches_have_targets() {
    let mut profile = Profile::new(None);
    let jump = profile.block_id(&block(0x1000, 4, BlockEnd::IndirectJump));
    profile.indirect(jump, GuestAddr(7));
    assert_eq!(profile.targets(jump), (&[(GuestAddr(7), 1)][..], 0));
    let other = profile.block_id(&branch(0x2000, 4, 0));
    profile.indirect(other, GuestAddr(1));
    assert_eq!(profile.targets(other), (&[][..], 0));
}

#[test]
fn a_loop_is_seen_as_paths_from_its_head() {
    let mut profile = Profile::new(None);
    let head = profile.block_id(&branch(0x1000, 8, 0x1010));
    let side = profile.block_id(&block(
        0x1008,
        8,
        BlockEnd::Next {
            at: GuestAddr(0x1010),
        },
    ));
    let latch = profile.block_id(&branch(0x1010, 8, 0x1000));
    for round in 0..6 {
        profile.enter(head);
        if round % 3 == 0 {
            profile.edge(head, Outcome::Next);
            profile.enter(side);
        } else {
            profile.edge(head, Outcome::Taken);
        }
        profile.enter(latch);
        profile.edge(latch, Outcome::Taken);
    }
    assert!(profile.is_path_head(head) && !profile.is_path_head(latch));
    let mut paths: Vec<_> = profile.paths().collect();
    paths.sort();
    let key = |outcomes| PathKey {
        head: GuestAddr(0x1000),
        outcomes,
        len: 2,
    };
    assert_eq!(paths, [(key(0b10), 2), (key(0b11), 4)]);
}
