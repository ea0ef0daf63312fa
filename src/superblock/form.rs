//! Which blocks a region takes in: from its head along the hottest ways, through calls and
//! back out of them, until the ways get cold or the region is full.

use std::collections::BinaryHeap;
use std::ops::Range;

use hashbrown::HashMap;
use iced_x86::Instruction;
use optimizer::region::{Next, RegionBlock, RegionEnd};
use optimizer::relaid::is_relayable;

use crate::addr::GuestAddr;
use crate::decode::{Block, BlockEnd};

/// Most guest instructions of a region: what a first-level instruction cache and the time
/// that a build may take bear.
const MAX_INSTRUCTIONS: usize = 600;
const MAX_BLOCKS: usize = 128;
/// Ways that are taken less often than once in so many passes of the head stay outside.
const COLD: f64 = 64.0;
/// Calls within calls.
const MAX_DEPTH: usize = 6;

/// What is known of the code around a head.
pub trait Guide {
    /// Decodes the block at `addr`; false when it can't be part of a region now.
    fn block(&mut self, addr: GuestAddr, into: &mut Block) -> bool;

    /// How often the block was entered lately.
    fn entered(&mut self, block: &Block) -> u64;

    /// How often its branch was taken, and was not.
    fn outcomes(&mut self, block: &Block) -> (u64, u64);
}

/// The blocks of a region.
#[derive(Debug, Default)]
pub struct Formed {
    pub blocks: Vec<RegionBlock>,
    /// The guest code that they are.
    pub sources: Vec<Range<GuestAddr>>,
}

/// A call that is part of the region, and those around it.
struct Context {
    around: Option<usize>,
    callee: GuestAddr,
    return_to: GuestAddr,
    depth: usize,
}

/// A block in a context.
type Node = (usize, GuestAddr);

struct Way {
    weight: f64,
    order: usize,
    to: Node,
}

impl PartialEq for Way {
    fn eq(&self, other: &Way) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Way {}

impl PartialOrd for Way {
    fn partial_cmp(&self, other: &Way) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Way {
    /// The heaviest first; among equals the one that was found first.
    fn cmp(&self, other: &Way) -> std::cmp::Ordering {
        let weight = self.weight.total_cmp(&other.weight);
        weight.then(other.order.cmp(&self.order))
    }
}

/// How a block ends, with places that may or may not become part of the region.
enum Ending {
    Goto(Node),
    Branch { taken: Node, next: Node },
    Call { callee: Node },
    Return { to: Node },
    Leave(GuestAddr),
}

struct Former<'g> {
    guide: &'g mut dyn Guide,
    contexts: Vec<Context>,
    places: HashMap<Node, usize>,
    blocks: Vec<(RegionBlock, Ending)>,
    sources: Vec<Range<GuestAddr>>,
    ways: BinaryHeap<Way>,
    instructions: usize,
    found: usize,
}

/// Forms the region of `head`. `None` when nothing of it can be rebuilt.
pub fn form(head: GuestAddr, guide: &mut dyn Guide) -> Option<Formed> {
    let mut former = Former {
        guide,
        contexts: vec![Context {
            around: None,
            callee: head,
            return_to: GuestAddr(0),
            depth: 0,
        }],
        places: HashMap::new(),
        blocks: Vec::new(),
        sources: Vec::new(),
        ways: BinaryHeap::new(),
        instructions: 0,
        found: 0,
    };
    former.grow((0, head));
    former.resolve()
}

impl Former<'_> {
    fn grow(&mut self, head: Node) {
        self.add_way(1.0, head);
        while let Some(way) = self.ways.pop() {
            // Laid out along the hottest way until that is somewhere already.
            let mut here = Some((way.weight, way.to));
            while let Some((weight, node)) = here.take() {
                let full = self.instructions >= MAX_INSTRUCTIONS || self.blocks.len() >= MAX_BLOCKS;
                if full || weight * COLD < 1.0 || self.places.contains_key(&node) {
                    break;
                }
                here = self.add(node, weight);
            }
        }
    }

    fn add_way(&mut self, weight: f64, to: Node) {
        self.found += 1;
        self.ways.push(Way {
            weight,
            order: self.found,
            to,
        });
    }

