//! Values that hot code works with: what divisions divide by, and by how much a memory
//! access moves on. They are looked at in the interpreter just before the instruction runs,
//! and only in bursts and where everything is interpreted: then a block that ran a few
//! times gets a short list of instructions to watch.

use hashbrown::HashMap;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use profile_db::ValueKind;

use super::live::BlockId;
use super::site::Usual;
use crate::addr::GuestAddr;
use crate::decode::Block;
use crate::guest::{CpuState, GuestMemory, Width};

/// Instructions watched in one block, and in all: a bound on memory.
const MAX_IN_BLOCK: usize = 4;
const MAX_WATCHED: usize = 1 << 13;

/// Values of one instruction.
pub(super) type Values = Usual<u64, 4>;

/// A memory operand with 64-bit addressing and no segment base.
#[derive(Clone, Copy, Debug)]
struct Address {
    /// Register numbers.
    base: Option<u8>,
    index: Option<u8>,
    scale: u8,
    displacement: u64,
}

#[derive(Clone, Copy, Debug)]
enum What {
    /// What this register holds, from a bit on, divides.
    Register { number: u8, shift: u8, width: Width },
    /// What lies here divides.
    Memory(Address, Width),
    /// This is accessed.
    Access(Address),
}

/// An instruction that is watched.
#[derive(Debug)]
struct Watch {
    /// The instruction's address.
    at: u64,
    what: What,
    /// The address accessed last, in the stretch of interpretation of that number.
    last: (u64, u32),
    values: Values,
}

/// All that is watched.
#[derive(Default)]
pub(super) struct Watched {
    blocks: HashMap<BlockId, Box<[Watch]>>,
    count: usize,
}

/// The watched instructions of a block that is about to run.
pub struct Watching<'w> {
    next: Option<&'w mut Watch>,
    rest: std::slice::IterMut<'w, Watch>,
    stretch: u32,
}

impl Watching<'_> {
    /// The instruction at `ip` is about to run.
    #[inline]
    pub fn before<M: GuestMemory>(&mut self, ip: u64, cpu: &CpuState, memory: &mut M) {
        if let Some(watch) = &mut self.next
            && watch.at == ip
        {
            watch.look(self.stretch, cpu, memory);
            self.next = self.rest.next();
        }
    }
}

impl Address {
    fn of(instruction: &Instruction) -> Option<Address> {
        let number = |register: Register| match register {
            Register::None => Some(None),
            register if register.is_gpr64() => Some(Some(register.number() as u8)),
            _ => None,
        };
        if matches!(instruction.memory_segment(), Register::FS | Register::GS)
            || instruction.is_ip_rel_memory_operand()
        {
            return None;
        }
        Some(Address {
            base: number(instruction.memory_base())?,
            index: number(instruction.memory_index())?,
            scale: instruction.memory_index_scale() as u8,
            displacement: instruction.memory_displacement64(),
        })
    }

    fn value(self, cpu: &CpuState) -> u64 {
        let register = |number: Option<u8>| number.map_or(0, |at| cpu.gpr[usize::from(at & 15)]);
        let index = register(self.index).wrapping_mul(self.scale.into());
        register(self.base)
            .wrapping_add(index)
            .wrapping_add(self.displacement)
    }
}

fn width(bytes: usize) -> Option<Width> {
    match bytes {
        1 => Some(Width::B1),
        2 => Some(Width::B2),
        4 => Some(Width::B4),
        8 => Some(Width::B8),
        _ => None,
    }
}

