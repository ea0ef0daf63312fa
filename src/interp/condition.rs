//! The sixteen conditions of Jcc, SETcc and CMOVcc (Intel SDM volume 1, appendix B),
//! numbered as encoded.

use crate::guest::flags::{CF, OF, PF, SF, ZF};

/// Whether condition `CC` (0 to 15) holds.
#[inline(always)]
pub(super) fn holds<const CC: u8>(rflags: u64) -> bool {
    let less = || (rflags & SF != 0) != (rflags & OF != 0);
    let base = match CC >> 1 {
        0 => rflags & OF != 0,
        1 => rflags & CF != 0,
        2 => rflags & ZF != 0,
        3 => rflags & (CF | ZF) != 0,
        4 => rflags & SF != 0,
        5 => rflags & PF != 0,
        6 => less(),
        _ => rflags & ZF != 0 || less(),
    };
    base != (CC & 1 == 1)
}

/// Names the handler for a condition known only when a block is predecoded.
macro_rules! by_condition {
    ($condition:expr, $cc:ident => $handler:expr) => {
        by_condition!(@arms $condition, $cc, $handler,
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    };
    (@arms $condition:expr, $cc:ident, $handler:expr, $($number:literal)*) => {
        match $condition {
            $($number => {
                const $cc: u8 = $number;
                $handler as $crate::interp::op::Handler<M>
            })*
            _ => {
                const $cc: u8 = 15;
                $handler as $crate::interp::op::Handler<M>
            }
        }
    };
}
pub(super) use by_condition;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_or_equal_is_zero_or_sign_differing_from_overflow() {
        assert!(holds::<14>(ZF));
        assert!(holds::<14>(SF));
        assert!(!holds::<14>(SF | OF));
        assert!(holds::<15>(SF | OF));
        assert!(holds::<12>(OF));
        assert!(!holds::<2>(ZF));
        assert!(holds::<7>(PF));
    }
}
