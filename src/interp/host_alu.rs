//! The host's own ALU as the interpreter's: each function runs the real instruction, so that
//! results and flags, "undefined" ones too, are those of this very CPU. Flags come back
//! through LAHF and SETO, which are far cheaper than PUSHF and never touch the stack.
//! Knows nothing of operands or memory.

use std::arch::asm;

use crate::guest::{Width, flags};

use super::scalar::Scalar;

/// The arithmetic flags as LAHF and SETO leave them in AX: AH holds the low byte of RFLAGS,
/// AL holds OF.
#[inline(always)]
fn pack(rflags: u64) -> u16 {
    ((rflags & 0xff) << 8 | (rflags >> 11) & 1) as u16
}

/// Merges an AX image into RFLAGS.
#[inline(always)]
fn unpack(rflags: &mut u64, image: u16) {
    let image = u64::from(image);
    *rflags = *rflags & !flags::ARITHMETIC | image >> 8 | (image & 1) << 11;
}

/// Runs `$text` with the arithmetic flags restored before (ADD of 127 to a 0 or 1 sets OF
/// from it, SAHF the other five) and taken after.
macro_rules! with_flags {
    ($rflags:expr, $text:expr, $($operands:tt)*) => {{
        let mut image = pack(*$rflags);
        // SAFETY: register arithmetic only; no memory, no stack.
        unsafe {
            asm!(
                "add al, 127", "sahf", $text, "lahf", "seto al",
                $($operands)*,
                inout("ax") image,
                options(pure, nomem, nostack)
            );
        }
        unpack($rflags, image);
    }};
}

/// Runs `$text`, which writes all flags and reads none, and takes them.
macro_rules! takes_flags {
    ($rflags:expr, $text:expr, $($operands:tt)*) => {{
        let image: u16;
        // SAFETY: register arithmetic only; no memory, no stack.
        unsafe {
            asm!(
                $text, "lahf", "seto al",
                $($operands)*,
                out("ax") image,
                options(pure, nomem, nostack)
            );
        }
        unpack($rflags, image);
    }};
}

/// As [`takes_flags`], with CF restored before.
macro_rules! with_carry {
    ($rflags:expr, $text:expr, $($operands:tt)*) => {{
        let image: u16;
        // SAFETY: register arithmetic only; no memory, no stack.
        unsafe {
            asm!(
                "bt {f:e}, 0", $text, "lahf", "seto al",
                $($operands)*,
                f = in(reg) *$rflags,
                out("ax") image,
                options(pure, nomem, nostack)
            );
        }
        unpack($rflags, image);
    }};
}

/// ADD and its kin.
pub(super) trait Binary: 'static {
    /// False for CMP and TEST.
    const WRITES: bool;
    fn apply<W: Scalar>(a: u64, b: u64, rflags: &mut u64) -> u64;
}

// By width: an instruction on `a` (read and written) and `b`, run by `$with`.
macro_rules! on_two {
    ($with:ident, $rflags:expr, $w:ty, $mnemonic:expr, $a:ident, $b:ident) => {
        match <$w>::WIDTH {
            Width::B1 => $with!($rflags, concat!($mnemonic, " {a:l}, {b:l}"),
                a = inout(reg) $a, b = in(reg) $b),
            Width::B2 => $with!($rflags, concat!($mnemonic, " {a:x}, {b:x}"),
                a = inout(reg) $a, b = in(reg) $b),
            Width::B4 => $with!($rflags, concat!($mnemonic, " {a:e}, {b:e}"),
                a = inout(reg) $a, b = in(reg) $b),
            Width::B8 => $with!($rflags, concat!($mnemonic, " {a:r}, {b:r}"),
                a = inout(reg) $a, b = in(reg) $b),
        }
    };
}

macro_rules! binary {
    ($name:ident, $mnemonic:literal, writes: $writes:literal, $with:ident) => {
        pub(super) struct $name;

        impl Binary for $name {
            const WRITES: bool = $writes;

            #[inline(always)]
            fn apply<W: Scalar>(mut a: u64, b: u64, rflags: &mut u64) -> u64 {
                on_two!($with, rflags, W, $mnemonic, a, b);
                a
            }
        }
    };
}

binary!(Add, "add", writes: true, takes_flags);
binary!(Or, "or", writes: true, takes_flags);
binary!(And, "and", writes: true, takes_flags);
binary!(Sub, "sub", writes: true, takes_flags);
binary!(Xor, "xor", writes: true, takes_flags);
binary!(Cmp, "cmp", writes: false, takes_flags);
binary!(Test, "test", writes: false, takes_flags);
binary!(Adc, "adc", writes: true, with_carry);
binary!(Sbb, "sbb", writes: true, with_carry);

