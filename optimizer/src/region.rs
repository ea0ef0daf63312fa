//! What goes in and what comes out: plain data.
//!
//! A region has one entry, its head, and many exits. Its blocks are guest blocks, or copies
//! of them: a function that is called from two places of a region is there twice, so that
//! each copy knows where it returns to.

use iced_x86::Instruction;

/// Names a block of a region: its place in [`RegionInput::blocks`].
pub type BlockIndex = usize;

/// Hot code to be rebuilt.
#[derive(Clone, Debug)]
pub struct RegionInput {
    /// In the order in which they are to be laid out. The first one is the head.
    pub blocks: Vec<RegionBlock>,
    /// RBP - RSP as seen at the head. Assumed from then on, and checked at the entry.
    pub frame_delta: i64,
    /// RSP as seen at the head: static data that lies in another MiB is not on this stack.
    /// Assumed from then on, and checked at the entry.
    pub stack: u64,
    pub layout: ContextLayout,
    /// The address of a 32-bit cell, below 2 GiB, that counts passes of the head down.
    pub cell: Option<u32>,
    /// Whether the CPU has BMI2, without which stores can't be guarded.
    pub has_bmi2: bool,
    pub steps: Steps,
}

/// A guest block in a region.
#[derive(Clone, Debug)]
pub struct RegionBlock {
    /// The address of its first instruction.
    pub start: u64,
    /// With the branch that ends it, if one does.
    pub instructions: Vec<Instruction>,
    /// How often it ran, relative to the others.
    pub count: u64,
    pub end: RegionEnd,
}

/// How control goes on from a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegionEnd {
    /// A direct jump, or nothing.
    Goto(Next),
    /// A conditional jump.
    Branch { taken: Next, next: Next },
    /// A direct call of a function that is part of the region.
    Call { callee: BlockIndex },
    /// A return of such a function to its call; any other return address leaves.
    Return { to: BlockIndex },
    /// Leaves before the instruction at this address, which isn't part of the region.
    Leave { at: u64 },
}

impl RegionEnd {
    /// Where control may go on.
    pub fn successors(&self) -> impl Iterator<Item = Next> {
        let (first, second) = match *self {
            RegionEnd::Goto(next) => (Some(next), None),
            RegionEnd::Branch { taken, next } => (Some(taken), Some(next)),
            RegionEnd::Call { callee } => (Some(Next::Block(callee)), None),
            RegionEnd::Return { to } => (Some(Next::Block(to)), None),
            RegionEnd::Leave { at } => (Some(Next::Exit(at)), None),
        };
        first.into_iter().chain(second)
    }
}

/// Where control goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    Block(BlockIndex),
    /// Out of the region, to this guest address.
    Exit(u64),
}

/// Where generated code finds its slots: offsets from the gs base.
#[derive(Clone, Copy, Debug)]
pub struct ContextLayout {
    /// 16 words, one for each general register that may be borrowed.
    pub registers: u32,
    /// 16 times 16 bytes, for borrowed vector registers.
    pub vectors: u32,
    /// A word for RCX while passes are counted.
    pub spill: u32,
}

/// Rewriting steps that can be switched off, to find the one that is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Steps {
    /// Frame slots to general registers.
    pub rename: bool,
    /// Frame slots to vector registers.
    pub rename_vector: bool,
    /// Copies, address arithmetic and dead moves folded into what uses them.
    pub fold: bool,
}

impl Steps {
    pub const ALL: Steps = Steps {
        rename: true,
        rename_vector: true,
        fold: true,
    };
    pub const NONE: Steps = Steps {
        rename: false,
        rename_vector: false,
        fold: false,
    };
}

/// What the optimizer made of a region. Position-independent but for [`Relocation`]s.
#[derive(Clone, Debug, Default)]
pub struct OptimizedCode {
    pub bytes: Vec<u8>,
    pub counter: Option<CounterCode>,
    pub relocations: Vec<Relocation>,
    pub exits: Vec<Exit>,
    /// Registers that hold other values than the guest's, which are in the context. From
    /// [`OptimizedCode::borrowed_from`] on.
    pub borrowed: Vec<u8>,
    pub borrowed_vectors: Vec<u8>,
    /// Host offset from which on borrowed registers have to be restored.
    pub borrowed_from: u32,
    /// In ascending order of `host`.
    pub states: Vec<StatePoint>,
    pub summary: Summary,
}

