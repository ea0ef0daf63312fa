//! Random 32-bit integer code, run by the bare CPU (a static i386 program of its own) and by
//! the software engine in 32-bit protected mode; registers, flags and memory must agree.
//!
//! TEMPER_BITS32_SEED repeats a run.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use iced_x86::code_asm::*;
use temper::guest::flags;
use temper::system::soft::Vcpu;
use temper::system::{Bus, GuestRam, Segment, SegmentRegister, Vcpu as _, VcpuExit, VcpuState};
use vm_memory::{Bytes, GuestAddress};

const ROUNDS: usize = 40;
const LENGTH: usize = 200;
/// Where the code and its data are in both worlds.
const CODE: u32 = 0x0804_8000;
const DATA: u32 = 0x0805_0000;
const DATA_BYTES: usize = 0x1000;
const HEADERS: u32 = 52 + 32;
const STACK: u32 = DATA + 0x800;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as u32
    }

    fn below(&mut self, limit: u32) -> u32 {
        self.next() % limit
    }
}

const R32: [AsmRegister32; 6] = [eax, ecx, edx, ebx, esi, edi];
const R16: [AsmRegister16; 6] = [ax, cx, dx, bx, si, di];
const R8: [AsmRegister8; 8] = [al, cl, dl, bl, ah, ch, dh, bh];

fn one(a: &mut CodeAssembler, rng: &mut Rng) -> Result<(), iced_x86::IcedError> {
    let (x, y) = (R32[rng.below(6) as usize], R32[rng.below(6) as usize]);
    let (wx, wy) = (R16[rng.below(6) as usize], R16[rng.below(6) as usize]);
    let (bx8, by8) = (R8[rng.below(8) as usize], R8[rng.below(8) as usize]);
    let value = rng.next() as i32;
    let at = DATA + rng.below(0x700);
    let reg = [0u8, 1, 2, 3, 5, 6, 7][rng.below(7) as usize];
    match rng.below(33) {
        0 => a.add(x, y),
        1 => a.adc(x, value),
        2 => a.sub(wx, wy),
        3 => a.sbb(bx8, by8),
        4 => a.xor(x, dword_ptr(at)),
        5 => a.and(dword_ptr(at), y),
        6 => a.or(word_ptr(at), wy),
        7 => a.cmp(byte_ptr(at), by8),
        8 => a.inc(x),
        9 => a.dec(wx),
        10 => a.imul_2(x, y),
        11 => a.mul(y),
        12 => a.neg(bx8),
        13 => a.rol(x, value as u32 & 31),
        14 => a.rcr(wx, 1u32),
        15 => a.shld(x, y, value as u32 & 31),
        16 => a.movsx(x, by8),
        17 => a.movzx(x, word_ptr(at)),
        18 => a.lea(x, ptr(y + x * 4 + value)),
        // 16-bit addresses in 32-bit code.
        19 => a.db(&[0x67, 0x8d, 0x40 | reg << 3, value as u8]), // lea r32, [bx+si+d8]
        20 => a.daa(),
        21 => a.das(),
        22 => a.aaa(),
        23 => a.aas(),
        24 => a.pushad().and_then(|()| a.popad()),
        25 => a.push(x).and_then(|()| a.pop(y)),
        26 => a.push(wx).and_then(|()| a.pop(wy)),
        27 => a.bt(x, y),
        28 => a.bsf(x, y),
        29 => a.cmovb(x, y),
        30 => a.setb(bx8),
        31 => a.xchg(dword_ptr(at), y),
        _ => a.xadd(byte_ptr(at), by8),
    }
}

/// The program, without its end: registers from the rounds' seed, then random instructions,
/// then all registers and flags on the stack.
fn program(rng: &mut Rng) -> Vec<u8> {
    let mut a = CodeAssembler::new(32).expect("32-bit code");
    let mut build = || -> Result<(), iced_x86::IcedError> {
        a.mov(esp, STACK)?;
        a.mov(ebp, rng.next())?;
        for register in R32 {
            a.mov(register, rng.next())?;
        }
        a.xor(eax, eax)?;
        for _ in 0..LENGTH {
            one(&mut a, rng)?;
        }
        // The decimal adjustments leave flags undefined; this defines them all.
        a.add(eax, 0x1234)?;
        a.pushad()?;
        a.pushfd()
    };
    build().expect("valid code");
    a.assemble(u64::from(CODE + HEADERS)).expect("valid code")
}

