//! The auxiliary vector that the guest gets: the host's own values where they describe the
//! machine, the guest's where they describe the program.

use std::fs::File;
use std::io::Read;

use crate::addr::GuestAddr;

/// What the program's loading contributes.
#[derive(Clone, Debug)]
pub struct ProgramFacts {
    pub headers: GuestAddr,
    pub header_count: u16,
    /// The interpreter's load bias; 0 without one.
    pub base: u64,
    pub entry: GuestAddr,
    pub vdso: Option<GuestAddr>,
}

/// Where the stack holds what the vector points to.
#[derive(Clone, Copy, Debug)]
pub struct StackPointers {
    pub random: GuestAddr,
    pub exec_name: GuestAddr,
    pub platform: GuestAddr,
}

/// The entries in the kernel's order, AT_NULL included.
pub fn entries(facts: &ProgramFacts, pointers: StackPointers) -> Vec<[u64; 2]> {
    let own = host_vector();
    let host = |kind: u64| {
        let found = own.iter().find(|[key, _]| *key == kind);
        found.map_or(0, |[_, value]| *value)
    };
    let mut vector = Vec::with_capacity(24);
    if let Some(vdso) = facts.vdso {
        vector.push([libc::AT_SYSINFO_EHDR, vdso.0]);
    }
    let minimum = host(libc::AT_MINSIGSTKSZ);
    if minimum != 0 {
        vector.push([libc::AT_MINSIGSTKSZ, minimum]);
    }
    vector.extend([
        [libc::AT_HWCAP, host(libc::AT_HWCAP)],
        [libc::AT_PAGESZ, host(libc::AT_PAGESZ)],
        [libc::AT_CLKTCK, host(libc::AT_CLKTCK)],
        [libc::AT_PHDR, facts.headers.0],
        [libc::AT_PHENT, 56],
        [libc::AT_PHNUM, u64::from(facts.header_count)],
        [libc::AT_BASE, facts.base],
        [libc::AT_FLAGS, 0],
        [libc::AT_ENTRY, facts.entry.0],
        [libc::AT_UID, host(libc::AT_UID)],
        [libc::AT_EUID, host(libc::AT_EUID)],
        [libc::AT_GID, host(libc::AT_GID)],
        [libc::AT_EGID, host(libc::AT_EGID)],
        [libc::AT_SECURE, host(libc::AT_SECURE)],
        [libc::AT_RANDOM, pointers.random.0],
        [libc::AT_HWCAP2, host(libc::AT_HWCAP2)],
        [libc::AT_EXECFN, pointers.exec_name.0],
        [libc::AT_PLATFORM, pointers.platform.0],
    ]);
    // No AT_RSEQ_FEATURE_SIZE and AT_RSEQ_ALIGN: restartable sequences are refused.
    vector.push([libc::AT_NULL, 0]);
    vector
}

/// The vector that the kernel gave to this process. Not from getauxval: the C library
/// replaces some values (AT_HWCAP) by its own.
fn host_vector() -> Vec<[u64; 2]> {
    let mut bytes = Vec::with_capacity(1024);
    let read = File::open("/proc/self/auxv").and_then(|mut file| file.read_to_end(&mut bytes));
    if read.is_err() {
        bytes.clear();
    }
    let (pairs, _) = bytes.as_chunks::<16>();
    let word = |half: &[u8]| {
        half.iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    };
    pairs
        .iter()
        .map(|pair| [word(&pair[..8]), word(&pair[8..])])
        .collect()
}