    /// Adds a block; returns the way on that is to be laid out next.
    fn add(&mut self, node: Node, weight: f64) -> Option<(f64, Node)> {
        let (context, start) = node;
        let mut block = Block::default();
        if !self.guide.block(start, &mut block) {
            return None;
        }
        let (instructions, ending) = self.take(context, &block);
        if instructions.is_empty() && matches!(ending, Ending::Leave(_)) {
            return None;
        }
        self.instructions += instructions.len();
        self.sources.push(block.range());
        self.places.insert(node, self.blocks.len());
        let next = match &ending {
            Ending::Goto(to) | Ending::Call { callee: to } | Ending::Return { to } => {
                Some((weight, *to))
            }
            Ending::Branch { taken, next } => {
                let (took, passed) = self.guide.outcomes(&block);
                let took = took as f64 + 0.1;
                let passed = passed as f64 + 0.1;
                let share = took / (took + passed);
                let ways = [(weight * share, *taken), (weight * (1.0 - share), *next)];
                let (hot, cold) = if share > 0.5 {
                    (ways[0], ways[1])
                } else {
                    (ways[1], ways[0])
                };
                self.add_way(cold.0, cold.1);
                Some(hot)
            }
            Ending::Leave(_) => None,
        };
        let count = self.guide.entered(&block).max(1);
        self.blocks.push((
            RegionBlock {
                start: start.0,
                instructions,
                count,
                end: RegionEnd::Leave { at: start.0 },
            },
            ending,
        ));
        next
    }

    /// The instructions of a block that a region may have, and how it goes on after them.
    fn take(&mut self, context: usize, block: &Block) -> (Vec<Instruction>, Ending) {
        let mut instructions = block.instructions.clone();
        let transfer = match block.end {
            BlockEnd::Jump { .. }
            | BlockEnd::Branch { .. }
            | BlockEnd::Call { .. }
            | BlockEnd::IndirectJump
            | BlockEnd::IndirectCall { .. }
            | BlockEnd::Return { .. } => 1,
            BlockEnd::Syscall { .. } | BlockEnd::InterpretOne { .. } | BlockEnd::Next { .. } => 0,
        };
        let body = instructions.len() - transfer;
        if let Some(alone) = instructions[..body].iter().position(|i| !is_relayable(i)) {
            let at = GuestAddr(instructions[alone].ip());
            instructions.truncate(alone);
            return (instructions, Ending::Leave(at));
        }
        let ending = match block.end {
            BlockEnd::Jump { target } => Ending::Goto((context, target)),
            BlockEnd::Next { at } => Ending::Goto((context, at)),
            BlockEnd::Branch { taken, next } if instructions[body].is_jcc_short_or_near() => {
                Ending::Branch {
                    taken: (context, taken),
                    next: (context, next),
                }
            }
            BlockEnd::Call { target, return_to } => match self.enter(context, target, return_to) {
                Some(inside) => Ending::Call {
                    callee: (inside, target),
                },
                None => Ending::Leave(GuestAddr(instructions[body].ip())),
            },
            BlockEnd::Return { pop: 0 } if context != 0 => {
                let call = &self.contexts[context];
                Ending::Return {
                    to: (call.around.unwrap_or(0), call.return_to),
                }
            }
            BlockEnd::Syscall { at, .. } | BlockEnd::InterpretOne { at, .. } => Ending::Leave(at),
            BlockEnd::Branch { .. }
            | BlockEnd::IndirectJump
            | BlockEnd::IndirectCall { .. }
            | BlockEnd::Return { .. } => Ending::Leave(GuestAddr(instructions[body].ip())),
        };
        if let Ending::Leave(_) = ending {
            instructions.truncate(body);
        }
        (instructions, ending)
    }

    /// A context for a call, if it is to be part of the region.
    fn enter(&mut self, context: usize, callee: GuestAddr, return_to: GuestAddr) -> Option<usize> {
        let depth = self.contexts[context].depth + 1;
        if depth > MAX_DEPTH {
            return None;
        }
        let mut around = Some(context);
        while let Some(index) = around {
            if self.contexts[index].callee == callee {
                return None;
            }
            around = self.contexts[index].around;
        }
        self.contexts.push(Context {
            around: Some(context),
            callee,
            return_to,
            depth,
        });
        Some(self.contexts.len() - 1)
    }

    fn resolve(self) -> Option<Formed> {
        let places = &self.places;
        let next = |node: &Node| {
            places
                .get(node)
                .map_or(Next::Exit(node.1.0), |&index| Next::Block(index))
        };
        let mut formed = Formed {
            blocks: Vec::with_capacity(self.blocks.len()),
            sources: self.sources,
        };
        for (mut block, ending) in self.blocks {
            block.end = match ending {
                Ending::Goto(to) => RegionEnd::Goto(next(&to)),
                Ending::Branch { taken, next: on } => RegionEnd::Branch {
                    taken: next(&taken),
                    next: next(&on),
                },
                Ending::Call { callee: to } | Ending::Return { to } => {
                    let is_call = matches!(ending, Ending::Call { .. });
                    match (places.get(&to), is_call) {
                        (Some(&callee), true) => RegionEnd::Call { callee },
                        (Some(&to), false) => RegionEnd::Return { to },
                        (None, _) => {
                            let last = block.instructions.pop()?;
                            RegionEnd::Leave { at: last.ip() }
                        }
                    }
                }
                Ending::Leave(at) => RegionEnd::Leave { at: at.0 },
            };
            formed.blocks.push(block);
        }
        // A head that leaves at once would lead back to itself.
        let first = formed.blocks.first()?;
        (!first.instructions.is_empty()).then_some(formed)
    }
}
