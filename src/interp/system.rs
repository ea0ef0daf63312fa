//! What touches the system as ring 3 sees it: identification, time stamps, segment bases,
//! hints, fences, software interrupts, far transfers, hardware transactions, and the
//! instructions that user code may not execute.

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, __rdtscp, _mm_lfence, _mm_mfence, _mm_sfence, _rdtsc};

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use crate::guest::{Gpr, GuestMemory, GuestTrap, Width, flags};

use super::host_alu::{self, Random};
use super::machine::{Machine, Step, is_canonical};
use super::op::{Handler, Mem, Op, Source};
use super::operands::{Kind, Operands};
use super::scalar::{Scalar, by_width};
use super::segments;

const GENERAL_PROTECTION: u8 = 0;
const INVALID_OPCODE: u8 = 1;
const UNSUPPORTED: u8 = 2;
const BREAKPOINT: u8 = 3;
const OVERFLOW: u8 = 4;

fn nop<M: GuestMemory>(_: &Op<M>, _: &mut Machine<'_, M>) -> Step {
    Ok(())
}

/// Always traps.
pub(super) fn trap<M: GuestMemory, const KIND: u8>(_: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    Err(m.stop(match KIND {
        GENERAL_PROTECTION => GuestTrap::GeneralProtection,
        INVALID_OPCODE => GuestTrap::InvalidOpcode,
        BREAKPOINT => GuestTrap::Breakpoint,
        OVERFLOW => GuestTrap::Overflow,
        _ => GuestTrap::Unsupported,
    }))
}

/// The handler that raises #UD.
pub(super) fn invalid_opcode<M: GuestMemory>() -> Handler<M> {
    trap::<M, INVALID_OPCODE>
}

fn software_interrupt<M: GuestMemory>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    Err(m.stop(GuestTrap::SoftwareInterrupt(op.imm as u8)))
}

fn int1<M: GuestMemory>(_: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    Err(m.stop(GuestTrap::Debug))
}

fn into<M: GuestMemory>(_: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    if m.cpu.rflags & flags::OF != 0 {
        return Err(m.stop(GuestTrap::Overflow));
    }
    Ok(())
}

fn bound<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let at = op.address(m.cpu);
    let lower = W::sign_extend(m.load::<W>(at)?) as i64;
    let upper = W::sign_extend(m.load::<W>(op.address_displaced(m.cpu, W::BYTES))?) as i64;
    let index = W::sign_extend(W::read(m.cpu, op.dst)) as i64;
    if index < lower || index > upper {
        return Err(m.stop(GuestTrap::BoundRange));
    }
    Ok(())
}

fn arpl<M: GuestMemory>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let source = u16::read(m.cpu, op.src) & 3;
    let memory = op.imm != 0;
    let at = op.address(m.cpu);
    let old = if memory {
        m.load_to_modify::<u16>(at)?
    } else {
        u16::read(m.cpu, op.dst)
    };
    if old & 3 >= source {
        m.cpu.rflags &= !flags::ZF;
        return Ok(());
    }
    let new = old & !3 | source;
    if memory {
        m.store::<u16>(at, new)?;
    } else {
        u16::write(m.cpu, op.dst, new);
    }
    m.cpu.rflags |= flags::ZF;
    Ok(())
}

fn cpuid<M: GuestMemory>(_: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let leaf = m.cpu.get(Gpr::Rax) as u32;
    let subleaf = m.cpu.get(Gpr::Rcx) as u32;
    let result = __cpuid_count(leaf, subleaf);
    m.cpu.set(Gpr::Rax, u64::from(result.eax));
    m.cpu.set(Gpr::Rbx, u64::from(result.ebx));
    m.cpu.set(Gpr::Rcx, u64::from(result.ecx));
    m.cpu.set(Gpr::Rdx, u64::from(result.edx));
    Ok(())
}

fn set_edx_eax<M>(m: &mut Machine<'_, M>, value: u64) {
    m.cpu.set(Gpr::Rax, value & 0xffff_ffff);
    m.cpu.set(Gpr::Rdx, value >> 32);
}

fn rdtsc<M: GuestMemory>(_: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    // SAFETY: RDTSC is allowed in ring 3 under Linux.
    let value = unsafe { _rdtsc() };
    set_edx_eax(m, value);
    Ok(())
}

