//! The least of ACPI that makes kernels find the local APIC, the I/O APIC, the power
//! management timer, the reset register and the way to turn the machine off (ACPI
//! specification 6.5, chapter 5).

use super::{BootError, map, place};
use crate::system::devices::{ioapic, lapic, power};
use crate::system::memory::GuestRam;

/// Where the root pointer is; guests search for it from 0xe0000 on.
pub const RSDP: u64 = map::FIRMWARE;
const XSDT: u64 = RSDP + 0x40;
const FADT: u64 = RSDP + 0x80;
const FACS: u64 = RSDP + 0x1c0;
const DSDT: u64 = RSDP + 0x200;
const MADT: u64 = RSDP + 0x280;

/// The interrupt that ACPI events would come on.
const SCI: u16 = 9;

fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}

/// A table with its header (section 5.2.6).
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(signature);
    bytes.extend((36 + body.len() as u32).to_le_bytes());
    bytes.extend([revision, 0]);
    bytes.extend(b"TEMPERMACHINE ");
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(b"TMPR");
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(body);
    bytes[9] = checksum(&bytes);
    bytes
}

fn rsdp() -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(b"RSD PTR \0TEMPER\x02");
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(36u32.to_le_bytes());
    bytes.extend(XSDT.to_le_bytes());
    bytes.extend([0; 4]);
    bytes[8] = checksum(&bytes[..20]);
    bytes[32] = checksum(&bytes);
    bytes
}

/// A generic address structure for an I/O port (section 5.2.3.2).
fn port(address: u16, bits: u8) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[0] = 1;
    bytes[1] = bits;
    bytes[3] = bits.ilog2() as u8 - 2;
    bytes[4..6].copy_from_slice(&address.to_le_bytes());
    bytes
}

/// The fixed description table (section 5.2.9). Offsets are from the table's start.
fn fadt() -> Vec<u8> {
    const LEGACY_DEVICES: u16 = 1;
    const NO_VGA: u16 = 4;
    const WBINVD: u32 = 1;
    const NO_POWER_BUTTON: u32 = 1 << 4;
    const NO_SLEEP_BUTTON: u32 = 1 << 5;
    const RESET_REGISTER: u32 = 1 << 10;
    let mut body = vec![0; 276 - 36];
    let mut set = |offset: usize, bytes: &[u8]| {
        body[offset - 36..][..bytes.len()].copy_from_slice(bytes);
    };
    set(36, &(FACS as u32).to_le_bytes());
    set(40, &(DSDT as u32).to_le_bytes());
    set(46, &SCI.to_le_bytes());
    set(56, &u32::from(power::EVENTS).to_le_bytes());
    set(64, &u32::from(power::CONTROL).to_le_bytes());
    set(76, &u32::from(power::TIMER).to_le_bytes());
    // Lengths of the events, control and timer blocks.
    set(88, &[4, 2, 0, 4]);
    // No C2 or C3 state.
    set(96, &[101, 0, 0xe9, 3]);
    set(108, &[0x32]);
    set(109, &(LEGACY_DEVICES | NO_VGA).to_le_bytes());
    let flags = WBINVD | NO_POWER_BUTTON | NO_SLEEP_BUTTON | RESET_REGISTER;
    set(112, &flags.to_le_bytes());
    set(116, &port(0xcf9, 8));
    set(128, &[6]);
    set(140, &DSDT.to_le_bytes());
    set(148, &port(power::EVENTS, 32));
    set(172, &port(power::CONTROL, 16));
    set(208, &port(power::TIMER, 32));
    table(b"FACP", 6, &body)
}

/// `Name (\_S5, Package () { off, off, 0, 0 })`, in the machine language of chapter 20.
fn dsdt() -> Vec<u8> {
    let off = power::SLEEP_OFF as u8;
    let package = [0x12, 0x0a, 0x04, 0x0a, off, 0x0a, off, 0x0a, 0, 0x0a, 0];
    let mut body = b"\x08\\_S5_".to_vec();
    body.extend(package);
    table(b"DSDT", 2, &body)
}

/// The interrupt controllers (section 5.2.12).
fn madt() -> Vec<u8> {
    let mut body = Vec::new();
    body.extend((lapic::BASE as u32).to_le_bytes());
    // The 8259s are there too.
    body.extend(1u32.to_le_bytes());
    // Local APIC 0, enabled.
    body.extend([0, 8, 0, 0, 1, 0, 0, 0]);
    // I/O APIC 0, from global interrupt 0 on.
    body.extend([1, 12, 0, 0]);
    body.extend((ioapic::BASE as u32).to_le_bytes());
    body.extend([0; 4]);
    // The timer is pin 2, edge-triggered and active high as its bus has it.
    body.extend([2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    // ACPI's own interrupt is level-triggered, active high.
    body.extend([2, 10, 0, SCI as u8, SCI as u8, 0, 0, 0, 0x0d, 0]);
    // LINT1 of every local APIC is NMI.
    body.extend([4, 6, 0xff, 0, 0, 1]);
    table(b"APIC", 4, &body)
}

/// Writes all tables.
pub(super) fn write_tables(ram: &GuestRam) -> Result<(), BootError> {
    let mut xsdt = Vec::new();
    xsdt.extend(FADT.to_le_bytes());
    xsdt.extend(MADT.to_le_bytes());
    let mut facs = vec![0; 64];
    facs[..4].copy_from_slice(b"FACS");
    facs[4] = 64;
    facs[32] = 2;
    let tables = [
        (RSDP, rsdp()),
        (XSDT, table(b"XSDT", 1, &xsdt)),
        (FADT, fadt()),
        (FACS, facs),
        (DSDT, dsdt()),
        (MADT, madt()),
    ];
    for (at, bytes) in tables {
        place(ram, "the ACPI tables", at, &bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_add_up_to_zero_and_do_not_overlap() {
        for bytes in [fadt(), dsdt(), madt(), rsdp()] {
            let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!(sum, 0);
        }
        assert_eq!(FADT + fadt().len() as u64, 0xe_0194);
        assert!(DSDT + dsdt().len() as u64 <= MADT);
        assert!(FACS.is_multiple_of(64));
    }

    #[test]
    fn a_tables_length_is_its_own() {
        let bytes = madt();
        let length = u32::from_le_bytes(bytes[4..8].try_into().expect("4 bytes"));
        assert_eq!(length as usize, bytes.len());
    }
}
