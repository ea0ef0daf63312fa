//! CPU features that Temper relies on, and where the CPU keeps each register in an XSAVE
//! area (CPUID leaf 0DH; Intel SDM volume 1, chapter 13).

use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::ops::Range;
use std::sync::OnceLock;

/// One XSAVE component beyond the legacy region.
#[derive(Clone, Copy, Debug)]
pub struct Component {
    /// Its bit in XCR0 and XSTATE_BV.
    pub bit: u64,
    /// Byte offset in the standard format.
    pub offset: usize,
    pub bytes: usize,
}

const AVX: u64 = 1 << 2;
const OPMASK: u64 = 1 << 5;
const ZMM_HI256: u64 = 1 << 6;
const HI16_ZMM: u64 = 1 << 7;

/// The standard-format layout of the vector components that this host enables.
#[derive(Debug)]
pub struct XsaveLayout {
    /// SSE, AVX and AVX-512 bits that the OS enabled in XCR0. Never x87, PKRU or AMX.
    pub vector_mask: u64,
    /// AVX and AVX-512 components among `vector_mask`.
    pub components: Vec<Component>,
    /// Every XCR0 bit that the OS enabled.
    pub xcr0: u64,
    /// Bytes of a whole standard-format area for XCR0 (what a signal frame carries).
    pub area_bytes: usize,
}

impl XsaveLayout {
    /// The host's layout, read once.
    pub fn get() -> &'static XsaveLayout {
        static LAYOUT: OnceLock<XsaveLayout> = OnceLock::new();
        LAYOUT.get_or_init(XsaveLayout::detect)
    }

    fn detect() -> XsaveLayout {
        let xcr0 = if Features::get().xsave {
            // SAFETY: CPUID says that the OS has enabled XSAVE, so XGETBV exists.
            unsafe { _xgetbv(0) }
        } else {
            3
        };
        let vector_mask = xcr0 & (2 | AVX | OPMASK | ZMM_HI256 | HI16_ZMM);
        let components = [AVX, OPMASK, ZMM_HI256, HI16_ZMM]
            .into_iter()
            .filter(|bit| vector_mask & bit != 0)
            .map(|bit| {
                let leaf = __cpuid_count(0xd, bit.trailing_zeros());
                Component {
                    bit,
                    offset: leaf.ebx as usize,
                    bytes: leaf.eax as usize,
                }
            })
            .collect();
        let area_bytes = __cpuid_count(0xd, 0).ebx as usize;
        XsaveLayout {
            vector_mask,
            components,
            xcr0,
            area_bytes,
        }
    }

    /// The offset of an enabled component, by its bit.
    pub fn offset_of(&self, bit: u64) -> Option<usize> {
        self.components
            .iter()
            .find(|c| c.bit == bit)
            .map(|c| c.offset)
    }

    /// Where the pieces of zmm`index` lie: (offset in the area, byte range in the register).
    pub fn register_parts(&self, index: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
        let parts = if index < 16 {
            [
                Some((160 + index * 16, 0..16)),
                self.offset_of(AVX).map(|at| (at + index * 16, 16..32)),
                self.offset_of(ZMM_HI256)
                    .map(|at| (at + index * 32, 32..64)),
            ]
        } else {
            [
                self.offset_of(HI16_ZMM)
                    .map(|at| (at + (index - 16) * 64, 0..64)),
                None,
                None,
            ]
        };
        parts.into_iter().flatten()
    }

    /// The offset of mask register k`index`.
    pub fn mask_offset(&self, index: usize) -> Option<usize> {
        self.offset_of(OPMASK).map(|at| at + index * 8)
    }
}

/// What the CPU and the kernel offer to Temper itself.
#[derive(Debug)]
pub struct Features {
    pub xsave: bool,
    pub xsaveopt: bool,
    /// RDFSBASE and friends, enabled by the kernel (AT_HWCAP2 bit 1).
    pub fsgsbase: bool,
    pub avx: bool,
    pub avx512: bool,
    pub erms: bool,
    /// What tells this CPU from others: its signature, and what it and the system offer.
    pub fingerprint: [u32; 7],
}

/// The CPU's vendor, family, model and stepping, as people write them.
pub fn cpu_name() -> String {
    let leaf0 = __cpuid(0);
    let vendor: String = [leaf0.ebx, leaf0.edx, leaf0.ecx]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .map(char::from)
        .collect();
    let signature = __cpuid(1).eax;
    let base = signature >> 8 & 0xf;
    let family = base
        + if base == 0xf {
            signature >> 20 & 0xff
        } else {
            0
        };
    let model = (signature >> 4 & 0xf) | (signature >> 12 & 0xf0);
    format!("{vendor} {family:#x} {model:#x} {}", signature & 0xf)
}

impl Features {
    /// The host's features, read once.
    pub fn get() -> &'static Features {
        static FEATURES: OnceLock<Features> = OnceLock::new();
        FEATURES.get_or_init(|| {
            let leaf1 = __cpuid(1);
            let leaf7 = __cpuid_count(7, 0);
            let xsave = leaf1.ecx & (1 << 27) != 0;
            let leaf_d1 = if xsave { __cpuid_count(0xd, 1).eax } else { 0 };
            // SAFETY: getauxval has no preconditions.
            let hwcap2 = unsafe { libc::getauxval(libc::AT_HWCAP2) };
            Features {
                xsave,
                xsaveopt: leaf_d1 & 1 != 0,
                fsgsbase: hwcap2 & 2 != 0,
                avx: leaf1.ecx & (1 << 28) != 0,
                avx512: leaf7.ebx & (1 << 16) != 0,
                erms: leaf7.ebx & (1 << 9) != 0,
                fingerprint: [
                    leaf1.eax, leaf1.ecx, leaf1.edx, leaf7.ebx, leaf7.ecx, leaf7.edx, leaf_d1,
                ],
            }
        })
    }
}
