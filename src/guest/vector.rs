//! The guest's vector state at rest: an XSAVE area in standard (non-compacted) format
//! (Intel SDM volume 1, section 13.4), with component offsets as the host's CPUID reports
//! them. x87 and MMX state is not kept here: no Rust code of Temper's touches it, so it
//! stays live in the CPU.

use crate::host::XsaveLayout;

/// Bytes reserved for the area. The largest known layout without AMX ends at 2696.
pub const AREA_BYTES: usize = 2752;

const MXCSR: usize = 24;
const XMM: usize = 160;
const XSTATE_BV: usize = 512;

/// An XSAVE area: xmm/ymm/zmm 0 to 31, k0 to k7, MXCSR.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct VectorState {
    pub area: [u8; AREA_BYTES],
}

impl Default for VectorState {
    fn default() -> Self {
        let mut state = VectorState {
            area: [0; AREA_BYTES],
        };
        state.set_mxcsr(0x1f80);
        state.set_xstate_bv(XsaveLayout::get().vector_mask);
        state
    }
}

impl VectorState {
    /// Which components the area holds; the others are in their initial state (zero).
    pub fn xstate_bv(&self) -> u64 {
        u64::from_le_bytes(
            self.area[XSTATE_BV..XSTATE_BV + 8]
                .try_into()
                .expect("8 bytes"),
        )
    }

    fn set_xstate_bv(&mut self, value: u64) {
        self.area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// Writes out components that an optimized save left in their initial state, so that
    /// every byte of the area is meaningful. Call before reading or writing registers.
    pub fn materialize(&mut self) {
        let layout = XsaveLayout::get();
        let missing = layout.vector_mask & !self.xstate_bv();
        if missing == 0 {
            return;
        }
        if missing & 2 != 0 {
            self.area[XMM..XMM + 256].fill(0);
        }
        for component in &layout.components {
            if missing & component.bit != 0 {
                self.area[component.offset..component.offset + component.bytes].fill(0);
            }
        }
        self.set_xstate_bv(self.xstate_bv() | layout.vector_mask);
    }

    pub fn mxcsr(&self) -> u32 {
        u32::from_le_bytes(self.area[MXCSR..MXCSR + 4].try_into().expect("4 bytes"))
    }

    pub fn set_mxcsr(&mut self, value: u32) {
        self.area[MXCSR..MXCSR + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// All 64 bytes of zmm`index` (0 to 31); bytes that the CPU lacks read as zero.
    /// The area must be materialized.
    pub fn register(&self, index: usize) -> [u8; 64] {
        let mut value = [0; 64];
        for (part, bytes) in XsaveLayout::get().register_parts(index) {
            value[bytes.clone()].copy_from_slice(&self.area[part..part + bytes.len()]);
        }
        value
    }

    /// Sets all 64 bytes of zmm`index` (0 to 31). The area must be materialized.
    pub fn set_register(&mut self, index: usize, value: &[u8; 64]) {
        for (part, bytes) in XsaveLayout::get().register_parts(index) {
            self.area[part..part + bytes.len()].copy_from_slice(&value[bytes]);
        }
    }

    /// Mask register k`index` (0 to 7), zero without AVX-512. The area must be materialized.
    pub fn mask(&self, index: usize) -> u64 {
        XsaveLayout::get().mask_offset(index).map_or(0, |at| {
            u64::from_le_bytes(self.area[at..at + 8].try_into().expect("8 bytes"))
        })
    }

    /// Sets k`index`; ignored without AVX-512. The area must be materialized.
    pub fn set_mask(&mut self, index: usize, value: u64) {
        if let Some(at) = XsaveLayout::get().mask_offset(index) {
            self.area[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_reads_back_what_was_written() {
        let mut state = VectorState::default();
        let layout = XsaveLayout::get();
        let width = layout
            .register_parts(3)
            .map(|(_, bytes)| bytes.end)
            .max()
            .unwrap_or(0);
        let mut value = [0u8; 64];
        for (i, byte) in value[..width].iter_mut().enumerate() {
            *byte = i as u8 + 1;
        }
        state.set_register(3, &value);
        assert_eq!(state.register(3), value);
        assert_eq!(state.register(2), [0; 64]);
    }
}
