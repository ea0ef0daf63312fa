//! The code under construction: bytes, labels, what the guest's state is where.
//! Nothing here changes flags unless an instruction that is handed in does.

use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Register};

use crate::region::{Exit, Refusal, Relocation, StatePoint};

/// A place in the code, perhaps not reached yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Label(usize);

/// Bytes that a short jump may span, with a margin.
const SHORT_REACH: u32 = 84;

struct ShortJump {
    /// Offset of its 8-bit displacement.
    at: u32,
    to: Label,
    state: StatePoint,
}

pub(super) struct Code64 {
    pub bytes: Vec<u8>,
    encoder: Encoder,
    labels: Vec<Option<u32>>,
    jumps: Vec<(u32, Label)>,
    short_jumps: Vec<ShortJump>,
    pub relocations: Vec<Relocation>,
    pub exits: Vec<Exit>,
    pub states: Vec<StatePoint>,
    pub instructions: u32,
}

pub(super) fn gpr(number: u8) -> Register {
    Register::RAX + u32::from(number)
}

pub(super) fn gpr32(number: u8) -> Register {
    Register::EAX + u32::from(number)
}

pub(super) fn xmm(number: u8) -> Register {
    Register::XMM0 + u32::from(number)
}

/// A general register of so many bytes; those of one byte are the low ones.
pub(super) fn gpr_sized(number: u8, bytes: u32) -> Register {
    let number = u32::from(number);
    match bytes {
        // iced counts AL CL DL BL, then the old high ones, then SPL to R15L.
        1 if number >= 4 => Register::SPL + (number - 4),
        1 => Register::AL + number,
        2 => Register::AX + number,
        4 => Register::EAX + number,
        _ => Register::RAX + number,
    }
}

impl Code64 {
    pub fn new() -> Code64 {
        Code64 {
            bytes: Vec::with_capacity(1024),
            encoder: Encoder::new(64),
            labels: Vec::new(),
            jumps: Vec::new(),
            short_jumps: Vec::new(),
            relocations: Vec::new(),
            exits: Vec::new(),
            states: Vec::new(),
            instructions: 0,
        }
    }