fn rdtscp<M: GuestMemory>(_: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let mut aux = 0;
    // SAFETY: as for RDTSC; `host_has` was asked.
    let value = unsafe { __rdtscp(&mut aux) };
    set_edx_eax(m, value);
    m.cpu.set(Gpr::Rcx, u64::from(aux));
    Ok(())
}

fn rdpid<M: GuestMemory>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let value: u64;
    // SAFETY: reads TSC_AUX; `host_has` was asked.
    unsafe { asm!("rdpid {}", out(reg) value, options(nomem, nostack, preserves_flags)) };
    m.cpu.gpr[usize::from(op.dst & 15)] = value;
    Ok(())
}

fn xgetbv<M: GuestMemory>(_: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let index = m.cpu.get(Gpr::Rcx) as u32;
    let valid = index == 0 || index == 1 && __cpuid_count(0xd, 1).eax & 4 != 0;
    if !valid {
        return Err(m.stop(GuestTrap::GeneralProtection));
    }
    let (low, high): (u32, u32);
    // SAFETY: the index is one that this CPU has; `host_has` asked for OSXSAVE.
    unsafe {
        asm!("xgetbv", in("ecx") index, out("eax") low, out("edx") high,
             options(nomem, nostack, preserves_flags));
    }
    let mut value = u64::from(high) << 32 | u64::from(low);
    if index == 1 {
        // Which components are in use: of the vector state, the guest's, which is at rest.
        let vector = crate::host::XsaveLayout::get().vector_mask;
        value = value & !vector | m.vector.xstate_bv() & vector;
    }
    set_edx_eax(m, value);
    Ok(())
}

fn random<M: GuestMemory, R: Random, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let value = R::apply::<W>(&mut m.cpu.rflags);
    W::write(m.cpu, op.dst, value);
    Ok(())
}

/// Load, store and full fences order Temper's own accesses on the guest's behalf.
fn fence<M: GuestMemory, const KIND: u8>(_: &Op<M>, _: &mut Machine<'_, M>) -> Step {
    // SAFETY: SSE2 fences exist on every x86-64 CPU.
    unsafe {
        match KIND {
            0 => _mm_lfence(),
            1 => _mm_sfence(),
            _ => _mm_mfence(),
        }
    }
    Ok(())
}

/// Cache line flushes: memory is as if read.
fn touch<M: GuestMemory>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    Mem::get::<M, u8>(op, m).map(|_| ())
}

/// MONITORX: memory at RAX is as if read.
fn touch_rax<M: GuestMemory>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let at = op.address(m.cpu);
    m.load::<u8>(at).map(|_| ())
}

/// CLZERO: the cache line around RAX.
fn clear_line<M: GuestMemory>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let at = op.address(m.cpu);
    m.write_bytes(crate::addr::GuestAddr(at.0 & !63), &[0; 64])
}

fn read_fs_base<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let base = m.cpu.fs_base;
    W::write(m.cpu, op.dst, base);
    Ok(())
}

fn read_gs_base<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let base = m.cpu.gs_base;
    W::write(m.cpu, op.dst, base);
    Ok(())
}

fn write_base<M: GuestMemory, W: Scalar, const GS: bool>(
    op: &Op<M>,
    m: &mut Machine<'_, M>,
) -> Step {
    let base = W::read(m.cpu, op.dst);
    if !is_canonical(base) {
        return Err(m.stop(GuestTrap::GeneralProtection));
    }
    if GS {
        m.cpu.gs_base = base;
    } else {
        m.cpu.fs_base = base;
    }
    Ok(())
}

fn read_segment<M: GuestMemory, W: Scalar>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    W::write(m.cpu, op.dst, u64::from(segments::selector(op.imm as u8)));
    Ok(())
}

fn store_segment<M: GuestMemory>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let at = op.address(m.cpu);
    m.store::<u16>(at, u64::from(segments::selector(op.imm as u8)))
}

fn write_segment<M: GuestMemory>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let value = u16::read(m.cpu, op.src);
    segments::load(m, op.imm as u8, value as u16)
}

fn load_segment<M: GuestMemory>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    let value = Mem::get::<M, u16>(op, m)?;
    segments::load(m, op.imm as u8, value as u16)
}

