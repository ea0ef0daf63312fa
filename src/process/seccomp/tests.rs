//! Against the kernel: each native filter lives and dies with a thread of its own.

use std::thread;

use super::*;
use crate::host::syscall::raw;

const ALLOW: u32 = action::ALLOW;
/// No system call of this kernel's or of any soon.
const NO_CALL: u32 = 0x3333;

fn op(code: u16, jt: u8, jf: u8, k: u32) -> RawInstruction {
    RawInstruction { code, jt, jf, k }
}

fn load(offset: u32) -> RawInstruction {
    op(0x20, 0, 0, offset)
}

fn ret(k: u32) -> RawInstruction {
    op(0x06, 0, 0, k)
}

/// A deterministic stream of numbers (Steele, Lea and Flood's SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// Installs a filter on this thread; the error is the kernel's number.
fn install(program: &[RawInstruction]) -> Result<(), i32> {
    let bytes: Vec<u8> = program.iter().flat_map(|raw| raw.to_bytes()).collect();
    let program = [program.len() as u64, bytes.as_ptr() as u64];
    let no_new_privileges = [libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0, 0];
    let args = [1, 0, program.as_ptr() as u64, 0, 0, 0];
    // SAFETY: changes what this thread may do; the tests' filters allow all that is made.
    unsafe {
        raw(libc::SYS_prctl as u64, no_new_privileges);
        match raw(libc::SYS_seccomp as u64, args) {
            0 => Ok(()),
            error => Err(-error as i32),
        }
    }
}

/// False, with the reason said, where the host has no filters.
fn host_filters() -> bool {
    let installed = on_a_thread(|| install(&[ret(ALLOW)]));
    if let Err(errno) = installed {
        eprintln!("skipped: this host takes no seccomp filter (error {errno})");
    }
    installed.is_ok()
}

fn on_a_thread<R: Send>(run: impl FnOnce() -> R + Send) -> R {
    thread::scope(|scope| scope.spawn(run).join().expect("the thread"))
}

fn call(number: u32, args: [u64; 6]) -> CallData {
    CallData {
        number,
        instruction_pointer: 0x1234_5678_9abc_def0,
        args,
    }
}

fn filtered(programs: &[&[RawInstruction]]) -> Seccomp {
    let mut seccomp = Seccomp::Off;
    for program in programs {
        let program = Program::new(program.to_vec()).expect("a valid program");
        seccomp.attach(program).expect("room");
    }
    seccomp
}

/// Codes, mostly ones that mean something.
fn random_code(numbers: &mut Numbers) -> u16 {
    const CODES: &[u16] = &[
        0x00, 0x20, 0x60, 0x80, 0x01, 0x61, 0x81, 0x02, 0x03, 0x04, 0x0c, 0x14, 0x1c, 0x24, 0x2c,
        0x34, 0x3c, 0x44, 0x4c, 0x54, 0x5c, 0x64, 0x6c, 0x74, 0x7c, 0x84, 0xa4, 0xac, 0x05, 0x15,
        0x1d, 0x25, 0x2d, 0x35, 0x3d, 0x45, 0x4d, 0x06, 0x16, 0x07, 0x87,
    ];
    match numbers.below(60) {
        0 => numbers.next() as u16,
        1 => numbers.below(256) as u16,
        // Remainders, indirect loads, the header's length.
        2 => numbers.pick(&[0x94, 0x9c, 0x40, 0x28, 0x30, 0xb1, 0x0e, 0x0d, 0x8c]),
        _ => numbers.pick(CODES),
    }
}

fn random_program(numbers: &mut Numbers, len: u64) -> Vec<RawInstruction> {
    (0..len)
        .map(|at| {
            let code = random_code(numbers);
            let left = len - at;
            let near = |numbers: &mut Numbers| numbers.below(left.min(200) + 1) as u8;
            let (jt, jf) = (near(numbers), near(numbers));
            let k = match code {
                0x20 => numbers.below(18) as u32 * 4 + u32::from(numbers.below(9) == 0),
                0x60 | 0x61 => numbers.below(5) as u32,
                0x02 | 0x03 => numbers.below(17) as u32,
                0x05 => numbers.below(left + 1) as u32,
                0x64 | 0x74 => numbers.below(33) as u32,
                _ => numbers.pick(&[0, 1, 7, 0x7fff_ffff, 0x8000_0000, u32::MAX]),
            };
            op(code, jt, jf, k)
        })
        .collect()
}

