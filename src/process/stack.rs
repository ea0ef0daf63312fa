//! The guest's initial stack, laid out as the kernel does (fs/exec.c, fs/binfmt_elf.c):
//! from the top down a null word, the program's name, the environment's strings, the
//! arguments' strings, platform and random bytes, then the auxiliary vector, the pointers
//! and argc, which is where RSP points.

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;

use super::address_space::{AddressSpace, MapRequest, NO_FILE, Prot};
use super::auxv::{self, ProgramFacts, StackPointers};
use super::elf::LoadError;
use crate::addr::{GuestAddr, PAGE_SIZE};
use crate::guest::{CodeControl, GuestMemory};
use crate::host::syscall::Errno;

/// Reserved below the limit in force, for programs that raise theirs while running.
const RAISED_LIMIT: u64 = 256 << 20;
/// The most that is ever reserved, also for an unlimited stack.
const MAX_RESERVE: u64 = 4 << 30;
const MIN_STACK: u64 = 256 << 10;
/// The kernel's gap below stacks (stack_guard_gap, 256 pages).
const GUARD: u64 = 1 << 20;

/// Where the stack is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StackRegion {
    /// What the guest may use now.
    pub mapped: Range<GuestAddr>,
}

/// What the kernel and /proc know a process's stack by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StackLayout {
    /// RSP at the entry: the address of argc.
    pub pointer: GuestAddr,
    pub args: Range<GuestAddr>,
    pub env: Range<GuestAddr>,
    pub auxv: Vec<[u64; 2]>,
}

/// What goes onto the stack.
#[derive(Debug)]
pub struct StackContents<'a> {
    /// The path that was asked to be executed (a script's own path, for a script).
    pub exec_name: &'a OsStr,
    pub args: &'a [OsString],
    pub env: &'a [OsString],
    pub random: [u8; 16],
    /// Moves the stack down by less than a page or two; 0 without randomization.
    pub jitter: u64,
    pub facts: ProgramFacts,
}

/// Maps the stack to the size that RLIMIT_STACK allows.
///
/// # Errors
/// What the host said.
pub fn map_stack(
    space: &mut AddressSpace,
    executable: bool,
    code: &mut dyn CodeControl,
) -> Result<StackRegion, LoadError> {
    let limit = stack_limit().clamp(MIN_STACK, MAX_RESERVE) & !(PAGE_SIZE - 1);
    let reserve = limit.max(RAISED_LIMIT) + GUARD;
    let failed = |errno| LoadError::Host {
        what: "reserving the stack",
        errno,
    };
    let request = MapRequest {
        addr: GuestAddr(0),
        bytes: reserve,
        prot: 0,
        flags: (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK)
            as u64,
        fd: NO_FILE,
        offset: 0,
    };
    let start = GuestAddr(space.mmap(request, code).map_err(failed)?);
    let top = start.offset(reserve as i64);
    let mapped = top.offset(-(limit as i64))..top;
    let mut prot = Prot::READ_WRITE;
    if executable {
        prot = prot.with_exec();
    }
    space
        .adopt_stack(start, mapped.clone(), GUARD, prot)
        .map_err(failed)?;
    Ok(StackRegion { mapped })
}

fn stack_limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: writes one rlimit into ours.
    match unsafe { libc::getrlimit(libc::RLIMIT_STACK, &mut limit) } {
        0 => limit.rlim_cur,
        _ => 8 << 20,
    }
}

/// Whether strings of these lengths fit a new program's stack.
pub fn has_room(lengths: impl Iterator<Item = usize>) -> bool {
    fits(stack_limit(), lengths)
}

/// The kernel: a quarter of the limit, and never more than 6 MiB (fs/exec.c).
fn fits(stack: u64, lengths: impl Iterator<Item = usize>) -> bool {
    let bytes: u64 = lengths.map(|len| len as u64 + 1 + 8).sum();
    bytes <= (stack / 4).clamp(128 << 10, 6 << 20)
}

/// Writes the initial contents.
///
/// # Errors
/// `ArgumentsTooLong` if they take more than the kernel would allow.
pub fn build(
    memory: &mut impl GuestMemory,
    region: &StackRegion,
    contents: &StackContents<'_>,
) -> Result<StackLayout, LoadError> {
    let strings = contents.args.iter().chain(contents.env);
    if !fits(
        region.mapped.end.0 - region.mapped.start.0,
        strings.map(|text| text.len()),
    ) {
        return Err(LoadError::ArgumentsTooLong);
    }
    let mut writer = Writer {
        memory,
        at: region.mapped.end,
    };
    writer.push(&[0; 8])?;
    let exec_name = writer.push_string(contents.exec_name)?;
    let env = writer.push_strings(contents.env)?;
    let args = writer.push_strings(contents.args)?;
    let strings_start = args.first().copied().unwrap_or(writer.at);
    let env_start = env.first().copied().unwrap_or(exec_name);
    writer.at = GuestAddr((writer.at.0 - contents.jitter) & !15);
    let platform = writer.push(b"x86_64\0")?;
    let random = writer.push(&contents.random)?;
    let auxv = auxv::entries(
        &contents.facts,
        StackPointers {
            random,
            exec_name,
            platform,
        },
    );
    let mut words = vec![args.len() as u64];
    words.extend(args.iter().map(|at| at.0));
    words.push(0);
    words.extend(env.iter().map(|at| at.0));
    words.push(0);
    words.extend(auxv.iter().flatten());
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    writer.at = GuestAddr((writer.at.0 - bytes.len() as u64) & !15).offset(bytes.len() as i64);
    let pointer = writer.push(&bytes)?;
    Ok(StackLayout {
        pointer,
        args: strings_start..env_start,
        env: env_start..exec_name,
        auxv,
    })
}

struct Writer<'a, M> {
    memory: &'a mut M,
    at: GuestAddr,
}

impl<M: GuestMemory> Writer<'_, M> {
    fn push(&mut self, bytes: &[u8]) -> Result<GuestAddr, LoadError> {
        self.at = self.at.offset(-(bytes.len() as i64));
        self.memory
            .write_bytes(self.at, bytes)
            .map_err(|_| LoadError::Host {
                what: "writing the stack",
                errno: Errno(libc::EFAULT),
            })?;
        Ok(self.at)
    }

    fn push_string(&mut self, text: &OsStr) -> Result<GuestAddr, LoadError> {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.push(&bytes)
    }

    /// The strings in ascending order, as the kernel has them; returns their addresses.
    fn push_strings(&mut self, texts: &[OsString]) -> Result<Vec<GuestAddr>, LoadError> {
        let mut bytes = Vec::new();
        let mut offsets = Vec::with_capacity(texts.len());
        for text in texts {
            offsets.push(bytes.len() as i64);
            bytes.extend_from_slice(text.as_bytes());
            bytes.push(0);
        }
        let start = self.push(&bytes)?;
        Ok(offsets.into_iter().map(|at| start.offset(at)).collect())
    }
}