/// INC, DEC (which keep CF), NEG, NOT (which keeps all flags).
pub(super) trait Unary: 'static {
    fn apply<W: Scalar>(a: u64, rflags: &mut u64) -> u64;
}

macro_rules! unary {
    ($name:ident, $mnemonic:literal) => {
        pub(super) struct $name;

        impl Unary for $name {
            #[inline(always)]
            fn apply<W: Scalar>(mut a: u64, rflags: &mut u64) -> u64 {
                match W::WIDTH {
                    Width::B1 => with_carry!(rflags, concat!($mnemonic, " {a:l}"),
                        a = inout(reg) a),
                    Width::B2 => with_carry!(rflags, concat!($mnemonic, " {a:x}"),
                        a = inout(reg) a),
                    Width::B4 => with_carry!(rflags, concat!($mnemonic, " {a:e}"),
                        a = inout(reg) a),
                    Width::B8 => with_carry!(rflags, concat!($mnemonic, " {a:r}"),
                        a = inout(reg) a),
                }
                a
            }
        }
    };
}

unary!(Inc, "inc");
unary!(Dec, "dec");
unary!(Neg, "neg");

pub(super) struct Not;

impl Unary for Not {
    #[inline(always)]
    fn apply<W: Scalar>(a: u64, _: &mut u64) -> u64 {
        !a
    }
}

/// Shifts and rotates by CL; a count of zero leaves the flags.
pub(super) trait Shift: 'static {
    fn apply<W: Scalar>(a: u64, count: u8, rflags: &mut u64) -> u64;
}

macro_rules! shift {
    ($name:ident, $mnemonic:literal) => {
        pub(super) struct $name;

        impl Shift for $name {
            #[inline(always)]
            fn apply<W: Scalar>(mut a: u64, count: u8, rflags: &mut u64) -> u64 {
                match W::WIDTH {
                    Width::B1 => with_flags!(rflags, concat!($mnemonic, " {a:l}, cl"),
                        a = inout(reg) a, in("cl") count),
                    Width::B2 => with_flags!(rflags, concat!($mnemonic, " {a:x}, cl"),
                        a = inout(reg) a, in("cl") count),
                    Width::B4 => with_flags!(rflags, concat!($mnemonic, " {a:e}, cl"),
                        a = inout(reg) a, in("cl") count),
                    Width::B8 => with_flags!(rflags, concat!($mnemonic, " {a:r}, cl"),
                        a = inout(reg) a, in("cl") count),
                }
                a
            }
        }
    };
}

shift!(Rol, "rol");
shift!(Ror, "ror");
shift!(Rcl, "rcl");
shift!(Rcr, "rcr");
shift!(Shl, "shl");
shift!(Shr, "shr");
shift!(Sar, "sar");

/// SHLD and SHRD.
pub(super) trait DoubleShift: 'static {
    fn apply<W: Scalar>(a: u64, filler: u64, count: u8, rflags: &mut u64) -> u64;
}

macro_rules! double_shift {
    ($name:ident, $mnemonic:literal) => {
        pub(super) struct $name;

        impl DoubleShift for $name {
            #[inline(always)]
            fn apply<W: Scalar>(mut a: u64, filler: u64, count: u8, rflags: &mut u64) -> u64 {
                match W::WIDTH {
                    Width::B1 | Width::B2 => with_flags!(rflags, concat!($mnemonic, " {a:x}, {b:x}, cl"),
                        a = inout(reg) a, b = in(reg) filler, in("cl") count),
                    Width::B4 => with_flags!(rflags, concat!($mnemonic, " {a:e}, {b:e}, cl"),
                        a = inout(reg) a, b = in(reg) filler, in("cl") count),
                    Width::B8 => with_flags!(rflags, concat!($mnemonic, " {a:r}, {b:r}, cl"),
                        a = inout(reg) a, b = in(reg) filler, in("cl") count),
                }
                a
            }
        }
    };
}

double_shift!(Shld, "shld");
double_shift!(Shrd, "shrd");

/// Instructions of two operands that may keep their destination (BSF of zero), or whose
/// flags are partly undefined. `a` is the whole 64-bit destination register, so that what
/// the CPU does with its upper half comes out too.
pub(super) trait Scan: 'static {
    fn apply<W: Scalar>(a: u64, b: u64, rflags: &mut u64) -> u64;
}