/// XBEGIN: the transaction aborts at once, with no reason given and no retry suggested.
fn xbegin<M: GuestMemory>(op: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    m.cpu.set(Gpr::Rax, 0);
    m.cpu.rip = op.imm;
    Ok(())
}

/// XTEST outside a transaction.
fn xtest<M: GuestMemory>(_: &Op<M>, m: &mut Machine<'_, M>) -> Step {
    m.cpu.rflags = m.cpu.rflags & !flags::ARITHMETIC | flags::ZF;
    Ok(())
}

/// AMD's Zen and what came after it (and Hygon's).
fn is_amd_family_17h_or_later() -> bool {
    let vendor = __cpuid_count(0, 0).ebx.to_le_bytes();
    let signature = __cpuid_count(1, 0).eax;
    let family = (signature >> 8 & 15) + (signature >> 20 & 0xff);
    matches!(&vendor, b"Auth" | b"Hygo") && family >= 0x17
}

/// Whether this CPU has the instruction; one that it lacks raises #UD as natively.
pub(super) fn host_has(mnemonic: Mnemonic) -> bool {
    let leaf7 = || __cpuid_count(7, 0);
    match mnemonic {
        Mnemonic::Andn | Mnemonic::Bextr | Mnemonic::Blsi | Mnemonic::Blsmsk | Mnemonic::Blsr => {
            is_x86_feature_detected!("bmi1")
        }
        Mnemonic::Bzhi
        | Mnemonic::Pdep
        | Mnemonic::Pext
        | Mnemonic::Mulx
        | Mnemonic::Rorx
        | Mnemonic::Sarx
        | Mnemonic::Shlx
        | Mnemonic::Shrx => is_x86_feature_detected!("bmi2"),
        Mnemonic::Adcx | Mnemonic::Adox => is_x86_feature_detected!("adx"),
        Mnemonic::Popcnt => is_x86_feature_detected!("popcnt"),
        Mnemonic::Crc32 => is_x86_feature_detected!("sse4.2"),
        Mnemonic::Movbe => is_x86_feature_detected!("movbe"),
        Mnemonic::Rdrand => is_x86_feature_detected!("rdrand"),
        Mnemonic::Rdseed => is_x86_feature_detected!("rdseed"),
        Mnemonic::Cmpxchg16b => is_x86_feature_detected!("cmpxchg16b"),
        Mnemonic::Xbegin | Mnemonic::Xend | Mnemonic::Xabort | Mnemonic::Xtest => {
            leaf7().ebx & (1 << 11) != 0
        }
        Mnemonic::Clflushopt => leaf7().ebx & (1 << 23) != 0,
        Mnemonic::Clwb => leaf7().ebx & (1 << 24) != 0,
        Mnemonic::Movdiri => leaf7().ecx & (1 << 27) != 0,
        Mnemonic::Rdpid => leaf7().ecx & (1 << 22) != 0,
        Mnemonic::Serialize => leaf7().edx & (1 << 14) != 0,
        Mnemonic::Rdtscp => __cpuid_count(0x8000_0001, 0).edx & (1 << 27) != 0,
        // Hypervisors hide the bit, but let the instructions run.
        Mnemonic::Monitorx | Mnemonic::Mwaitx => {
            __cpuid_count(0x8000_0001, 0).ecx & (1 << 29) != 0 || is_amd_family_17h_or_later()
        }
        Mnemonic::Clzero => __cpuid_count(0x8000_0008, 0).ebx & 1 != 0,
        Mnemonic::Xgetbv => crate::host::Features::get().xsave,
        Mnemonic::Rdfsbase | Mnemonic::Wrfsbase | Mnemonic::Rdgsbase | Mnemonic::Wrgsbase => {
            crate::host::Features::get().fsgsbase
        }
        _ => true,
    }
}