/// The counter at the head. It is off: its detour goes nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CounterCode {
    /// Offset of the displacement of the detour, a near jump within an aligned word.
    pub detour_at: u32,
    /// Where the detour has to lead for passes to be counted.
    pub code_at: u32,
    /// Offset of the displacement of the jump that leaves when the cell is zero, the guest's
    /// state being exact.
    pub exit_at: u32,
}

/// A 32-bit displacement, relative to its own end, of a guest address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Relocation {
    pub at: u32,
    /// Bytes from the displacement's start to the instruction's end.
    pub to_end: u8,
    pub target: u64,
}

/// A jump that leaves: the guest's state is exact there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exit {
    /// Offset of the jump's 32-bit displacement.
    pub patch_at: u32,
    pub target: u64,
    /// Leads to the lower tier's code, even if this region starts at `target`: an
    /// assumption doesn't hold.
    pub lower: bool,
}

/// From host offset `host` on, up to the next point, this is how the guest's state is found.
#[derive(Clone, PartialEq, Debug)]
pub struct StatePoint {
    pub host: u32,
    /// Where the guest is.
    pub guest: u64,
    /// Guest registers whose values are elsewhere.
    pub registers: Vec<(u8, Value)>,
    /// Guest vector registers that equal the low part of another one, zero above: guest
    /// register, other one.
    pub vectors: Vec<(u8, u8)>,
    pub flags: Option<FlagsOf>,
    /// A store of the guest's that isn't done yet.
    pub store: Option<PendingStore>,
    /// RCX is in the context's spill word.
    pub spilled: bool,
}

/// A value of a guest register, computed from host registers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Value {
    Sum(Sum),
    /// The sign-extended low half of a register.
    SignExtended(u8),
}

/// `base + index * scale + displacement`, as an address is formed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Sum {
    pub base: Option<u8>,
    /// Register and scale.
    pub index: Option<(u8, u8)>,
    pub displacement: i32,
    /// Only the low 32 bits count, and are extended with zeros.
    pub is_32: bool,
}

/// Status flags as an operation that wasn't executed would have left them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlagsOf {
    pub operation: FlagsOperation,
    pub left: Value,
    pub right: Value,
    pub is_32: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlagsOperation {
    Add,
    Sub,
    /// By the constant in `right`.
    ShiftLeft,
}

/// A store to the frame: the low `bytes` of a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PendingStore {
    /// The guest instruction that stores.
    pub instruction: u64,
    /// RSP or RBP.
    pub base: u8,
    pub displacement: i32,
    pub register: u8,
    pub is_vector: bool,
    pub bytes: u8,
}

/// What was done, for people.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Summary {
    pub guest_instructions: u32,
    pub host_instructions: u32,
    pub renamed: u32,
    pub renamed_vector: u32,
    pub guards: u32,
    pub inlined_calls: u32,
}

/// Why a region stays as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// An instruction that can't be part of a region.
    Instruction { at: u64 },
    /// The stack pointer isn't followed up to here.
    StackPointer { at: u64 },
    /// Not enough registers for what has to be checked.
    Registers,
    /// iced could not encode an instruction.
    Encoding { at: u64 },
    /// Nothing would become better.
    NoGain,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::Instruction { at } => write!(f, "the instruction at {at:#x} stays alone"),
            Refusal::StackPointer { at } => {
                write!(f, "the stack pointer at {at:#x} isn't known")
            }
            Refusal::Registers => f.write_str("too few registers are free"),
            Refusal::Encoding { at } => write!(f, "the instruction at {at:#x} doesn't encode"),
            Refusal::NoGain => f.write_str("nothing to gain"),
        }
    }
}