macro_rules! scan {
    ($name:ident, $mnemonic:literal) => {
        pub(super) struct $name;

        impl Scan for $name {
            #[inline(always)]
            fn apply<W: Scalar>(mut a: u64, b: u64, rflags: &mut u64) -> u64 {
                match W::WIDTH {
                    Width::B1 | Width::B2 => with_flags!(rflags, concat!($mnemonic, " {a:x}, {b:x}"),
                        a = inout(reg) a, b = in(reg) b),
                    Width::B4 => with_flags!(rflags, concat!($mnemonic, " {a:e}, {b:e}"),
                        a = inout(reg) a, b = in(reg) b),
                    Width::B8 => with_flags!(rflags, concat!($mnemonic, " {a:r}, {b:r}"),
                        a = inout(reg) a, b = in(reg) b),
                }
                a
            }
        }
    };
}

scan!(Bsf, "bsf");
scan!(Bsr, "bsr");
scan!(Lzcnt, "lzcnt");
scan!(Tzcnt, "tzcnt");
scan!(Popcnt, "popcnt");
scan!(Bt, "bt");
scan!(Bts, "bts");
scan!(Btr, "btr");
scan!(Btc, "btc");
scan!(ImulTwo, "imul");

macro_rules! scan_wide {
    ($name:ident, $mnemonic:literal) => {
        pub(super) struct $name;

        impl Scan for $name {
            #[inline(always)]
            fn apply<W: Scalar>(mut a: u64, b: u64, rflags: &mut u64) -> u64 {
                match W::WIDTH {
                    Width::B8 => with_flags!(rflags, concat!($mnemonic, " {a:r}, {b:r}"),
                        a = inout(reg) a, b = in(reg) b),
                    _ => with_flags!(rflags, concat!($mnemonic, " {a:e}, {b:e}"),
                        a = inout(reg) a, b = in(reg) b),
                }
                a
            }
        }
    };
}

scan_wide!(Adcx, "adcx");
scan_wide!(Adox, "adox");
scan_wide!(Blsi, "blsi");
scan_wide!(Blsmsk, "blsmsk");
scan_wide!(Blsr, "blsr");

/// VEX-coded instructions of three operands, 32 and 64 bits.
pub(super) trait Ternary: 'static {
    fn apply<W: Scalar>(b: u64, c: u64, rflags: &mut u64) -> u64;
}

macro_rules! ternary {
    ($name:ident, $mnemonic:literal) => {
        pub(super) struct $name;

        impl Ternary for $name {
            #[inline(always)]
            fn apply<W: Scalar>(b: u64, c: u64, rflags: &mut u64) -> u64 {
                let a: u64;
                match W::WIDTH {
                    Width::B8 => with_flags!(rflags, concat!($mnemonic, " {a:r}, {b:r}, {c:r}"),
                        a = out(reg) a, b = in(reg) b, c = in(reg) c),
                    _ => with_flags!(rflags, concat!($mnemonic, " {a:e}, {b:e}, {c:e}"),
                        a = out(reg) a, b = in(reg) b, c = in(reg) c),
                }
                a
            }
        }
    };
}

ternary!(Andn, "andn");
ternary!(Bextr, "bextr");
ternary!(Bzhi, "bzhi");
ternary!(Pdep, "pdep");
ternary!(Pext, "pext");

/// One-operand MUL and IMUL: the double-width product as (low, high) halves of the width;
/// for 8 bits, `low` is all of AX.
pub(super) trait Multiply: 'static {
    fn apply<W: Scalar>(a: u64, b: u64, rflags: &mut u64) -> (u64, u64);
}

/// One-operand DIV and IDIV, whose overflow the caller has ruled out: (quotient, remainder)
/// from (low, high); for 8 bits, the dividend is in `low` and the results share AX.
pub(super) trait Divide: 'static {
    fn apply<W: Scalar>(low: u64, high: u64, divisor: u64, rflags: &mut u64) -> (u64, u64);
}

// RAX is both the flags' way in and an operand, so the flags wait in another register.
macro_rules! through_rax {
    ($rflags:expr, $text:expr, $low:ident, $high:ident, $b:ident) => {{
        let image: u64;
        // SAFETY: register arithmetic only; no memory, no stack. Not `pure`: a division may
        // not be moved in front of the check that it doesn't overflow.
        unsafe {
            asm!(
                "mov eax, {f:e}", "add al, 127", "sahf", "mov rax, {low}",
                $text,
                "mov {low}, rax", "lahf", "seto al",
                f = in(reg) u64::from(pack(*$rflags)),
                low = inout(reg) $low,
                b = in(reg) $b,
                out("rax") image,
                inout("rdx") $high,
                options(nomem, nostack)
            );
        }
        unpack($rflags, image as u16);
    }};
}

