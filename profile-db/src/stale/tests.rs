use std::collections::BTreeMap;

use super::*;
use crate::record::Likeness;
use crate::sample::Rng;

/// A program as a compiler sees it: functions of blocks, each with an identity that its
/// code follows from.
#[derive(Clone)]
struct Program {
    functions: Vec<Vec<Piece>>,
}

#[derive(Clone)]
struct Piece {
    opcodes: u32,
    len: u32,
    /// Of a branch: to which block of the function, and how often in 16.
    branch: Option<(usize, u64)>,
    /// A function that is called at the block's end.
    call: Option<usize>,
}

fn piece(rng: &mut Rng, blocks: usize, functions: usize) -> Piece {
    let branch = (rng.below(3) > 0).then(|| (rng.below(blocks as u64) as usize, rng.below(15)));
    Piece {
        // Few enough that many blocks look the same.
        opcodes: 1 + rng.below(300) as u32,
        len: 4 + rng.below(20) as u32,
        branch,
        call: (branch.is_none() && rng.below(2) == 0).then(|| rng.below(functions as u64) as usize),
    }
}

impl Program {
    fn random(rng: &mut Rng, functions: usize) -> Program {
        let functions = (0..functions).map(|_| {
            let blocks = 3 + rng.below(12) as usize;
            (0..blocks).map(|_| piece(rng, blocks, functions)).collect()
        });
        Program {
            functions: functions.collect(),
        }
    }

    /// The code as it is laid out from `base` on, and each block's offset by function.
    fn code(&self, base: u64) -> (Vec<CodeBlock>, Vec<Vec<u64>>) {
        let mut at = base;
        let places: Vec<Vec<u64>> = self
            .functions
            .iter()
            .map(|function| {
                at = at.next_multiple_of(16);
                let place = |piece: &Piece| {
                    let here = at;
                    at += u64::from(piece.len);
                    here
                };
                function.iter().map(place).collect()
            })
            .collect();
        let mut code = Vec::new();
        for (function, places_here) in self.functions.iter().zip(&places) {
            for (at, piece) in function.iter().enumerate() {
                let next = places_here.get(at + 1).copied();
                let exit = match (piece.branch, piece.call, next) {
                    (_, _, None) => Exit::Return,
                    (Some((to, _)), _, Some(next)) => Exit::Branch {
                        taken: places_here[to],
                        next,
                    },
                    (None, Some(callee), Some(return_to)) => Exit::Call {
                        target: places[callee][0],
                        return_to,
                    },
                    (None, None, Some(next)) => Exit::Next(next),
                };
                code.push(CodeBlock {
                    offset: places_here[at],
                    len: piece.len,
                    // Operands depend on where things lie.
                    hash: places_here[at] ^ u64::from(piece.opcodes) << 32,
                    likeness: Likeness {
                        opcodes: piece.opcodes,
                        shape: 1 + u16::from(piece.branch.is_some()),
                    },
                    exit,
                });
            }
        }
        (code, places)
    }

    /// What running it counts.
    fn run(&self, rng: &mut Rng, base: u64) -> Counts {
        let (code, places) = self.code(base);
        let at = |offset| code.binary_search_by_key(&offset, |b| b.offset).unwrap();
        let mut blocks: BTreeMap<u64, u64> = BTreeMap::new();
        let mut edges: BTreeMap<(u64, EdgeKind, u64), u64> = BTreeMap::new();
        for _ in 0..4000 {
            // A few functions are hot.
            let entry = rng.below(self.functions.len() as u64).min(rng.below(40)) as usize;
            let mut stack = vec![];
            let (mut function, mut place) = (entry, 0usize);
            for _ in 0..200 {
                let from = places[function][place];
                *blocks.entry(from).or_default() += 1;
                let piece = &self.functions[function][place];
                let (kind, to) = if place + 1 == self.functions[function].len() {
                    let Some(back) = stack.pop() else { break };
                    (EdgeKind::Return, back)
                } else if let Some((to, often)) = piece.branch {
                    if rng.below(16) < often {
                        (EdgeKind::Taken, (function, to))
                    } else {
                        (EdgeKind::Next, (function, place + 1))
                    }
                } else if let Some(callee) = piece.call {
                    stack.push((function, place + 1));
                    (EdgeKind::Call, (callee, 0))
                } else {
                    (EdgeKind::Next, (function, place + 1))
                };
                (function, place) = to;
                *edges
                    .entry((from, kind, places[function][place]))
                    .or_default() += 1;
            }
        }
        let mut counts = Counts {
            blocks: blocks
                .into_iter()
                .map(|(offset, count)| {
                    let block = &code[at(offset)];
                    BlockRecord {
                        offset,
                        hash: block.hash,
                        len: block.len,
                        tier: Tier::Block,
                        head: false,
                        likeness: block.likeness,
                        count,
                    }
                })
                .collect(),
            edges: edges
                .into_iter()
                .map(|((from, kind, to), count)| EdgeRecord {
                    from,
                    kind,
                    to: Target::Here(to),
                    count,
                })
                .collect(),
            ..Counts::default()
        };
        counts.normalize();
        counts
    }

