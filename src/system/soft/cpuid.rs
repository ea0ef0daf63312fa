//! The CPU that the guest sees: a plain AMD64 one with those of the host's features that the
//! engine executes. AVX-512 is left out, and all features that are about performance alone.

use std::arch::x86_64::__cpuid_count;

use super::Vcpu;
use super::registers::cr4;
use super::walk::PHYSICAL_BITS;
use crate::guest::Gpr;
use crate::host::XsaveLayout;

/// XCR0 bits that the guest may set: x87, SSE, AVX.
pub fn supported_xcr0() -> u64 {
    1 | XsaveLayout::get().vector_mask & 0b110
}

fn bits(list: &[u32]) -> u32 {
    list.iter().fold(0, |sum, bit| sum | 1 << bit)
}

fn text(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    for (to, from) in word.iter_mut().zip(bytes.iter().skip(at)) {
        *to = *from;
    }
    u32::from_le_bytes(word)
}

const VENDOR: &[u8; 12] = b"AuthenticAMD";
const BRAND: &[u8] = b"Temper virtual CPU";
/// Family 15, model 6, stepping 1: old enough for no kernel to look for more than is here.
const SIGNATURE: u32 = 0x0000_0f61;
const LAST_BASIC: u32 = 0xd;
const LAST_EXTENDED: u32 = 0x8000_0008;

/// Bytes of the standard XSAVE format for the components in `mask`.
pub fn xsave_bytes(mask: u64) -> u32 {
    let layout = XsaveLayout::get();
    let ends = layout.components.iter().filter(|c| c.bit & mask != 0);
    ends.map(|c| (c.offset + c.bytes) as u32)
        .max()
        .unwrap_or(0)
        .max(576)
}

impl Vcpu {
    pub(super) fn cpuid(&mut self) {
        let leaf = self.cpu.get(Gpr::Rax) as u32;
        let subleaf = self.cpu.get(Gpr::Rcx) as u32;
        let [eax, ebx, ecx, edx] = self.cpuid_leaf(leaf, subleaf);
        self.cpu.set(Gpr::Rax, u64::from(eax));
        self.cpu.set(Gpr::Rbx, u64::from(ebx));
        self.cpu.set(Gpr::Rcx, u64::from(ecx));
        self.cpu.set(Gpr::Rdx, u64::from(edx));
    }

    fn cpuid_leaf(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let host = |leaf, subleaf| {
            let r = __cpuid_count(leaf, subleaf);
            [r.eax, r.ebx, r.ecx, r.edx]
        };
        match leaf {
            0 => [
                LAST_BASIC,
                text(VENDOR, 0),
                text(VENDOR, 8),
                text(VENDOR, 4),
            ],
            1 => {
                // SSE3, PCLMULQDQ, SSSE3, FMA, CX16, SSE4.1, SSE4.2, MOVBE, POPCNT, AES,
                // XSAVE, AVX, F16C, RDRAND.
                let known = bits(&[0, 1, 9, 12, 13, 19, 20, 22, 23, 25, 26, 28, 29, 30]);
                let mut ecx = host(1, 0)[2] & known | 1 << 31;
                if self.mmu.sys.cr4 & cr4::OSXSAVE != 0 {
                    ecx |= 1 << 27;
                }
                // FPU, DE, PSE, TSC, MSR, PAE, CX8, APIC, SEP, MTRR, PGE, CMOV, PAT, PSE36,
                // CLFSH, MMX, FXSR, SSE, SSE2.
                let edx = bits(&[
                    0, 2, 3, 4, 5, 6, 8, 9, 11, 12, 13, 15, 16, 17, 19, 23, 24, 25, 26,
                ]);
                // CLFLUSH size 64 bytes, one logical CPU.
                [SIGNATURE, 8 << 8 | 1 << 16, ecx, edx]
            }
            7 if subleaf == 0 => {
                let [_, ebx, ecx, _] = host(7, 0);
                // FSGSBASE, BMI1, AVX2, SMEP, BMI2, ERMS, RDSEED, ADX, SMAP, CLFLUSHOPT, CLWB, SHA.
                let executed = bits(&[3, 5, 8, 9, 18, 19, 23, 24, 29]);
                let own = bits(&[0, 7, 20]);
                // UMIP, RDPID.
                [0, ebx & executed | own, bits(&[2]) | ecx & bits(&[22]), 0]
            }
            0xd => self.xsave_leaf(subleaf),
            0x8000_0000 => [
                LAST_EXTENDED,
                text(VENDOR, 0),
                text(VENDOR, 8),
                text(VENDOR, 4),
            ],
            0x8000_0001 => {
                // LAHF in 64-bit mode, LZCNT, PREFETCHW.
                let ecx = host(0x8000_0001, 0)[2] & bits(&[0, 5, 8]);
                // As leaf 1, and SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
                let legacy = bits(&[0, 2, 3, 4, 5, 6, 8, 9, 12, 13, 15, 16, 17, 23, 24]);
                let rdtscp = host(0x8000_0001, 0)[3] & bits(&[27]);
                [SIGNATURE, 0, ecx, legacy | bits(&[11, 20, 26, 29]) | rdtscp]
            }
            0x8000_0002..=0x8000_0004 => {
                let at = (leaf - 0x8000_0002) as usize * 16;
                [
                    text(BRAND, at),
                    text(BRAND, at + 4),
                    text(BRAND, at + 8),
                    text(BRAND, at + 12),
                ]
            }
            // The TSC runs at one rate in all states.
            0x8000_0007 => [0, 0, 0, 1 << 8],
            0x8000_0008 => [PHYSICAL_BITS | 48 << 8, 0, 0, 0],
            _ => [0; 4],
        }
    }

    fn xsave_leaf(&self, subleaf: u32) -> [u32; 4] {
        let supported = supported_xcr0();
        match subleaf {
            0 => [
                supported as u32,
                xsave_bytes(self.mmu.sys.xcr0),
                xsave_bytes(supported),
                0,
            ],
            2 if supported & 4 != 0 => {
                let avx = XsaveLayout::get().components.iter().find(|c| c.bit == 4);
                avx.map_or([0; 4], |c| [c.bytes as u32, c.offset as u32, 0, 0])
            }
            _ => [0; 4],
        }
    }
}