macro_rules! multiply {
    ($name:ident, $mnemonic:literal) => {
        pub(super) struct $name;

        impl Multiply for $name {
            #[inline(always)]
            fn apply<W: Scalar>(a: u64, b: u64, rflags: &mut u64) -> (u64, u64) {
                let mut low = a;
                let mut high = 0u64;
                match W::WIDTH {
                    Width::B1 => through_rax!(rflags, concat!($mnemonic, " {b:l}"), low, high, b),
                    Width::B2 => through_rax!(rflags, concat!($mnemonic, " {b:x}"), low, high, b),
                    Width::B4 => through_rax!(rflags, concat!($mnemonic, " {b:e}"), low, high, b),
                    Width::B8 => through_rax!(rflags, concat!($mnemonic, " {b:r}"), low, high, b),
                }
                (low, high)
            }
        }
    };
}

multiply!(Mul, "mul");
multiply!(Imul, "imul");

macro_rules! divide {
    ($name:ident, $mnemonic:literal) => {
        pub(super) struct $name;

        impl Divide for $name {
            #[inline(always)]
            fn apply<W: Scalar>(
                mut low: u64,
                mut high: u64,
                b: u64,
                rflags: &mut u64,
            ) -> (u64, u64) {
                match W::WIDTH {
                    Width::B1 => through_rax!(rflags, concat!($mnemonic, " {b:l}"), low, high, b),
                    Width::B2 => through_rax!(rflags, concat!($mnemonic, " {b:x}"), low, high, b),
                    Width::B4 => through_rax!(rflags, concat!($mnemonic, " {b:e}"), low, high, b),
                    Width::B8 => through_rax!(rflags, concat!($mnemonic, " {b:r}"), low, high, b),
                }
                (low, high)
            }
        }
    };
}

divide!(Div, "div");
divide!(Idiv, "idiv");

/// CMPXCHG on registers, all 64 bits of each going in and out: (accumulator, destination).
#[inline(always)]
pub(super) fn cmpxchg<W: Scalar>(
    mut accumulator: u64,
    mut destination: u64,
    source: u64,
    rflags: &mut u64,
) -> (u64, u64) {
    macro_rules! run {
        ($text:literal) => {{
            let image: u64;
            // SAFETY: register arithmetic only; no memory, no stack.
            unsafe {
                asm!(
                    "mov rax, {a}", $text, "mov {a}, rax", "lahf", "seto al",
                    a = inout(reg) accumulator,
                    d = inout(reg) destination,
                    s = in(reg) source,
                    out("rax") image,
                    options(pure, nomem, nostack)
                );
            }
            unpack(rflags, image as u16);
        }};
    }
    match W::WIDTH {
        Width::B1 => run!("cmpxchg {d:l}, {s:l}"),
        Width::B2 => run!("cmpxchg {d:x}, {s:x}"),
        Width::B4 => run!("cmpxchg {d:e}, {s:e}"),
        Width::B8 => run!("cmpxchg {d:r}, {s:r}"),
    }
    (accumulator, destination)
}

/// CRC32 (SSE 4.2), which touches no flags.
#[inline(always)]
pub(super) fn crc32<W: Scalar>(crc: u64, data: u64) -> u64 {
    let mut crc = crc;
    macro_rules! run {
        ($text:literal) => {
            // SAFETY: register arithmetic only; the host has it, or its #UD was raised when
            // the block was predecoded.
            unsafe {
                asm!($text, c = inout(reg) crc, d = in(reg) data,
                     options(pure, nomem, nostack, preserves_flags));
            }
        };
    }
    match W::WIDTH {
        Width::B1 => run!("crc32 {c:e}, {d:l}"),
        Width::B2 => run!("crc32 {c:e}, {d:x}"),
        Width::B4 => run!("crc32 {c:e}, {d:e}"),
        Width::B8 => run!("crc32 {c:r}, {d:r}"),
    }
    crc
}

/// RDRAND or RDSEED: the value (the width's), and flags as the CPU sets them.
pub(super) trait Random: 'static {
    fn apply<W: Scalar>(rflags: &mut u64) -> u64;
}

macro_rules! random {
    ($name:ident, $mnemonic:literal) => {
        pub(super) struct $name;

        impl Random for $name {
            #[inline(always)]
            fn apply<W: Scalar>(rflags: &mut u64) -> u64 {
                let value: u64;
                let image: u16;
                macro_rules! run {
                                    ($text:expr) => {
                                        // SAFETY: writes registers only. Not pure: each call differs.
                                        unsafe {
                                            asm!($text, "lahf", "seto al", v = out(reg) value,
                                                 out("ax") image, options(nomem, nostack));
                                        }
                                    };
                                }
                match W::WIDTH {
                    Width::B1 | Width::B2 => run!(concat!($mnemonic, " {v:x}")),
                    Width::B4 => run!(concat!($mnemonic, " {v:e}")),
                    Width::B8 => run!(concat!($mnemonic, " {v:r}")),
                }
                unpack(rflags, image);
                value
            }
        }
    };
}

random!(Rdrand, "rdrand");
random!(Rdseed, "rdseed");