#[test]
fn the_kernel_takes_the_same_programs() {
    if !host_filters() {
        return;
    }
    const SEED: u64 = 0x5ecc;
    let mut numbers = Numbers(SEED);
    let (mut taken, mut refused) = (0, 0);
    for round in 0..60 {
        let programs: Vec<Vec<RawInstruction>> = (0..50)
            .map(|_| {
                let len = 1 + numbers.below(6);
                let tested = random_program(&mut numbers, len);
                // Whatever it is, it never runs: all calls are allowed before.
                let mut program = vec![op(0x15, len as u8, 0, 0)];
                program.extend(tested);
                program.push(ret(ALLOW));
                program
            })
            .collect();
        let verdicts = on_a_thread(|| programs.iter().map(|p| install(p)).collect::<Vec<_>>());
        for (program, native) in programs.iter().zip(verdicts) {
            let ours = Program::new(program.clone())
                .map(drop)
                .map_err(|_| libc::EINVAL);
            assert_eq!(ours, native, "seed {SEED:#x}, round {round}: {program:#x?}");
            match native {
                Ok(()) => taken += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert!(
        taken > 200 && refused > 200,
        "{taken} taken, {refused} refused"
    );
}

#[test]
fn single_codes_are_taken_or_refused_as_by_the_kernel() {
    if !host_filters() {
        return;
    }
    for k in [0, 4, 16, 31, 32, 64] {
        for chunk in (0..0x400u16).collect::<Vec<_>>().chunks(128) {
            let program = |code| vec![op(0x15, 1, 0, 0), op(code, 0, 0, k), ret(ALLOW)];
            let native = on_a_thread(|| {
                let verdicts = chunk.iter().map(|&code| install(&program(code)));
                verdicts.collect::<Vec<_>>()
            });
            for (&code, native) in chunk.iter().zip(native) {
                let ours = Program::new(program(code))
                    .map(drop)
                    .map_err(|_| libc::EINVAL);
                assert_eq!(ours, native, "code {code:#x}, k {k}");
            }
        }
    }
}

#[test]
fn the_last_instruction_returns_and_lengths_are_bounded() {
    assert_eq!(Program::new(Vec::new()), Err(Invalid));
    assert_eq!(Program::new(vec![ret(0), load(0)]), Err(Invalid));
    assert!(Program::new(vec![ret(0); MAX_INSTRUCTIONS]).is_ok());
    assert_eq!(
        Program::new(vec![ret(0); MAX_INSTRUCTIONS + 1]),
        Err(Invalid)
    );
}

/// Straight and branching arithmetic over the call's words, with its result in A.
fn random_computation(numbers: &mut Numbers) -> Vec<RawInstruction> {
    const ALU: &[u16] = &[
        0x04, 0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3c, 0x44, 0x4c, 0x54, 0x5c, 0x64, 0x6c, 0x74,
        0x7c, 0x84, 0xa4, 0xac,
    ];
    const TESTS: &[u16] = &[0x15, 0x1d, 0x25, 0x2d, 0x35, 0x3d, 0x45, 0x4d];
    let mut program = vec![
        load(16),
        op(0x02, 0, 0, 0),
        load(20),
        op(0x03, 0, 0, 1),
        op(0x02, 0, 0, 2),
        op(0x07, 0, 0, 0),
    ];
    let len = 5 + numbers.below(20);
    for at in 0..len {
        let left = (len - at - 1).min(6);
        let constant = match numbers.below(3) {
            0 => numbers.next() as u32,
            _ => numbers.pick(&[1, 3, 0x8000_0000, u32::MAX, 31]),
        };
        program.push(match numbers.below(10) {
            0 => load(numbers.pick(&[0, 4, 16, 20, 24, 28, 32, 36, 60])),
            1 => op(0x07, 0, 0, 0),
            2 => op(0x87, 0, 0, 0),
            3 => op(numbers.pick(&[0x02, 0x03]), 0, 0, numbers.below(3) as u32),
            4 => op(numbers.pick(&[0x60, 0x61]), 0, 0, numbers.below(3) as u32),
            5 | 6 => op(
                numbers.pick(TESTS),
                numbers.below(left + 1) as u8,
                numbers.below(left + 1) as u8,
                constant,
            ),
            7 => op(numbers.pick(&[0x00, 0x01, 0x80, 0x81]), 0, 0, constant),
            _ => match numbers.pick(ALU) {
                shift @ (0x64 | 0x74) => op(shift, 0, 0, constant % 32),
                other => op(other, 0, 0, constant),
            },
        });
    }
    program
}

/// What the filter made of the call natively: the error number.
fn native_error(program: &[RawInstruction], args: [u64; 6]) -> i32 {
    on_a_thread(|| {
        install(program).expect("a valid program");
        // SAFETY: there is no such call.
        -unsafe { raw(u64::from(NO_CALL), args) } as i32
    })
}

#[test]
fn programs_compute_what_the_kernel_computes() {
    if !host_filters() {
        return;
    }
    const SEED: u64 = 77;
    let mut numbers = Numbers(SEED);
    let mut results = std::collections::BTreeSet::new();
    for round in 0..400 {
        let shift = numbers.pick(&[0, 11, 22]);
        let mut program = vec![load(0), op(0x15, 1, 0, NO_CALL), ret(ALLOW)];
        program.extend(random_computation(&mut numbers));
        program.extend([
            op(0x74, 0, 0, shift),
            op(0x54, 0, 0, 0x7ff),
            op(0x44, 0, 0, action::ERRNO),
            op(0x16, 0, 0, 0),
        ]);
        let args = std::array::from_fn(|_| numbers.next());
        let verdict = match filtered(&[&program]).judge(&call(NO_CALL, args)) {
            Verdict::Fail(errno) => i32::from(errno),
            // A division by zero: natively it would kill the thread, and the test wait for it.
            Verdict::KillThread(_) => continue,
            other => panic!("seed {SEED}, round {round}: {other:?} for {program:#x?}"),
        };
        let native = native_error(&program, args);
        assert_eq!(verdict, native, "seed {SEED}, round {round}: {program:#x?}");
        results.insert(native);
    }
    assert!(results.len() > 40, "only {results:?}");
}

#[test]
fn dividing_by_a_zero_x_returns_zero() {
    let program = [
        op(0x00, 0, 0, 7),
        op(0x01, 0, 0, 0),
        op(0x3c, 0, 0, 0),
        ret(ALLOW),
    ];
    let verdict = filtered(&[&program]).judge(&call(1, [0; 6]));
    assert_eq!(verdict, Verdict::KillThread(libc::SIGSYS));
}

#[test]
fn every_word_of_the_data_is_where_the_kernel_has_it() {
    let data = call(7, [1 << 32 | 2, 3 << 32 | 4, 5, 6, 7, 8 << 32 | 9]);
    let word = |offset| data.word(offset);
    assert_eq!([word(0), word(4)], [7, 0xc000_003e]);
    assert_eq!([word(8), word(12)], [0x9abc_def0, 0x1234_5678]);
    assert_eq!([word(16), word(20), word(24), word(28)], [2, 1, 4, 3]);
    assert_eq!([word(56), word(60)], [9, 8]);
}

#[test]
fn the_strictest_action_counts_and_of_equal_ones_the_newest() {
    let errno = |errno| [ret(action::ERRNO | errno)];
    let (allow, log, trace) = ([ret(ALLOW)], [ret(action::LOG)], [ret(action::TRACE | 5)]);
    let (trap, unknown) = ([ret(action::TRAP | 9)], [ret(0x1234_0000)]);
    let (thread, process) = ([ret(action::KILL_THREAD)], [ret(action::KILL_PROCESS)]);
    let judge = |programs: &[&[RawInstruction]]| filtered(programs).judge(&call(1, [0; 6]));
    assert_eq!(judge(&[&allow, &log]), Verdict::Log);
    assert_eq!(judge(&[&errno(1), &errno(2)]), Verdict::Fail(2));
    assert_eq!(judge(&[&errno(1), &allow]), Verdict::Fail(1));
    assert_eq!(judge(&[&errno(0xffff)]), Verdict::Fail(4095));
    assert_eq!(judge(&[&trace, &log]), Verdict::Fail(libc::ENOSYS as u16));
    assert_eq!(judge(&[&trap, &errno(3)]), Verdict::Trap(9));
    assert_eq!(judge(&[&trap, &thread]), Verdict::KillThread(libc::SIGSYS));
    assert_eq!(judge(&[&process, &thread]), Verdict::KillProcess);
    assert_eq!(judge(&[&unknown]), Verdict::KillProcess);
}

#[test]
fn as_many_filters_fit_as_in_the_kernel() {
    if !host_filters() {
        return;
    }
    // Each kind of instruction that the kernel's own form makes longer.
    let program = [
        load(4),
        op(0x15, 0, 8, ARCH),
        op(0x25, 3, 4, 5),
        op(0x45, 0, 1, 5),
        op(0x35, 1, 0, 0xffff_0000),
        op(0x2d, 2, 1, 0),
        op(0x01, 0, 0, 1),
        op(0x3c, 0, 0, 0),
        op(0x05, 0, 0, 1),
        op(0x06, 0, 0, ALLOW),
        op(0x00, 0, 0, ALLOW),
        op(0x16, 0, 0, 0),
        ret(ALLOW),
    ];
    let native = on_a_thread(|| {
        let mut count = 0;
        loop {
            match install(&program) {
                Ok(()) => count += 1,
                Err(errno) => return (count, errno),
            }
        }
    });
    let mut seccomp = Seccomp::Off;
    let mut count = 0;
    let refusal = loop {
        match seccomp.attach(Program::new(program.to_vec()).expect("valid")) {
            Ok(()) => count += 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal, Refusal::TooLong);
    assert_eq!((count, libc::ENOMEM), native);
}

#[test]
fn calls_allowed_whatever_their_arguments_are_known() {
    let passes = |seccomp: &Seccomp, number: i64| {
        let number = number as usize;
        seccomp.allows()[number / 64] & 1 << (number % 64) != 0
    };
    // getpid always, write to descriptor 1 only, nothing else.
    let program = [
        load(4),
        op(0x15, 1, 0, ARCH),
        ret(action::KILL_PROCESS),
        load(0),
        op(0x15, 3, 0, libc::SYS_getpid as u32),
        op(0x15, 0, 1, libc::SYS_write as u32),
        load(16),
        op(0x15, 0, 1, 1),
        ret(ALLOW),
        ret(action::ERRNO | 1),
    ];
    let seccomp = filtered(&[&program]);
    assert!(passes(&seccomp, libc::SYS_getpid));
    assert!(!passes(&seccomp, libc::SYS_write) && !passes(&seccomp, libc::SYS_read));
    let write = |fd| seccomp.judge(&call(libc::SYS_write as u32, [fd, 0, 0, 0, 0, 0]));
    assert_eq!([write(1), write(2)], [Verdict::Allow, Verdict::Fail(1)]);
    assert!(passes(&Seccomp::Off, libc::SYS_read) && passes(&Seccomp::Strict, libc::SYS_read));
    assert!(!passes(&Seccomp::Strict, libc::SYS_getpid));
}

#[test]
fn strict_mode_and_filters_exclude_each_other() {
    let mut strict = Seccomp::Strict;
    let program = Program::new(vec![ret(ALLOW)]).expect("valid");
    assert_eq!(strict.attach(program), Err(Refusal::OtherMode));
    assert_eq!(strict.set_strict(), Ok(()));
    assert_eq!(
        filtered(&[&[ret(ALLOW)]]).set_strict(),
        Err(Refusal::OtherMode)
    );
    let killed = Verdict::KillThread(libc::SIGKILL);
    assert_eq!(strict.judge(&call(libc::SYS_getpid as u32, [0; 6])), killed);
    assert_eq!(
        strict.judge(&call(libc::SYS_read as u32, [0; 6])),
        Verdict::Allow
    );
}

#[test]
fn a_thread_can_join_one_that_only_has_more_filters() {
    let older = filtered(&[&[ret(ALLOW)]]);
    let mut newer = older.clone();
    newer
        .attach(Program::new(vec![ret(0)]).expect("valid"))
        .expect("room");
    assert!(Seccomp::Off.is_ancestor_of(&older) && older.is_ancestor_of(&newer));
    assert!(older.is_ancestor_of(&older) && !newer.is_ancestor_of(&older));
    assert!(!filtered(&[&[ret(ALLOW)]]).is_ancestor_of(&newer));
    assert!(!Seccomp::Strict.is_ancestor_of(&newer));
}

#[test]
fn the_state_survives_being_carried() {
    let filters = filtered(&[&[ret(action::ERRNO | 1)], &[load(0), ret(ALLOW)]]);
    for seccomp in [Seccomp::Off, Seccomp::Strict, filters] {
        let carried = seccomp.carried();
        let restored = Seccomp::restored(&carried).expect("its own form");
        assert_eq!(restored.carried(), carried);
        assert_eq!(restored.mode(), seccomp.mode());
        let asked = call(libc::SYS_getpid as u32, [0; 6]);
        assert_eq!(restored.judge(&asked), seccomp.judge(&asked));
    }
    let broken = Carried {
        strict: false,
        filters: vec!["f".repeat(16)],
    };
    assert!(Seccomp::restored(&broken).is_err());
}