    pub fn here(&self) -> u32 {
        self.bytes.len() as u32
    }

    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    pub fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.here());
    }

    /// From here on the guest's state is this.
    pub fn state(&mut self, mut state: StatePoint) {
        state.host = self.here();
        match self.states.last_mut() {
            Some(last) if last.host == state.host => *last = state,
            Some(last) => {
                let same = StatePoint {
                    host: last.host,
                    ..state.clone()
                } == *last;
                if !same {
                    self.states.push(state);
                }
            }
            None => self.states.push(state),
        }
    }

    /// Encodes an instruction. RIP-relative operands are absolute in `instruction`.
    ///
    /// # Errors
    /// iced can't encode it.
    pub fn emit(&mut self, instruction: &Instruction) -> Result<(), Refusal> {
        let refused = || Refusal::Encoding {
            at: instruction.ip(),
        };
        let start = self.here();
        let is_relative = instruction.is_ip_rel_memory_operand();
        let target = instruction.memory_displacement64();
        // Near the target, so that it encodes; the right displacement comes with the place.
        let at = if is_relative { target } else { 0 };
        self.encoder
            .encode(instruction, at)
            .map_err(|_| refused())?;
        let constants = self.encoder.get_constant_offsets();
        let bytes = self.encoder.take_buffer();
        self.bytes.extend_from_slice(&bytes);
        if is_relative {
            if constants.displacement_size() != 4 {
                return Err(refused());
            }
            self.relocations.push(Relocation {
                at: start + constants.displacement_offset() as u32,
                to_end: (bytes.len() - constants.displacement_offset()) as u8,
                target,
            });
        }
        let mut buffer = bytes;
        buffer.clear();
        self.encoder.set_buffer(buffer);
        self.instructions += 1;
        Ok(())
    }

    /// Emits an instruction of two operands.
    ///
    /// # Errors
    /// iced can't encode it.
    pub fn registers(&mut self, code: Code, to: Register, from: Register) -> Result<(), Refusal> {
        let instruction =
            Instruction::with2(code, to, from).map_err(|_| Refusal::Encoding { at: 0 })?;
        self.emit(&instruction)
    }

    /// Emits a load, or `lea`.
    ///
    /// # Errors
    /// iced can't encode it.
    pub fn load(&mut self, code: Code, to: Register, from: MemoryOperand) -> Result<(), Refusal> {
        let instruction =
            Instruction::with2(code, to, from).map_err(|_| Refusal::Encoding { at: 0 })?;
        self.emit(&instruction)
    }

    /// Emits a store.
    ///
    /// # Errors
    /// iced can't encode it.
    pub fn store(&mut self, code: Code, to: MemoryOperand, from: Register) -> Result<(), Refusal> {
        let instruction =
            Instruction::with2(code, to, from).map_err(|_| Refusal::Encoding { at: 0 })?;
        self.emit(&instruction)
    }

    /// `mov $value,%reg`, 32 bits, extended with zeros.
    pub fn constant(&mut self, register: u8, value: u32) {
        if register >= 8 {
            self.bytes.push(0x41);
        }
        self.bytes.push(0xb8 | (register & 7));
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self.instructions += 1;
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.instructions += 1;
    }

    fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// `jmp label`
    pub fn jump(&mut self, to: Label) {
        self.raw(&[0xe9]);
        self.jumps.push((self.here(), to));
        self.u32(0);
        self.flush_islands();
    }

    /// `jcc label`; `condition` is the low nibble of the opcode.
    pub fn branch(&mut self, condition: u8, to: Label) {
        self.raw(&[0x0f, 0x80 | condition]);
        self.jumps.push((self.here(), to));
        self.u32(0);
    }

    /// `jrcxz label`, to far away: `state` is the guest's state there.
    pub fn branch_if_rcx_zero(&mut self, to: Label, state: StatePoint) {
        self.raw(&[0xe3, 0]);
        self.short_jumps.push(ShortJump {
            at: self.here() - 1,
            to,
            state,
        });
    }

    /// `jrcxz` over what `otherwise` emits.
    pub fn unless_rcx_zero(&mut self, otherwise: impl FnOnce(&mut Code64)) {
        self.raw(&[0xe3, 0]);
        let at = self.here();
        otherwise(self);
        self.bytes[at as usize - 1] = (self.here() - at) as u8;
    }

    /// `jmp rel32` with its displacement within an aligned word; returns the displacement's
    /// offset.
    pub fn patchable_jump(&mut self) -> u32 {
        const NOPS: [&[u8]; 5] = [
            &[],
            &[0x90],
            &[0x66, 0x90],
            &[0x0f, 0x1f, 0x00],
            &[0x0f, 0x1f, 0x40, 0x00],
        ];
        let at = (self.here() + 1) % 8;
        if at + 4 > 8 {
            self.bytes.extend_from_slice(NOPS[8 - at as usize]);
        }
        self.raw(&[0xe9]);
        let at = self.here();
        self.u32(0);
        at
    }

    /// `jmp` to code that is there.
    pub fn jump_back(&mut self, to: u32) {
        self.raw(&[0xe9]);
        let distance = to.wrapping_sub(self.here() + 4);
        self.u32(distance);
    }

    /// A jump of five bytes within an aligned word, to the next instruction: the place for a
    /// detour. Returns the offset of its displacement.
    pub fn detour(&mut self) -> u32 {
        while self.here() % 8 > 3 {
            self.bytes.push(0x90);
        }
        self.raw(&[0xe9]);
        let at = self.here();
        self.u32(0);
        at
    }

    /// `jmp label` within code that a branch jumps over.
    pub fn jump_out(&mut self, to: Label) {
        self.raw(&[0xe9]);
        self.jumps.push((self.here(), to));
        self.u32(0);
    }

    /// Whether short jumps need their way on now.
    pub fn has_far_islands(&self) -> bool {
        let islands = 5 * self.short_jumps.len() as u32;
        self.short_jumps
            .first()
            .is_some_and(|oldest| self.here() - oldest.at + islands >= SHORT_REACH)
    }

    /// Puts islands here, and a jump over them.
    pub fn jump_over_islands(&mut self) {
        let islands = 5 * self.short_jumps.len() as u8;
        self.raw(&[0xeb, islands]);
        self.flush_islands();
    }

    /// Puts islands here, where control doesn't come by itself.
    pub fn flush_islands(&mut self) {
        for jump in std::mem::take(&mut self.short_jumps) {
            let here = self.here();
            self.bytes[jump.at as usize] = (here - jump.at - 1) as u8;
            self.state(jump.state);
            self.raw(&[0xe9]);
            self.jumps.push((self.here(), jump.to));
            self.u32(0);
        }
    }

    /// Resolves all jumps.
    pub fn resolve(&mut self) {
        assert!(self.short_jumps.is_empty(), "islands were flushed");
        for (at, label) in std::mem::take(&mut self.jumps) {
            let to = self.labels[label.0].expect("every label is placed");
            let distance = to.wrapping_sub(at + 4);
            self.bytes[at as usize..at as usize + 4].copy_from_slice(&distance.to_le_bytes());
        }
    }
}
