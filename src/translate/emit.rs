//! Machine code of the few sequences that tier 1 emits itself (encodings: Intel SDM volume
//! 2). None of them changes flags or the guest's memory below rsp.

use std::ops::Range;

use iced_x86::{Code, Encoder, Instruction, OpKind, Register};

use crate::addr::{GuestAddr, HostAddr};
use crate::codecache::MAP_DISPLACEMENT;
use crate::guest::{HostRoutine, offsets};

/// Bytes of [`Emitter::count_down`].
pub(super) const COUNT_DOWN_BYTES: u32 = 42;

/// Bytes of code being generated for a known host address.
pub(super) struct Emitter {
    base: HostAddr,
    bytes: Vec<u8>,
}

impl Emitter {
    pub(super) fn new(base: HostAddr) -> Emitter {
        Emitter {
            base,
            bytes: Vec::with_capacity(256),
        }
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.bytes
    }

    /// Starts over at another address.
    pub(super) fn restart(&mut self, base: HostAddr) {
        self.base = base;
        self.bytes.clear();
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn offset(&self) -> u32 {
        self.bytes.len() as u32
    }

    pub(super) fn here(&self) -> HostAddr {
        self.base.offset(self.bytes.len() as i64)
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.raw(&value.to_le_bytes());
    }

    /// `mov %r11,%gs:r11_slot`
    pub(super) fn store_r11(&mut self) {
        self.raw(&[0x65, 0x4c, 0x89, 0x1c, 0x25]);
        self.u32(offsets::R11_SLOT as u32);
    }

    /// `mov %gs:r11_slot,%r11`
    pub(super) fn load_r11(&mut self) {
        self.raw(&[0x65, 0x4c, 0x8b, 0x1c, 0x25]);
        self.u32(offsets::R11_SLOT as u32);
    }

    /// `mov %reg,%gs:slot`
    pub(super) fn spill(&mut self, reg: Register, slot: usize) {
        let n = reg.number() as u8;
        self.raw(&[0x65, 0x48 | (n >> 3) << 2, 0x89, 0x04 | (n & 7) << 3, 0x25]);
        self.u32(slot as u32);
    }

    /// `mov %gs:slot,%reg`
    pub(super) fn unspill(&mut self, reg: Register, slot: usize) {
        let n = reg.number() as u8;
        self.raw(&[0x65, 0x48 | (n >> 3) << 2, 0x8b, 0x04 | (n & 7) << 3, 0x25]);
        self.u32(slot as u32);
    }

    /// `movabs $value,%reg`
    pub(super) fn load_immediate(&mut self, reg: Register, value: u64) {
        let n = reg.number() as u8;
        self.raw(&[0x48 | n >> 3, 0xb8 | (n & 7)]);
        self.raw(&value.to_le_bytes());
    }

    /// `mov %reg,%r11`
    pub(super) fn copy_to_r11(&mut self, reg: Register) {
        let n = reg.number() as u8;
        self.raw(&[0x49 | (n >> 3) << 2, 0x89, 0xc3 | (n & 7) << 3]);
    }

    /// `pop %r11`
    pub(super) fn pop_r11(&mut self) {
        self.raw(&[0x41, 0x5b]);
    }

    /// `lea bytes(%rsp),%rsp`
    pub(super) fn drop_stack(&mut self, bytes: u32) {
        self.raw(&[0x48, 0x8d, 0xa4, 0x24]);
        self.u32(bytes);
    }

    /// `push $value`, sign-extended from 32 bits.
    pub(super) fn push_immediate(&mut self, value: i32) {
        self.raw(&[0x68]);
        self.u32(value as u32);
    }

    /// `movl $value,offset(%rsp)`
    pub(super) fn store_below_stack(&mut self, offset: i8, value: u32) {
        self.raw(&[0xc7, 0x44, 0x24, offset as u8]);
        self.u32(value);
    }

    /// `jmp *map(,%r11,8)`
    pub(super) fn jump_through_map(&mut self) {
        self.raw(&[0x42, 0xff, 0x24, 0xdd]);
        self.u32(MAP_DISPLACEMENT);
    }

    /// `jmp *%gs:routine`
    pub(super) fn jump_to_routine(&mut self, routine: HostRoutine) {
        self.raw(&[0x65, 0xff, 0x24, 0x25]);
        self.u32((offsets::ROUTINES + 8 * routine as usize) as u32);
    }

    /// `mov $addr,%gs:rip`, all 64 bits.
    pub(super) fn store_rip(&mut self, addr: GuestAddr) {
        if let Ok(low) = i32::try_from(addr.0) {
            self.raw(&[0x65, 0x48, 0xc7, 0x04, 0x25]);
            self.u32(offsets::RIP as u32);
            self.u32(low as u32);
        } else {
            for half in 0..2 {
                self.raw(&[0x65, 0xc7, 0x04, 0x25]);
                self.u32((offsets::RIP + 4 * half) as u32);
                self.u32((addr.0 >> (32 * half)) as u32);
            }
        }
    }

    /// A near jump to code that exists already.
    pub(super) fn jump_to(&mut self, target: HostAddr) {
        let next = self.here().offset(5);
        let rel = i32::try_from(target.0 as i64 - next.0 as i64).expect("within the arena");
        self.raw(&[0xe9]);
        self.u32(rel as u32);
    }

    /// Pads so that `bytes` bytes (at most 5), `after` bytes from here, lie within an aligned
    /// 8-byte word and can be patched while other CPUs run them.
    fn align_patchable(&mut self, after: u32, bytes: u32) {
        const NOPS: [&[u8]; 5] = [
            &[],
            &[0x90],
            &[0x66, 0x90],
            &[0x0f, 0x1f, 0x00],
            &[0x0f, 0x1f, 0x40, 0x00],
        ];
        let at = (self.offset() + after) % 8;
        if at + bytes > 8 {
            self.raw(NOPS[8 - at as usize]);
        }
    }

    /// A patchable `jmp`; returns the offset of its displacement.
    pub(super) fn patchable_jump(&mut self) -> u32 {
        self.align_patchable(1, 4);
        self.raw(&[0xe9]);
        let at = self.offset();
        self.u32(0);
        at
    }

    /// A `jmp` that can be patched as a whole; returns the offset of its displacement.
    pub(super) fn detour(&mut self) -> u32 {
        self.align_patchable(0, 5);
        self.raw(&[0xe9]);
        let at = self.offset();
        self.u32(0);
        at
    }

    /// A patchable `jcc` for condition `cc` (the low opcode nibble).
    pub(super) fn patchable_branch(&mut self, cc: u8) -> u32 {
        self.align_patchable(2, 4);
        self.raw(&[0x0f, 0x80 | cc]);
        let at = self.offset();
        self.u32(0);
        at
    }

    /// Counts `cell` down and goes on at `back`; once the cell is zero, ends behind that,
    /// for what leaves. Flags are the guest's at this point, so only instructions that leave
    /// them alone serve. Returns where guest RCX is in the first spill slot, and where the
    /// way out starts, where it is there too (offsets from the first byte).
    pub(super) fn count_down(&mut self, cell: u32, back: HostAddr) -> (Range<u32>, u32) {
        let start = self.offset();
        self.spill(Register::RCX, offsets::SPILL);
        let spilled = self.offset();
        // mov cell,%ecx
        self.raw(&[0x8b, 0x0c, 0x25]);
        self.u32(cell);
        // jrcxz (the way out)
        self.raw(&[0xe3, 0]);
        let branched = self.offset();
        // lea -1(%rcx),%ecx
        self.raw(&[0x8d, 0x49, 0xff]);
        // mov %ecx,cell
        self.raw(&[0x89, 0x0c, 0x25]);
        self.u32(cell);
        self.unspill(Register::RCX, offsets::SPILL);
        let exact = self.offset();
        self.jump_to(back);
        let out = self.offset();
        self.patch_u8(branched - 1, (out - branched) as u8);
        debug_assert_eq!(out - start, COUNT_DOWN_BYTES);
        (spilled - start..exact - start, out - start)
    }

    pub(super) fn set_rel32(&mut self, at: u32, target: HostAddr) {
        let next = self.base.offset(i64::from(at) + 4);
        let rel = i32::try_from(target.0 as i64 - next.0 as i64).expect("within the arena");
        self.bytes[at as usize..at as usize + 4].copy_from_slice(&rel.to_le_bytes());
    }

    pub(super) fn patch_u8(&mut self, at: u32, value: u8) {
        self.bytes[at as usize] = value;
    }

    pub(super) fn patch_u32(&mut self, at: u32, value: u32) {
        self.bytes[at as usize..at as usize + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Encodes an instruction for this place. RIP-relative operands keep their target.
    ///
    /// # Errors
    /// When iced can't encode it, as when a RIP-relative target is out of reach.
    pub(super) fn encode(
        &mut self,
        encoder: &mut Encoder,
        instruction: &Instruction,
    ) -> Result<(), iced_x86::IcedError> {
        encoder.encode(instruction, self.here().0)?;
        let bytes = encoder.take_buffer();
        self.raw(&bytes);
        encoder.set_buffer(bytes_cleared(bytes));
        Ok(())
    }

    /// `mov mem,%r11` with the memory operand of an indirect branch.
    pub(super) fn load_target(
        &mut self,
        encoder: &mut Encoder,
        branch: &Instruction,
    ) -> Result<(), iced_x86::IcedError> {
        let mut load = *branch;
        load.set_code(Code::Mov_r64_rm64);
        load.set_op0_kind(OpKind::Register);
        load.set_op0_register(Register::R11);
        load.set_op1_kind(OpKind::Memory);
        self.encode(encoder, &load)
    }

    /// Whether a 32-bit displacement reaches `target` from any place near here.
    pub(super) fn reaches(&self, target: u64) -> bool {
        const MARGIN: i64 = 1 << 16;
        let distance = target.wrapping_sub(self.here().0) as i64;
        distance.abs() < i64::from(i32::MAX) - MARGIN
    }
}

fn bytes_cleared(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.clear();
    bytes
}
