//! The initial stack as the guest finds it, read back by its own rules.

use std::ffi::{OsStr, OsString};

use super::address_space::{AddressSpace, Placement, Prot, Role};
use super::auxv::ProgramFacts;
use super::deferred::Deferred;
use super::elf::LoadError;
use super::memory::read_c_string;
use super::stack::{StackContents, StackLayout, build, map_stack};
use crate::addr::GuestAddr;
use crate::guest::{GuestMemory, Width};
use crate::native::{IdentityMemory, install_test_handler};

fn texts(texts: &[&str]) -> Vec<OsString> {
    texts.iter().map(OsString::from).collect()
}

fn made(args: &[OsString], env: &[OsString]) -> Result<StackLayout, LoadError> {
    install_test_handler();
    let mut space = AddressSpace::new(Placement::new(None));
    let region = map_stack(&mut space, false, &mut Deferred)?;
    let (_, attributes) = space.map().peek(region.mapped.start).expect("mapped");
    assert_eq!(attributes.role, Role::Stack);
    assert_eq!(attributes.prot, Prot::READ_WRITE);
    assert!(space.map().peek(region.mapped.start.offset(-1)).is_none());
    build(
        &mut IdentityMemory,
        &region,
        &StackContents {
            exec_name: OsStr::new("/bin/program"),
            args,
            env,
            random: *b"0123456789abcdef",
            jitter: 0x123,
            facts: ProgramFacts {
                headers: GuestAddr(0x40),
                header_count: 7,
                base: 0x1000,
                entry: GuestAddr(0x2000),
                vdso: Some(GuestAddr(0x3000)),
            },
        },
    )
}

fn word(at: GuestAddr) -> u64 {
    IdentityMemory.load(at, Width::B8).expect("readable")
}

fn text(at: u64) -> String {
    let bytes = read_c_string(&mut IdentityMemory, GuestAddr(at), 1 << 20).expect("a string");
    String::from_utf8(bytes).expect("UTF-8")
}

/// Reads the pointers from RSP on; gives the address behind them.
fn vectors(layout: &StackLayout) -> (Vec<String>, Vec<String>, GuestAddr) {
    let mut at = layout.pointer;
    let count = word(at);
    let mut lists = [Vec::new(), Vec::new()];
    for list in &mut lists {
        loop {
            at = at.offset(8);
            match word(at) {
                0 => break,
                pointer => list.push(text(pointer)),
            }
        }
    }
    let [args, env] = lists;
    assert_eq!(args.len() as u64, count);
    (args, env, at.offset(8))
}

#[test]
fn pointers_lead_to_the_strings_and_the_stack_is_aligned() {
    let layout = made(&texts(&["program", "", "x y"]), &texts(&["A=1", "B="])).expect("a stack");
    assert_eq!(layout.pointer.0 % 16, 0);
    let (args, env, _) = vectors(&layout);
    assert_eq!(args, ["program", "", "x y"]);
    assert_eq!(env, ["A=1", "B="]);
}

#[test]
fn strings_lie_as_proc_cmdline_and_environ_show_them() {
    let layout = made(&texts(&["p", "q"]), &texts(&["A=1"])).expect("a stack");
    let read = |range: &std::ops::Range<GuestAddr>| {
        let mut bytes = vec![0; (range.end.0 - range.start.0) as usize];
        IdentityMemory
            .read_bytes(range.start, &mut bytes)
            .expect("readable");
        bytes
    };
    assert_eq!(read(&layout.args), b"p\0q\0");
    assert_eq!(read(&layout.env), b"A=1\0");
}

#[test]
fn the_auxiliary_vector_describes_the_program_and_announces_no_rseq() {
    let layout = made(&texts(&["p"]), &[]).expect("a stack");
    let (_, env, mut at) = vectors(&layout);
    assert!(env.is_empty());
    let mut found = Vec::new();
    loop {
        let pair = [word(at), word(at.offset(8))];
        found.push(pair);
        at = at.offset(16);
        if pair[0] == libc::AT_NULL {
            break;
        }
    }
    assert_eq!(found, layout.auxv);
    let value = |kind: u64| found.iter().find(|[k, _]| *k == kind).map(|[_, v]| *v);
    assert_eq!(value(libc::AT_PHDR), Some(0x40));
    assert_eq!(value(libc::AT_PHNUM), Some(7));
    assert_eq!(value(libc::AT_BASE), Some(0x1000));
    assert_eq!(value(libc::AT_ENTRY), Some(0x2000));
    assert_eq!(value(libc::AT_SYSINFO_EHDR), Some(0x3000));
    assert_eq!(value(libc::AT_PAGESZ), Some(4096));
    assert_eq!(value(libc::AT_SECURE), Some(0));
    assert_eq!(value(27), None, "AT_RSEQ_FEATURE_SIZE");
    assert_eq!(
        value(libc::AT_EXECFN).map(text).as_deref(),
        Some("/bin/program")
    );
    assert_eq!(
        value(libc::AT_PLATFORM).map(text).as_deref(),
        Some("x86_64")
    );
    let random = GuestAddr(value(libc::AT_RANDOM).expect("random bytes"));
    let mut bytes = [0; 16];
    IdentityMemory
        .read_bytes(random, &mut bytes)
        .expect("readable");
    assert_eq!(&bytes, b"0123456789abcdef");
    // CPUID's feature bits, not the C library's private ones.
    let hwcap = value(libc::AT_HWCAP).expect("AT_HWCAP");
    assert_eq!(hwcap, u64::from(std::arch::x86_64::__cpuid(1).edx));
}

#[test]
fn many_arguments_fit_and_too_many_are_refused() {
    let many: Vec<OsString> = (0..20_000).map(|i| OsString::from(i.to_string())).collect();
    let layout = made(&many, &[]).expect("a stack");
    let (args, _, _) = vectors(&layout);
    assert_eq!(args.len(), many.len());
    assert_eq!(args.last().map(String::as_str), Some("19999"));
    let huge = vec![OsString::from("x".repeat(100_000)); 200];
    assert_eq!(made(&huge, &[]), Err(LoadError::ArgumentsTooLong));
}