    /// Changes one function in `of`: other code, more blocks.
    fn edit(&mut self, rng: &mut Rng, of: u64) {
        let functions = self.functions.len();
        for function in &mut self.functions {
            if rng.below(of) > 0 {
                continue;
            }
            let place = rng.below(function.len() as u64) as usize;
            let mut more = piece(rng, function.len(), functions);
            more.branch = None;
            function[place].opcodes = 1000 + rng.below(300) as u32;
            for piece in function.iter_mut() {
                if let Some((to, _)) = &mut piece.branch
                    && *to >= place
                {
                    *to += 1;
                }
            }
            function.insert(place, more);
        }
    }
}

#[test]
fn an_unchanged_program_that_lies_elsewhere_is_found_whole() {
    let mut rng = Rng(1);
    let program = Program::random(&mut rng, 60);
    let old = program.run(&mut Rng(2), 0x1000);
    let takeover = take_over(&old, &program.code(0x5230).0);
    assert_eq!((takeover.found, takeover.inferred), (takeover.all, 0));
    assert!(takeover.counts.is_canonical());
    assert_eq!(takeover.counts, program.run(&mut Rng(2), 0x5230));
}

#[test]
fn most_of_an_edited_program_is_found() {
    let mut overlaps = Vec::new();
    for seed in 0..8 {
        let mut rng = Rng(seed);
        let program = Program::random(&mut rng, 150);
        let old = program.run(&mut Rng(seed + 100), 0x1000);
        let mut edited = program.clone();
        edited.edit(&mut rng, 11);
        let fresh = edited.run(&mut Rng(seed + 200), 0x1000);
        let takeover = take_over(&old, &edited.code(0x1000).0);
        assert!(takeover.is_plausible());
        assert!(takeover.counts.is_canonical());
        overlaps.push(takeover.counts.edge_overlap(&fresh));
    }
    // Now and then the edit is in what is hottest.
    let mean = overlaps.iter().sum::<f64>() / overlaps.len() as f64;
    let least = overlaps.iter().copied().fold(1.0, f64::min);
    assert!(mean > 0.85 && least > 0.7, "{overlaps:.3?}");
}

#[test]
fn another_program_is_not_taken_for_a_rebuilt_one() {
    let mut rng = Rng(1);
    let mut other = Program::random(&mut rng, 60);
    for piece in other.functions.iter_mut().flatten() {
        piece.opcodes += 5000;
    }
    let old = Program::random(&mut rng, 60).run(&mut rng, 0x1000);
    let takeover = take_over(&old, &other.code(0x1000).0);
    assert!(!takeover.is_plausible());
    assert!(!take_over(&old, &[]).is_plausible());
    assert!(!take_over(&Counts::default(), &other.code(0).0).is_plausible());
}

#[test]
fn hostile_places_do_no_harm() {
    let end = CodeBlock {
        offset: u64::MAX,
        len: u32::MAX,
        hash: 1,
        likeness: Likeness {
            opcodes: 1,
            shape: 1,
        },
        exit: Exit::Branch {
            taken: u64::MAX,
            next: 0,
        },
    };
    for seed in 0..300 {
        let old = crate::sample::counts(&mut Rng(seed), 40);
        let code: Vec<_> = [0, 3, 9, 20, u64::MAX]
            .map(|offset| CodeBlock {
                offset,
                likeness: Likeness {
                    opcodes: 1 + offset as u32 % 2,
                    shape: 5,
                },
                ..end.clone()
            })
            .to_vec();
        assert!(take_over(&old, &code).counts.is_canonical());
    }
}
