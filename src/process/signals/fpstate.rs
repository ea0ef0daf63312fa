//! The floating-point part of a signal frame: an XSAVE area in standard format with the
//! kernel's marks in it (linux/arch/x86/include/uapi/asm/sigcontext.h, `_fpx_sw_bytes`).
//!
//! Vector state is taken from the thread context, where the engine has put it; all else (x87,
//! PKRU) is live in the CPU and is saved and loaded here with masks that leave the vector
//! registers, which Rust uses, alone.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use crate::guest::VectorState;
use crate::host::{Features, XsaveLayout};

const X87: u64 = 1;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
const PKRU: u64 = 1 << 9;
/// AMX tile data: dynamic, so outside every frame unless a program asked for it.
const TILE_DATA: u64 = 1 << 18;

const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
/// `init_pkru_value`: all keys but 0 closed.
const DEFAULT_PKRU: u32 = 0x5555_5554;

const LEGACY_BYTES: usize = 512;
const HEADER_END: usize = 576;
const MXCSR: usize = 24;
const MXCSR_MASK: usize = 28;
const XMM_START: usize = 160;
const XMM_END: usize = 416;
const SW_BYTES: usize = 464;
const XSTATE_BV: usize = 512;

/// Room for every known component but tile data (the largest ends at 2816).
pub const MAX_AREA: usize = 4096;

/// An XSAVE area outside guest memory.
#[repr(C, align(64))]
pub struct Area(pub [u8; MAX_AREA]);

/// What the kernel puts into frames on this host.
#[derive(Debug)]
pub struct FrameLayout {
    /// Components in the frame.
    pub features: u64,
    /// Those of them that stay in the CPU while Temper's own code runs.
    live: u64,
    /// Bytes of the area, without the closing mark.
    pub area_bytes: usize,
    mxcsr_mask: u32,
    xsave: bool,
}

impl FrameLayout {
    /// The host's layout, read once.
    pub fn get() -> &'static FrameLayout {
        static LAYOUT: OnceLock<FrameLayout> = OnceLock::new();
        LAYOUT.get_or_init(FrameLayout::detect)
    }

    fn detect() -> FrameLayout {
        let layout = XsaveLayout::get();
        let xsave = Features::get().xsave;
        let features = layout.xcr0 & !TILE_DATA;
        let area_bytes = if xsave {
            (2..63)
                .filter(|bit| features & (1 << bit) != 0)
                .map(|bit| {
                    let leaf = __cpuid_count(0xd, bit);
                    (leaf.eax + leaf.ebx) as usize
                })
                .fold(HEADER_END, usize::max)
        } else {
            LEGACY_BYTES
        };
        assert!(
            area_bytes + 4 <= MAX_AREA,
            "XCR0 {features:#x} needs {area_bytes} bytes in a signal frame"
        );
        let mut probe = Area([0; MAX_AREA]);
        // SAFETY: the area is 64-byte aligned and larger than 512 bytes.
        unsafe { asm!("fxsave64 [{}]", in(reg) &raw mut probe, options(nostack)) };
        let mxcsr_mask = match read_u32(&probe.0, MXCSR_MASK) {
            // Intel SDM volume 1, section 11.6.6.
            0 => 0xffbf,
            mask => mask,
        };
        FrameLayout {
            features,
            live: features & !layout.vector_mask,
            area_bytes,
            mxcsr_mask,
            xsave,
        }
    }

    /// Bytes in the frame: the area and, after it, the second mark.
    pub fn frame_bytes(&self) -> usize {
        self.area_bytes + if self.xsave { 4 } else { 0 }
    }

    /// Whether frames are XSAVE areas (`UC_FP_XSTATE`).
    pub fn is_xsave(&self) -> bool {
        self.xsave
    }
}

/// The frame's floating-point state, from `vector` and the CPU: the bytes to copy to the
/// guest's stack are the first [`FrameLayout::frame_bytes`].
pub fn save(vector: &mut VectorState) -> Box<Area> {
    let layout = FrameLayout::get();
    let mut area = Box::new(Area([0; MAX_AREA]));
    save_live(&mut area, layout);
    vector.materialize();
    let bytes = &mut area.0;
    write_u32(bytes, MXCSR, vector.mxcsr());
    write_u32(bytes, MXCSR_MASK, layout.mxcsr_mask);
    bytes[XMM_START..XMM_END].copy_from_slice(&vector.area[XMM_START..XMM_END]);
    if !layout.xsave {
        return area;
    }
    // x87 and SSE are always marked, so that programs which edit the legacy part alone are
    // heard; others when they hold anything.
    let mut present = read_u64(bytes, XSTATE_BV) | X87 | SSE;
    for component in &XsaveLayout::get().components {
        let range = component.offset..component.offset + component.bytes;
        let source = &vector.area[range.clone()];
        if source.iter().any(|byte| *byte != 0) {
            present |= component.bit;
            bytes[range].copy_from_slice(source);
        }
    }
    write_u64(bytes, XSTATE_BV, present);
    write_u32(bytes, SW_BYTES, MAGIC1);
    write_u32(bytes, SW_BYTES + 4, layout.frame_bytes() as u32);
    write_u64(bytes, SW_BYTES + 8, layout.features);
    write_u32(bytes, SW_BYTES + 16, layout.area_bytes as u32);
    write_u32(bytes, layout.area_bytes, MAGIC2);
    area
}

/// Puts everything into its initial state, as handlers start with it.
pub fn reset(vector: &mut VectorState) {
    *vector = VectorState::default();
    let layout = FrameLayout::get();
    let mut area = Area([0; MAX_AREA]);
    initial_x87(&mut area.0);
    if layout.live & PKRU != 0 {
        let at = __cpuid_count(0xd, 9).ebx as usize;
        write_u32(&mut area.0, at, DEFAULT_PKRU);
        write_u64(&mut area.0, XSTATE_BV, PKRU);
    }
    load_live(&area, layout);
}

