//! The blocks that the engine knows. A block is found by where its first byte lies in
//! physical memory, the instruction pointer that it was decoded for (branch targets are in
//! its operations), and the mode. Links from block to block skip the lookup for as long as
//! nothing may have moved (one epoch).

use hashbrown::HashMap;
use iced_x86::Instruction;

use super::mmu::Mmu;
use crate::decode::{BlockEnd, InterpretReason, Units};
use crate::guest::CpuMode;
use crate::interp::PredecodedBlock;
use crate::profile::BlockId;

/// Everything besides its bytes that a block's meaning depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Mode {
    pub code: CpuMode,
    pub stack: CpuMode,
    pub units: Units,
    pub user: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    pub physical: u64,
    pub rip: u64,
    pub mode: Mode,
}

/// Where control went from a block, and the block found there.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub rip: u64,
    pub epoch: u64,
    pub to: u32,
}

const NO_LINK: Link = Link {
    rip: 0,
    epoch: u64::MAX,
    to: 0,
};

/// What the engine does at the end of the block's operations.
#[derive(Clone, Copy, Debug)]
pub enum Left {
    /// Nothing: RIP says where the guest goes on.
    Nothing,
    /// An instruction of the engine's own, at this RIP.
    Instruction(Instruction),
    /// One whose unit is disabled.
    Disabled(Instruction),
    /// Bytes that are no instruction.
    Invalid,
}

impl Left {
    pub fn new(end: BlockEnd, left: Option<Instruction>) -> Left {
        match (end, left) {
            (BlockEnd::InterpretOne { why, .. }, Some(instruction)) => {
                if why == InterpretReason::UnitDisabled {
                    Left::Disabled(instruction)
                } else {
                    Left::Instruction(instruction)
                }
            }
            (BlockEnd::InterpretOne { .. }, None) => Left::Invalid,
            _ => Left::Nothing,
        }
    }
}

/// A block, ready to run.
pub struct KnownBlock {
    pub key: Key,
    /// The page of the bytes beyond the first page, if there are any.
    pub second: Option<u64>,
    pub ops: PredecodedBlock<Mmu>,
    pub left: Left,
    pub links: [Link; 2],
    /// The link to replace next.
    pub oldest: u8,
    pub id: Option<BlockId>,
}

impl KnownBlock {
    pub fn new(
        key: Key,
        second: Option<u64>,
        ops: PredecodedBlock<Mmu>,
        left: Left,
        id: Option<BlockId>,
    ) -> KnownBlock {
        KnownBlock {
            key,
            second,
            ops,
            left,
            links: [NO_LINK; 2],
            oldest: 0,
            id,
        }
    }
}

/// Recent lookups, direct-mapped; a power of two.
const RECENT: usize = 4096;

#[derive(Clone, Copy)]
struct Recent {
    rip: u64,
    epoch: u64,
    mode: Mode,
    block: u32,
}

/// More blocks than this are forgotten all at once: what is still needed comes back.
const MOST: usize = 1 << 18;

pub struct Blocks {
    slots: Vec<Option<Box<KnownBlock>>>,
    free: Vec<u32>,
    by_key: HashMap<Key, u32>,
    recent: Box<[Recent; RECENT]>,
}

fn place(rip: u64) -> usize {
    (rip ^ rip >> 12) as usize % RECENT
}

impl Blocks {
    pub fn new() -> Blocks {
        let none = Recent {
            rip: 0,
            epoch: u64::MAX,
            mode: Mode {
                code: CpuMode::Bits16,
                stack: CpuMode::Bits16,
                units: Units::ALL,
                user: false,
            },
            block: 0,
        };
        Blocks {
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            recent: Box::new([none; RECENT]),
        }
    }

    #[inline]
    pub fn recent(&self, rip: u64, epoch: u64, mode: Mode) -> Option<u32> {
        let entry = &self.recent[place(rip)];
        (entry.rip == rip && entry.epoch == epoch && entry.mode == mode).then_some(entry.block)
    }

    pub fn remember(&mut self, rip: u64, epoch: u64, mode: Mode, block: u32) {
        self.recent[place(rip)] = Recent {
            rip,
            epoch,
            mode,
            block,
        };
    }

    pub fn find(&self, key: &Key) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    #[inline]
    pub fn at(&mut self, number: u32) -> &mut KnownBlock {
        self.slots[number as usize].as_mut().expect("a known block")
    }

    pub fn is_full(&self) -> bool {
        self.by_key.len() >= MOST
    }

    pub fn insert(&mut self, block: KnownBlock) -> u32 {
        let key = block.key;
        let block = Some(Box::new(block));
        let number = match self.free.pop() {
            Some(number) => {
                self.slots[number as usize] = block;
                number
            }
            None => {
                self.slots.push(block);
                self.slots.len() as u32 - 1
            }
        };
        self.by_key.insert(key, number);
        number
    }

    pub fn remove(&mut self, number: u32) -> Option<Box<KnownBlock>> {
        let block = self.slots.get_mut(number as usize)?.take()?;
        self.by_key.remove(&block.key);
        self.free.push(number);
        Some(block)
    }

    pub fn clear(&mut self) {
        self.slots.clear();
        self.free.clear();
        self.by_key.clear();
    }
}
