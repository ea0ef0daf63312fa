//! The whole state of one virtual CPU between two instructions, as plain data: what moves
//! between the engines and into a snapshot. Values are architectural (Intel SDM volume 3);
//! nothing here is an engine's own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Segment registers in their encoding order (Intel SDM volume 2, table 3-1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum SegmentRegister {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

impl SegmentRegister {
    /// All six, in order.
    pub const ALL: [SegmentRegister; 6] = [
        SegmentRegister::Es,
        SegmentRegister::Cs,
        SegmentRegister::Ss,
        SegmentRegister::Ds,
        SegmentRegister::Fs,
        SegmentRegister::Gs,
    ];
}

/// A segment register with its hidden part (Intel SDM volume 3, section 3.4.3).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Segment {
    pub selector: u16,
    pub base: u64,
    /// In bytes, the granularity applied already: the last valid offset.
    pub limit: u32,
    /// Bits 40 to 55 of the descriptor, shifted down: type in bits 0 to 3, S in 4, DPL in
    /// 5 and 6, P in 7, AVL, L, D/B and G in 12 to 15.
    pub attributes: u16,
    /// The register holds a null selector (or, in TR and LDTR, nothing usable).
    pub unusable: bool,
}

impl Segment {
    pub const S: u16 = 1 << 4;
    pub const P: u16 = 1 << 7;
    pub const L: u16 = 1 << 13;
    pub const DB: u16 = 1 << 14;
    pub const G: u16 = 1 << 15;

    /// What a segment register holds in real mode.
    pub const fn real_mode(selector: u16) -> Segment {
        Segment {
            selector,
            base: (selector as u64) << 4,
            limit: 0xffff,
            attributes: 0x93,
            unusable: false,
        }
    }

    /// Descriptor type, bits 0 to 3 (with bit 3 set, code).
    pub const fn kind(&self) -> u16 {
        self.attributes & 15
    }

    pub const fn dpl(&self) -> u8 {
        (self.attributes >> 5 & 3) as u8
    }

    pub const fn has(&self, attribute: u16) -> bool {
        self.attributes & attribute != 0
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct TableRegister {
    pub base: u64,
    pub limit: u16,
}

/// An event whose delivery was begun or decided on, but not finished, when the CPU stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum PendingEvent {
    /// Already acknowledged at the interrupt controller.
    Interrupt(u8),
    Exception {
        vector: u8,
        error_code: Option<u32>,
    },
}

/// Bytes of an XSAVE image that moves between engines (what KVM_GET_XSAVE holds).
pub const XSAVE_BYTES: usize = 4096;

/// x87 and vector state as XSAVE writes it in the standard format, header included.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
#[repr(C, align(64))]
pub struct XsaveArea(pub [u8; XSAVE_BYTES]);

impl From<XsaveArea> for Vec<u8> {
    fn from(area: XsaveArea) -> Vec<u8> {
        area.0.to_vec()
    }
}

impl TryFrom<Vec<u8>> for XsaveArea {
    type Error = &'static str;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Self::Error> {
        let bytes = bytes.try_into();
        bytes
            .map(XsaveArea)
            .map_err(|_| "an XSAVE image of another length")
    }
}

impl Default for XsaveArea {
    /// The state after reset: FCW 037Fh, MXCSR 1F80h, everything else initial.
    fn default() -> Self {
        let mut area = XsaveArea([0; XSAVE_BYTES]);
        area.0[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
        area.0[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        // x87 and SSE are in the image: their values above are meant.
        area.0[512] = 3;
        area
    }
}

impl std::fmt::Debug for XsaveArea {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("XsaveArea")
    }
}

/// One virtual CPU at rest, between two instructions.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VcpuState {
    /// Indexed by [`crate::guest::Gpr`].
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    /// Indexed by [`SegmentRegister`]; the bases of FS and GS are the MSRs' too.
    pub segments: [Segment; 6],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: TableRegister,
    pub idtr: TableRegister,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    /// The task priority, also in the local APIC.
    pub cr8: u64,
    pub xcr0: u64,
    /// DR0 to DR3.
    pub breakpoints: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    pub efer: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub tsc_aux: u64,
    pub pat: u64,
    pub apic_base: u64,
    /// The guest's time-stamp counter at this moment.
    pub tsc: u64,
    /// Further MSRs that the guest has written, by index (MTRRs and the like).
    pub other_msrs: BTreeMap<u32, u64>,
    pub xsave: Box<XsaveArea>,
    /// The instruction before was STI or a load of SS: no interrupt before the next one.
    pub interrupt_shadow: bool,
    /// In HLT, until an interrupt or NMI.
    pub halted: bool,
    pub nmi_pending: bool,
    /// An NMI is being handled: the next waits for IRET.
    pub nmi_blocked: bool,
    pub pending: Option<PendingEvent>,
}

impl Default for VcpuState {
    /// The state after reset (Intel SDM volume 3, table 10-1): real mode at F000:FFF0.
    fn default() -> Self {
        let mut cs = Segment::real_mode(0xf000);
        cs.base = 0xffff_0000;
        cs.attributes = 0x9b;
        let data = Segment::real_mode(0);
        let mut gpr = [0; 16];
        // A family and model in EDX, as after reset.
        gpr[2] = 0x600;
        VcpuState {
            gpr,
            rip: 0xfff0,
            rflags: 2,
            segments: [data, cs, data, data, data, data],
            ldtr: Segment {
                limit: 0xffff,
                attributes: 0x82,
                ..Segment::default()
            },
            tr: Segment {
                limit: 0xffff,
                attributes: 0x8b,
                ..Segment::default()
            },
            gdtr: TableRegister {
                base: 0,
                limit: 0xffff,
            },
            idtr: TableRegister {
                base: 0,
                limit: 0xffff,
            },
            cr0: 0x6000_0010,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            xcr0: 1,
            breakpoints: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            efer: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            tsc_aux: 0,
            pat: 0x0007_0406_0007_0406,
            apic_base: 0xfee0_0900,
            tsc: 0,
            other_msrs: BTreeMap::new(),
            xsave: Box::default(),
            interrupt_shadow: false,
            halted: false,
            nmi_pending: false,
            nmi_blocked: false,
            pending: None,
        }
    }
}

impl VcpuState {
    pub fn segment(&self, register: SegmentRegister) -> &Segment {
        &self.segments[register as usize]
    }

    pub fn segment_mut(&mut self, register: SegmentRegister) -> &mut Segment {
        &mut self.segments[register as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_cpu_starts_sixteen_bytes_below_four_gigabytes() {
        let state = VcpuState::default();
        let cs = state.segment(SegmentRegister::Cs);
        assert_eq!(cs.base + state.rip, 0xffff_fff0);
        assert_eq!(cs.selector, 0xf000);
        assert!(cs.has(Segment::P) && cs.has(Segment::S));
    }
}