/// The frame's state doesn't restore: the kernel answers with SIGSEGV.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadState;

/// Takes the state back from a frame at `addr`, which `read` fetches guest memory for.
/// As the kernel's restore: without valid marks only x87 and SSE are taken, components that
/// the frame leaves out become initial.
///
/// # Errors
/// Unreadable memory, misalignment, and what XRSTOR refuses.
pub fn restore(
    addr: u64,
    vector: &mut VectorState,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), BadState>,
) -> Result<(), BadState> {
    let layout = FrameLayout::get();
    let mut area = Box::new(Area([0; MAX_AREA]));
    let bytes = &mut area.0;
    read(addr, &mut bytes[..LEGACY_BYTES])?;
    let mut wanted = X87 | SSE;
    let mut present = X87 | SSE;
    let marked = layout.xsave && read_u32(bytes, SW_BYTES) == MAGIC1 && {
        let mut mark = [0; 4];
        read(addr.wrapping_add(layout.area_bytes as u64), &mut mark)?;
        u32::from_le_bytes(mark) == MAGIC2
    };
    if marked {
        wanted = read_u64(bytes, SW_BYTES + 8) & layout.features;
        read(
            addr.wrapping_add(LEGACY_BYTES as u64),
            &mut bytes[LEGACY_BYTES..layout.area_bytes],
        )?;
        present = read_u64(bytes, XSTATE_BV);
        // XRSTOR's checks (Intel SDM volume 1, section 13.8): alignment, unknown components,
        // a nonzero header. It also takes the compacted format, which never fits this frame.
        let header_clean = bytes[XSTATE_BV + 8..HEADER_END]
            .iter()
            .all(|byte| *byte == 0);
        if !addr.is_multiple_of(64) || present & !XsaveLayout::get().xcr0 != 0 || !header_clean {
            return Err(BadState);
        }
    } else if !addr.is_multiple_of(16) {
        return Err(BadState);
    }
    let takes_mxcsr = wanted & (SSE | AVX) != 0;
    let mxcsr = read_u32(bytes, MXCSR);
    if takes_mxcsr && mxcsr & !layout.mxcsr_mask != 0 {
        return Err(BadState);
    }
    let present = present & wanted;
    *vector = VectorState::default();
    if takes_mxcsr {
        vector.set_mxcsr(mxcsr);
    }
    if present & SSE != 0 {
        vector.area[XMM_START..XMM_END].copy_from_slice(&bytes[XMM_START..XMM_END]);
    }
    for component in &XsaveLayout::get().components {
        if present & component.bit != 0 {
            let range = component.offset..component.offset + component.bytes;
            vector.area[range.clone()].copy_from_slice(&bytes[range]);
        }
    }
    write_u64(bytes, XSTATE_BV, present);
    bytes[XSTATE_BV + 8..HEADER_END].fill(0);
    load_live(&area, layout);
    Ok(())
}

/// The x87 control and status words of the CPU, which still holds the guest's.
pub fn x87_control_and_status() -> (u16, u16) {
    let mut area = Area([0; MAX_AREA]);
    save_live(&mut area, FrameLayout::get());
    let word = |at: usize| u16::from_le_bytes([area.0[at], area.0[at + 1]]);
    (word(0), word(2))
}

/// Writes live components into `area`; its vector parts stay.
fn save_live(area: &mut Area, layout: &FrameLayout) {
    if layout.xsave {
        // SAFETY: `area` is 64-byte aligned and holds every component of the mask.
        unsafe {
            asm!(
                "xsave64 [{}]",
                in(reg) &raw mut *area,
                in("eax") layout.live as u32,
                in("edx") (layout.live >> 32) as u32,
                options(nostack),
            );
        }
    } else {
        let mut all = Area([0; MAX_AREA]);
        // SAFETY: aligned and large enough.
        unsafe { asm!("fxsave64 [{}]", in(reg) &raw mut all, options(nostack)) };
        area.0[..MXCSR].copy_from_slice(&all.0[..MXCSR]);
        area.0[32..XMM_START].copy_from_slice(&all.0[32..XMM_START]);
    }
}

/// Loads live components from `area` (those that its header lacks become initial) and
/// leaves vector registers and MXCSR alone. No Rust code keeps anything in x87 registers.
fn load_live(area: &Area, layout: &FrameLayout) {
    if layout.xsave {
        // SAFETY: `area` is aligned and its header was made or checked by this module; the
        // mask excludes all that Rust uses.
        unsafe {
            asm!(
                "xrstor64 [{}]",
                in(reg) &raw const *area,
                in("eax") layout.live as u32,
                in("edx") (layout.live >> 32) as u32,
                options(nostack),
            );
        }
    } else {
        let mut all = Area([0; MAX_AREA]);
        // SAFETY: aligned and large enough; what is loaded differs from what was saved in
        // the x87 part alone.
        unsafe {
            asm!("fxsave64 [{}]", in(reg) &raw mut all, options(nostack));
            all.0[..MXCSR].copy_from_slice(&area.0[..MXCSR]);
            all.0[32..XMM_START].copy_from_slice(&area.0[32..XMM_START]);
            asm!("fxrstor64 [{}]", in(reg) &raw const all, options(nostack));
        }
    }
}

/// FNINIT's control word; only FXRSTOR needs it spelt out.
fn initial_x87(bytes: &mut [u8]) {
    bytes[..2].copy_from_slice(&0x37fu16.to_le_bytes());
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn write_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn write_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}