/// The handler for an instruction of this family.
pub(super) fn handler<M: GuestMemory>(
    op: &mut Op<M>,
    instruction: &Instruction,
    operands: &Operands,
) -> Option<Handler<M>> {
    let width = operands.width;
    Some(match instruction.mnemonic() {
        Mnemonic::Nop
        | Mnemonic::Pause
        | Mnemonic::Endbr32
        | Mnemonic::Endbr64
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchit0
        | Mnemonic::Prefetchit1
        | Mnemonic::Cldemote
        // Shadow stacks are off: RDSSP leaves its register.
        | Mnemonic::Rdsspd
        | Mnemonic::Rdsspq
        | Mnemonic::Mwaitx => nop,
        Mnemonic::Lfence => fence::<M, 0>,
        Mnemonic::Sfence => fence::<M, 1>,
        Mnemonic::Mfence | Mnemonic::Serialize => fence::<M, 2>,
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => touch,
        Mnemonic::Monitorx | Mnemonic::Clzero => {
            op.base_factor = 1;
            op.special.set_address_bits(match instruction.code() {
                Code::Monitorxw | Code::Clzerow => 16,
                Code::Monitorxd | Code::Clzerod => 32,
                _ => 64,
            });
            super::operands::set_segment(op, instruction);
            if instruction.mnemonic() == Mnemonic::Clzero {
                clear_line
            } else {
                touch_rax
            }
        }
        Mnemonic::Cpuid => cpuid,
        Mnemonic::Rdtsc => rdtsc,
        Mnemonic::Rdtscp => rdtscp,
        Mnemonic::Rdpid => rdpid,
        Mnemonic::Xgetbv => xgetbv,
        Mnemonic::Rdrand => {
            by_width!(width, W in [u16 u32 u64] => random::<M, host_alu::Rdrand, W>)
        }
        Mnemonic::Rdseed => {
            by_width!(width, W in [u16 u32 u64] => random::<M, host_alu::Rdseed, W>)
        }
        Mnemonic::Rdfsbase => by_width!(width, W in [u32 u64] => read_fs_base::<M, W>),
        Mnemonic::Rdgsbase => by_width!(width, W in [u32 u64] => read_gs_base::<M, W>),
        Mnemonic::Wrfsbase => by_width!(width, W in [u32 u64] => write_base::<M, W, false>),
        Mnemonic::Wrgsbase => by_width!(width, W in [u32 u64] => write_base::<M, W, true>),
        Mnemonic::Mov => segment_move(op, instruction, operands)?,
        Mnemonic::Arpl => {
            op.imm = u64::from(operands.kinds[0] == Kind::Memory);
            arpl
        }
        Mnemonic::Int3 => trap::<M, BREAKPOINT>,
        Mnemonic::Int => match op.imm as u8 {
            3 => trap::<M, BREAKPOINT>,
            4 => trap::<M, OVERFLOW>,
            _ => software_interrupt,
        },
        Mnemonic::Int1 => int1,
        Mnemonic::Into => into,
        Mnemonic::Bound => match width {
            Width::B2 => bound::<M, u16>,
            Width::B1 | Width::B4 | Width::B8 => bound::<M, u32>,
        },
        Mnemonic::Ud0
        | Mnemonic::Ud1
        | Mnemonic::Ud2
        | Mnemonic::Monitor
        | Mnemonic::Mwait
        | Mnemonic::Sysenter => trap::<M, INVALID_OPCODE>,
        // The engine's surroundings handle it; single-stepping it is a mistake of the caller.
        Mnemonic::Syscall => trap::<M, UNSUPPORTED>,
        Mnemonic::Rdpmc => trap::<M, GENERAL_PROTECTION>,
        Mnemonic::Xbegin => xbegin,
        Mnemonic::Xabort => nop,
        Mnemonic::Xend => trap::<M, GENERAL_PROTECTION>,
        Mnemonic::Xtest => xtest,
        _ if instruction.is_privileged() => trap::<M, GENERAL_PROTECTION>,
        _ => return None,
    })
}

fn segment_move<M: GuestMemory>(
    op: &mut Op<M>,
    instruction: &Instruction,
    operands: &Operands,
) -> Option<Handler<M>> {
    const CS: u64 = 1;
    if instruction.op0_kind() == OpKind::Register
        && let Some(segment) = segments::index(instruction.op0_register())
    {
        op.imm = segment;
        return Some(match operands.kinds[1] {
            _ if segment == CS => trap::<M, INVALID_OPCODE>,
            Kind::Memory => load_segment,
            _ => write_segment,
        });
    }
    if let Some(segment) = segments::index(instruction.op1_register()) {
        op.imm = segment;
        return Some(match operands.kinds[0] {
            Kind::Memory => store_segment,
            _ => by_width!(operands.width, W in [u16 u32 u64] => read_segment::<M, W>),
        });
    }
    // Control and debug registers.
    Some(trap::<M, GENERAL_PROTECTION>)
}