/// An i386 program that writes its data to standard output and exits.
fn native(code: &[u8], data: &[u8]) -> Option<Vec<u8>> {
    let mut a = CodeAssembler::new(32).expect("32-bit code");
    let mut end = || -> Result<(), iced_x86::IcedError> {
        a.mov(eax, 4)?;
        a.mov(ebx, 1)?;
        a.mov(ecx, DATA)?;
        a.mov(edx, DATA_BYTES as u32)?;
        a.int(0x80)?;
        a.mov(eax, 1)?;
        a.xor(ebx, ebx)?;
        a.int(0x80)
    };
    end().expect("valid code");
    let mut text = code.to_vec();
    text.extend(a.assemble(0).expect("valid code"));
    let mut file = vec![0x7f, b'E', b'L', b'F', 1, 1, 1];
    file.resize(16, 0);
    for half in [2u16, 3] {
        file.extend(half.to_le_bytes());
    }
    for word in [1, CODE + HEADERS, 52, 0, 0] {
        file.extend(u32::to_le_bytes(word));
    }
    for half in [52u16, 32, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // One segment for all, writable and executable.
    let bytes = DATA - CODE + DATA_BYTES as u32;
    for word in [1, 0, CODE, CODE, bytes, bytes, 7, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(&text);
    file.resize((DATA - CODE) as usize, 0);
    file.extend(data);
    let path = tempfile::Builder::new().prefix("bits32").tempfile().ok()?;
    path.as_file().write_all(&file).ok()?;
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path.path(), executable).ok()?;
    // Not through an open writable descriptor: that is ETXTBSY.
    let path = path.into_temp_path();
    let output = Command::new(&path).stdin(Stdio::null()).output().ok()?;
    output.status.success().then_some(output.stdout)
}

/// No device is asked for anything.
struct Nothing;

impl Bus for Nothing {
    fn port_read(&mut self, _: u16, _: &mut [u8]) {}
    fn port_write(&mut self, _: u16, _: &[u8]) {}
    fn mmio_read(&mut self, _: u64, _: &mut [u8]) {}
    fn mmio_write(&mut self, _: u64, _: &[u8]) {}
    fn interrupt_pending(&mut self) -> bool {
        false
    }
    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        None
    }
    fn msr_read(&mut self, _: u32) -> Option<u64> {
        None
    }
    fn msr_write(&mut self, _: u32, _: u64) -> Option<()> {
        None
    }
    fn set_task_priority(&mut self, _: u64) {}
    fn task_priority(&mut self) -> u64 {
        0
    }
}

fn emulated(code: &[u8], data: &[u8]) -> Vec<u8> {
    let start = GuestAddress(u64::from(CODE));
    let ram = GuestRam::from_ranges(&[(start, 0x1_0000)]).expect("memory");
    let mut text = code.to_vec();
    text.push(0xf4);
    ram.write_slice(&text, GuestAddress(u64::from(CODE + HEADERS)))
        .expect("RAM");
    ram.write_slice(data, GuestAddress(u64::from(DATA)))
        .expect("RAM");
    let ram = Arc::new(ram);
    let mut vcpu = Vcpu::new(Arc::clone(&ram)).expect("a CPU");
    let flat = |attributes| Segment {
        selector: 8,
        base: 0,
        limit: u32::MAX,
        attributes,
        unusable: false,
    };
    let mut state = VcpuState {
        segments: [flat(0xc093); 6],
        cr0: 0x31,
        rip: u64::from(CODE + HEADERS),
        ..VcpuState::default()
    };
    *state.segment_mut(SegmentRegister::Cs) = flat(0xc09b);
    vcpu.set_state(&state).expect("a state");
    vcpu.set_limit(Some(10_000));
    let exit = vcpu.run(&mut Nothing).expect("no refusal");
    assert_eq!(exit, VcpuExit::HaltedForever);
    let mut data = vec![0; DATA_BYTES];
    ram.read_slice(&mut data, GuestAddress(u64::from(DATA)))
        .expect("RAM");
    data
}

/// The arithmetic flags; what a process alone has of the others doesn't count.
fn normalized(mut data: Vec<u8>) -> Vec<u8> {
    let at = (STACK - DATA) as usize - 36;
    let image = u32::from_le_bytes(data[at..at + 4].try_into().expect("4 bytes"));
    let kept = image & flags::ARITHMETIC as u32;
    data[at..at + 4].copy_from_slice(&kept.to_le_bytes());
    // What was pushed and popped below is still there, flags among it.
    data[at - 64..at].fill(0);
    data
}

#[test]
fn random_32_bit_code_does_what_the_bare_cpu_does() {
    let seed = std::env::var("TEMPER_BITS32_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| (u64::from(std::process::id()) * 0x9e37_79b9) | 1);
    println!("TEMPER_BITS32_SEED={seed}");
    let mut rng = Rng(seed);
    for round in 0..ROUNDS {
        let code = program(&mut rng);
        let data: Vec<u8> = (0..DATA_BYTES).map(|_| rng.next() as u8).collect();
        let Some(want) = native(&code, &data) else {
            println!("skipped: this host runs no 32-bit programs");
            return;
        };
        let (want, got) = (normalized(want), normalized(emulated(&code, &data)));
        let differs = (0..DATA_BYTES).find(|&at| want[at] != got[at]);
        if let Some(at) = differs {
            let at = at & !3;
            panic!(
                "round {round} of TEMPER_BITS32_SEED={seed}: at {:#x}: {:x?}, not {:x?}",
                DATA as usize + at,
                &got[at..at + 4],
                &want[at..at + 4]
            );
        }
    }
}
