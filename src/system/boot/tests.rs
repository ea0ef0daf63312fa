use super::*;
use crate::guest::Gpr;
use crate::system::state::Segment;
use crate::system::state::SegmentRegister;

fn ram(mib: u64) -> GuestRam {
    map::new_ram(mib << 20).expect("memory")
}

fn image(kernel: Vec<u8>) -> Image {
    Image {
        kernel,
        ..Image::default()
    }
}

fn boot_sector() -> Vec<u8> {
    let mut sector = vec![0xf4; 512];
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// A multiboot image that is loaded by the addresses in its header.
fn multiboot(load: u32) -> Vec<u8> {
    let magic = 0x1bad_b002u32;
    let flags = 1u32 << 16;
    let check = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let fields = [magic, flags, check, load, load, 0, 0, load + 32];
    let mut file: Vec<u8> = fields
        .iter()
        .flat_map(|field| field.to_le_bytes())
        .collect();
    file.extend([0xf4; 32]);
    file
}

#[test]
fn a_boot_sector_starts_in_real_mode() {
    let ram = ram(1);
    let state = load(&ram, &image(boot_sector())).expect("loaded");
    let cs = state.segment(SegmentRegister::Cs);
    assert_eq!(cs.base + state.rip, 0x7c00);
    assert_eq!(state.cr0 & 1, 0);
    let mut byte = [0];
    ram.read_slice(&mut byte, GuestAddress(0x7c00))
        .expect("read");
    assert_eq!(byte, [0xf4]);
}

#[test]
fn a_multiboot_image_starts_in_flat_protected_mode() {
    let ram = ram(4);
    let state = load(&ram, &image(multiboot(0x10_0000))).expect("loaded");
    assert_eq!(state.rip, 0x10_0020);
    assert_eq!(state.gpr[Gpr::Rax as usize], 0x2bad_b002);
    assert_eq!(state.cr0 & 0x8000_0001, 1);
    assert!(state.segment(SegmentRegister::Cs).has(Segment::DB));
}

#[test]
fn images_larger_than_memory_are_refused() {
    let error = load(&ram(1), &image(multiboot(0x10_0000))).expect_err("no room");
    assert!(matches!(error, BootError::NoRoom { .. }), "{error}");
    let error = load(&ram(4), &image(multiboot(0xfff0_0000))).expect_err("no room");
    assert!(matches!(error, BootError::NoRoom { .. }), "{error}");
}

#[test]
fn unknown_images_are_named() {
    for (file, says) in [
        (vec![], "empty"),
        (vec![0x1f, 0x8b, 8, 0], "gzip"),
        (b"#!/bin/sh\n".to_vec(), "less than one sector"),
        (vec![0; 4096], "no known image"),
    ] {
        let error = load(&ram(1), &image(file)).expect_err("unknown");
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn mutated_images_give_errors_and_no_panics() {
    let mut seed = 0x1234_5678_9abc_def0u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let own = std::fs::read("/proc/self/exe").expect("this program");
    let mut linux = vec![0u8; 0x4000];
    linux[0x1f1] = 4;
    linux[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    linux[0x202..0x206].copy_from_slice(b"HdrS");
    linux[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    linux[0x211] = 1;
    linux[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
    let mut elf = own[..4096].to_vec();
    elf.splice(1024..1056, multiboot(0)[..32].iter().copied());
    for seed_file in [linux, elf, multiboot(0x10_0000), boot_sector()] {
        for _ in 0..300 {
            let mut file = seed_file.clone();
            for _ in 0..random() % 8 {
                let at = random() as usize % file.len().min(0x400);
                file[at] = random() as u8;
            }
            file.truncate(random() as usize % (file.len() + 1));
            let _ = load(&ram(2), &image(file));
        }
    }
}

#[test]
fn the_memory_map_leaves_out_the_hole_for_devices() {
    let ranges = map::ranges(&ram(64));
    let usable: u64 = ranges
        .iter()
        .filter(|range| range.kind == map::Kind::Usable)
        .map(|range| range.len)
        .sum();
    assert_eq!(usable, map::CONVENTIONAL_END + (63 << 20));
    assert!(!map::has_ram(&ram(64), 63 << 20, 2 << 20));
}

#[test]
fn boot_sectors_take_no_initial_ram_disk() {
    let image = Image {
        kernel: boot_sector(),
        initrd: Some(vec![1]),
        ..Image::default()
    };
    let error = load(&ram(1), &image).expect_err("not taken");
    assert_eq!(error.to_string(), "a boot sector takes no initial RAM disk");
}
