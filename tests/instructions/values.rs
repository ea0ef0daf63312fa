//! Random values, with a bias to those where implementations differ: limits, special floats,
//! small numbers, and what lies in memory already.

use temper::guest::{Gpr, flags};
use temper::host::XsaveLayout;

use crate::machine::{INSTRUCTION_AT, Memory, State, WRITABLE, WRITABLE_BYTES};

/// SplitMix64: one word of state, so a printed seed reproduces a case.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A number that integer code trips over.
    pub fn integer(&mut self) -> u64 {
        match self.below(8) {
            0 => self.below(4),
            1 => self.below(100).wrapping_neg(),
            2 => 1 << self.below(64),
            3 => (1u64 << self.below(64)).wrapping_sub(1),
            4 => self.pick(&[0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0x7fff_ffff, 0x8000_0000]),
            5 => self.next() >> self.below(64),
            _ => self.next(),
        }
    }

    fn float32(&mut self) -> u32 {
        match self.below(8) {
            0 => self.pick(&[
                0,
                0x8000_0000,
                0x7f80_0000,
                0xff80_0000,
                0x7fc0_0000,
                0x7fa0_0001,
                0x0000_0001,
                0x8040_0000,
                0x7f7f_ffff,
                0x0080_0000,
            ]),
            1 => self.next() as u32,
            2 => (self.below(2000) as f32 - 1000.0).to_bits(),
            _ => {
                ((self.below(1 << 24) as f32 - 8e6) / self.pick(&[1.0, 3.0, 1024.0, 1e9])).to_bits()
            }
        }
    }

    fn float64(&mut self) -> u64 {
        match self.below(8) {
            0 => self.pick(&[
                0,
                1 << 63,
                0x7ff0_0000_0000_0000,
                0xfff0_0000_0000_0000,
                0x7ff8_0000_0000_0000,
                0x7ff4_0000_0000_0001,
                1,
                0x800f_ffff_ffff_ffff,
                0x7fef_ffff_ffff_ffff,
                0x0010_0000_0000_0000,
            ]),
            1 => self.next(),
            2 => (self.below(2000) as f64 - 1000.0).to_bits(),
            _ => ((self.below(1 << 40) as f64 - 5e11) / self.pick(&[1.0, 3.0, 4096.0, 1e9]))
                .to_bits(),
        }
    }

    /// Fills `bytes` (a multiple of 8) with lanes of one kind.
    pub fn lanes(&mut self, bytes: &mut [u8]) {
        let kind = self.below(6);
        for lane in bytes.chunks_exact_mut(8) {
            let value = match kind {
                0 | 1 => u64::from(self.float32()) << 32 | u64::from(self.float32()),
                2 | 3 => self.float64(),
                4 => self.integer(),
                _ => self.next(),
            };
            lane.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Memory for a batch of cases.
    pub fn memory(&mut self) -> Box<Memory> {
        let mut memory = Box::new([0; WRITABLE_BYTES]);
        for chunk in memory.chunks_exact_mut(64) {
            self.lanes(chunk);
        }
        memory
    }
}

/// A random machine state; addresses are aimed later.
pub fn state(rng: &mut Rng) -> State {
    let mut state = State::default();
    for value in &mut state.cpu.gpr {
        *value = rng.integer();
    }
    state.cpu.rip = INSTRUCTION_AT;
    let stack = WRITABLE + 0x400 + rng.below(0xc00) * 8;
    state.cpu.set(Gpr::Rsp, stack);
    state.cpu.rflags = flags::FIXED | flags::IF | rng.next() & flags::ARITHMETIC;
    if rng.percent(15) {
        state.cpu.rflags |= flags::DF;
    }
    state.cpu.fs_base = 0x100;
    state.cpu.gs_base = 0x2000;
    for index in 0..32 {
        let mut value = [0; 64];
        rng.lanes(&mut value);
        state.vector.set_register(index, &value);
    }
    for index in 0..8 {
        let value = rng.next();
        let value = if std::arch::is_x86_feature_detected!("avx512bw") {
            value
        } else {
            value & 0xffff
        };
        state.vector.set_mask(index, value);
    }
    let mxcsr = mxcsr(rng);
    state.vector.set_mxcsr(mxcsr);
    x87(rng, &mut state.vector.area);
    debug_assert_eq!(state.vector.xstate_bv(), XsaveLayout::get().vector_mask);
    state
}

/// Mostly the usual one; else any rounding mode, flush to zero, denormals as zero, sticky
/// flags, and now and then an unmasked exception.
pub fn mxcsr(rng: &mut Rng) -> u32 {
    let mut mxcsr = 0x1f80;
    if rng.percent(40) {
        mxcsr |= rng.next() as u32 & 0xe07f;
    }
    if rng.percent(10) {
        mxcsr &= !(rng.next() as u32 & 0x1f80);
    }
    mxcsr
}

/// x87 state in FXSAVE's layout: some registers loaded, most exceptions masked, rarely one
/// pending.
fn x87(rng: &mut Rng, area: &mut [u8]) {
    let mut control = 0x037fu16;
    if rng.percent(30) {
        control = control & !0xf00 | rng.next() as u16 & 0xf00;
    }
    if rng.percent(5) {
        control &= !(rng.next() as u16 & 0x3f);
    }
    let masked = control & 0x3f;
    let sticky = match rng.below(100) {
        0..20 => rng.next() as u16 & masked,
        20..23 => rng.next() as u16 & 0x3f,
        _ => 0,
    };
    let pending = if sticky & !masked == 0 { 0 } else { 0x8080 };
    let status = rng.next() as u16 & 0x4700 | (rng.below(8) as u16) << 11 | sticky | pending;
    area[..160].fill(0);
    area[0..2].copy_from_slice(&control.to_le_bytes());
    area[2..4].copy_from_slice(&status.to_le_bytes());
    // Mostly all in use or a few empty: an empty operand makes every result the same.
    area[4] = if rng.percent(70) {
        0xff
    } else {
        rng.next() as u8
    };
    area[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    area[28..32].copy_from_slice(&0xffffu32.to_le_bytes());
    for index in 0..8 {
        let at = 32 + index * 16;
        let (significand, exponent) = match rng.below(8) {
            0 => (0, rng.pick(&[0, 0x8000])),
            1 => (1 << 63, rng.pick(&[0x7fff, 0xffff])),
            2 => (3 << 62, rng.pick(&[0x7fff, 0xffff])),
            3 => (rng.next() >> 1, 0),
            4 => (rng.next(), rng.next() as u16),
            5 => (1 << 63 | rng.next() << 40, 0x3fff + rng.below(20) as u16),
            _ => (1 << 63 | rng.next(), 0x3fe0 + rng.below(80) as u16),
        };
        area[at..at + 8].copy_from_slice(&u64::to_le_bytes(significand));
        area[at + 8..at + 10].copy_from_slice(&u16::to_le_bytes(exponent));
    }
}
