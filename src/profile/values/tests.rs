use super::*;
use crate::decode::{Decoder, FileCode};
use crate::guest::{Access, CpuMode, GuestTrap};

/// Memory in which every place holds its own address.
struct Mirror;

impl GuestMemory for Mirror {
    fn load(&mut self, addr: GuestAddr, width: Width) -> Result<u64, GuestTrap> {
        Ok(addr.0 & width.mask())
    }

    fn store(&mut self, _: GuestAddr, _: Width, _: u64) -> Result<(), GuestTrap> {
        unreachable!("nobody stores")
    }

    fn compare_exchange(
        &mut self,
        _: GuestAddr,
        _: Width,
        _: u64,
        _: u64,
    ) -> Result<u64, GuestTrap> {
        unreachable!("nobody stores")
    }

    fn compare_exchange_16(&mut self, _: GuestAddr, _: u128, _: u128) -> Result<u128, GuestTrap> {
        unreachable!("nobody stores")
    }

    fn read_bytes(&mut self, _: GuestAddr, _: &mut [u8]) -> Result<(), GuestTrap> {
        unreachable!("nobody reads bytes")
    }

    fn write_bytes(&mut self, _: GuestAddr, _: &[u8]) -> Result<(), GuestTrap> {
        unreachable!("nobody stores")
    }

    fn fetch(&mut self, _: GuestAddr, _: &mut [u8]) -> Result<usize, GuestTrap> {
        unreachable!("nobody runs")
    }

    fn direct(&mut self, _: GuestAddr, _: usize, _: Access) -> Option<*mut u8> {
        None
    }
}

fn decoded(code: &[u8]) -> Block {
    let mut block = Block::default();
    Decoder::new(CpuMode::Bits64)
        .block_into(
            &mut FileCode::new([(0x1000, code)]),
            GuestAddr(0x1000),
            64,
            &mut block,
        )
        .expect("instructions");
    block
}

/// What is seen in `code` (a RET is added) while registers change between its runs.
fn seen(code: &[u8], runs: &[&[(usize, u64)]], interrupted: bool) -> Vec<(u64, ValueKind, Values)> {
    let block = decoded(&[code, &[0xc3]].concat());
    let mut watched = Watched::default();
    if !watched.choose(BlockId(1), &block) {
        return Vec::new();
    }
    let mut cpu = CpuState::default();
    for (run, registers) in (1..).zip(runs) {
        for &(number, value) in *registers {
            cpu.gpr[number] = value;
        }
        let mut watching = watched
            .watch(BlockId(1), if interrupted { run } else { 1 })
            .expect("it is watched");
        for instruction in &block.instructions {
            watching.before(instruction.ip(), &cpu, &mut Mirror);
        }
    }
    let values = watched.forget(BlockId(1)).into_iter();
    values
        .map(|(at, kind, values)| (at.0, kind, values))
        .collect()
}

const RCX: usize = 1;
const RSI: usize = 6;

#[test]
fn divisors_come_from_registers_and_memory() {
    // div ecx; idiv word [rsi+2]; div ch
    let code = [0xf7, 0xf1, 0x66, 0xf7, 0x7e, 0x02, 0xf6, 0xf5];
    let registers: &[(usize, u64)] = &[(RCX, 0x1_0000_0a0b), (RSI, 0x50_1000)];
    let found = seen(&code, &[registers; 3], true);
    let divisors: Vec<_> = found
        .iter()
        .map(|(at, kind, values)| (*at, *kind, &values.values[..]))
        .collect();
    assert_eq!(
        divisors,
        [
            (0x1000, ValueKind::Divisor, &[(0xa0b, 3)][..]),
            (0x1002, ValueKind::Divisor, &[(0x1002, 3)][..]),
            (0x1006, ValueKind::Divisor, &[(0x0a, 3)][..]),
        ]
    );
}

#[test]
fn strides_are_told_within_one_stretch() {
    // mov eax, [rsi+rcx*8+16]
    let code = [0x8b, 0x44, 0xce, 0x10];
    let runs: [&[(usize, u64)]; 4] = [
        &[(RSI, 0x5000), (RCX, 3)],
        &[(RCX, 2)],
        &[(RCX, 1)],
        &[(RSI, 0x5010)],
    ];
    let found = seen(&code, &runs, false);
    let minus_eight = 8u64.wrapping_neg();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].1, ValueKind::Stride);
    assert_eq!(found[0].2.values, [(minus_eight, 2), (16, 1)]);
    assert!(seen(&code, &runs, true)[0].2.values.is_empty());
}

#[test]
fn what_moves_nowhere_is_not_watched() {
    for code in [
        &[0x8b, 0x44, 0x24, 0x08][..],         // mov eax, [rsp+8]
        &[0x8b, 0x05, 0, 0, 0, 0],             // mov eax, [rip]
        &[0x48, 0x8d, 0x04, 0x8f],             // lea rax, [rdi+rcx*4]
        &[0x64, 0x8b, 0x00],                   // mov eax, fs:[rax]
        &[0x0f, 0x1f, 0x40, 0x00],             // nop [rax]
        &[0xc4, 0xe2, 0x69, 0x92, 0x04, 0x88], // vgatherdps xmm0, [rax+xmm1*4], xmm2
        &[0xf3, 0xa4],                         // rep movsb
    ] {
        assert!(seen(code, &[], false).is_empty(), "{code:x?}");
    }
}

#[test]
fn memory_for_watching_is_bounded() {
    // Six loads; the last two by an index.
    let load: &[u8] = &[0x8b, 0x46, 0x08];
    let code = [
        load,
        load,
        load,
        load,
        &[0x8b, 0x04, 0xce],
        &[0x8b, 0x04, 0xce],
        &[0xc3],
    ];
    let block = decoded(&code.concat());
    let mut watched = Watched::default();
    for id in 0..3000 {
        watched.choose(BlockId(id), &block);
    }
    assert_eq!(watched.count, MAX_WATCHED);
    let places: Vec<u64> = watched.forget(BlockId(0)).iter().map(|w| w.0.0).collect();
    assert_eq!(places, [0x1000, 0x1003, 0x100c, 0x100f]);
    for id in 1..3000 {
        watched.forget(BlockId(id));
    }
    assert_eq!(watched.count, 0);
}