impl What {
    /// What is worth watching about an instruction.
    fn of(instruction: &Instruction) -> Option<What> {
        let divides = matches!(instruction.mnemonic(), Mnemonic::Div | Mnemonic::Idiv);
        if divides && instruction.op0_kind() == OpKind::Register {
            let register = instruction.op0_register();
            let high = matches!(
                register,
                Register::AH | Register::BH | Register::CH | Register::DH
            );
            return Some(What::Register {
                number: register.full_register().number() as u8,
                shift: if high { 8 } else { 0 },
                width: width(register.size())?,
            });
        }
        let accesses = (0..instruction.op_count())
            .any(|operand| instruction.op_kind(operand) == OpKind::Memory)
            && !matches!(instruction.mnemonic(), Mnemonic::Lea | Mnemonic::Nop);
        if !accesses {
            return None;
        }
        let address = Address::of(instruction)?;
        if divides {
            return Some(What::Memory(
                address,
                width(instruction.memory_size().size())?,
            ));
        }
        // Fixed places and the stack's top move nowhere.
        let moves = match (address.base, address.index) {
            (None, None) => false,
            (Some(base), None) => base != Register::RSP.number() as u8,
            (_, Some(_)) => true,
        };
        moves.then_some(What::Access(address))
    }

    /// What is watched first where there is too much.
    fn rank(self) -> u8 {
        match self {
            What::Register { .. } | What::Memory(..) => 0,
            What::Access(Address { index: Some(_), .. }) => 1,
            What::Access(address) if address.base != Some(Register::RBP.number() as u8) => 2,
            What::Access(_) => 3,
        }
    }
}

impl Watch {
    fn look<M: GuestMemory>(&mut self, stretch: u32, cpu: &CpuState, memory: &mut M) {
        match self.what {
            What::Register {
                number,
                shift,
                width,
            } => {
                let register = cpu.gpr[usize::from(number & 15)];
                self.values.count(register >> shift & width.mask());
            }
            What::Memory(address, width) => {
                // What faults here will fault again when the instruction runs.
                if let Ok(value) = memory.load(GuestAddr(address.value(cpu)), width) {
                    self.values.count(value);
                }
            }
            What::Access(address) => {
                let address = address.value(cpu);
                let (last, then) = self.last;
                if then == stretch {
                    self.values.count(address.wrapping_sub(last));
                }
                self.last = (address, stretch);
            }
        }
    }

    fn kind(&self) -> ValueKind {
        match self.what {
            What::Register { .. } | What::Memory(..) => ValueKind::Divisor,
            What::Access(_) => ValueKind::Stride,
        }
    }
}

impl Watched {
    /// Chooses what to watch in a block. False: nothing.
    pub fn choose(&mut self, id: BlockId, block: &Block) -> bool {
        let mut found: Vec<(u64, What)> = block
            .instructions
            .iter()
            .filter_map(|instruction| Some((instruction.ip(), What::of(instruction)?)))
            .collect();
        found.sort_by_key(|&(at, what)| (what.rank(), at));
        found.truncate(MAX_IN_BLOCK.min(MAX_WATCHED.saturating_sub(self.count)));
        if found.is_empty() {
            return false;
        }
        found.sort_by_key(|&(at, _)| at);
        self.count += found.len();
        let watches = found.into_iter().map(|(at, what)| Watch {
            at,
            what,
            // No stretch has this number.
            last: (0, 0),
            values: Values::default(),
        });
        self.blocks.insert(id, watches.collect());
        true
    }

    /// A watched block is about to run, in this stretch of interpretation.
    pub fn watch(&mut self, id: BlockId, stretch: u32) -> Option<Watching<'_>> {
        let mut rest = self.blocks.get_mut(&id)?.iter_mut();
        Some(Watching {
            next: rest.next(),
            rest,
            stretch,
        })
    }

    /// Takes out what was seen in a block that is no more.
    pub fn forget(&mut self, id: BlockId) -> Vec<(GuestAddr, ValueKind, Values)> {
        let watches = self.blocks.remove(&id).unwrap_or_default();
        self.count -= watches.len();
        let seen = watches.into_iter();
        seen.map(|watch| (GuestAddr(watch.at), watch.kind(), watch.values))
            .collect()
    }

    /// Takes out the values seen at the places that `choose` says.
    pub fn take(
        &mut self,
        choose: impl Fn(GuestAddr) -> bool,
    ) -> Vec<(GuestAddr, ValueKind, Values)> {
        let watches = self.blocks.values_mut().flatten();
        watches
            .filter(|watch| choose(GuestAddr(watch.at)))
            .map(|watch| {
                let kind = watch.kind();
                (GuestAddr(watch.at), kind, std::mem::take(&mut watch.values))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
