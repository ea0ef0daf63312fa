//! Values of guest registers that haven't been computed yet, and how they combine.

use crate::region::{Sum, Value};

impl Value {
    pub(super) fn register(number: u8) -> Value {
        Value::Sum(Sum {
            base: Some(number),
            ..Sum::default()
        })
    }

    /// The host register that holds all 64 bits of it.
    pub(super) fn as_register(&self) -> Option<u8> {
        match self {
            Value::Sum(Sum {
                base: Some(base),
                index: None,
                displacement: 0,
                is_32: false,
            }) => Some(*base),
            _ => None,
        }
    }

    /// The host register whose low 32 bits are this value's.
    pub(super) fn as_register32(&self) -> Option<u8> {
        match self {
            Value::Sum(Sum {
                base: Some(base),
                index: None,
                displacement: 0,
                ..
            })
            | Value::SignExtended(base) => Some(*base),
            _ => None,
        }
    }

    pub(super) fn reads(&self, register: u8) -> bool {
        match self {
            Value::Sum(sum) => {
                sum.base == Some(register) || sum.index.is_some_and(|(index, _)| index == register)
            }
            Value::SignExtended(of) => *of == register,
        }
    }

    pub(super) fn replace(&mut self, from: u8, to: u8) {
        match self {
            Value::Sum(sum) => {
                if sum.base == Some(from) {
                    sum.base = Some(to);
                }
                if let Some((index, _)) = &mut sum.index
                    && *index == from
                {
                    *index = to;
                }
            }
            Value::SignExtended(of) if *of == from => *of = to,
            Value::SignExtended(_) => {}
        }
    }
}

impl Sum {
    pub(super) fn constant(displacement: i32, is_32: bool) -> Sum {
        Sum {
            displacement,
            is_32,
            ..Sum::default()
        }
    }

    /// Both in one address; `None` when that has no form.
    pub(super) fn plus(self, other: Sum) -> Option<Sum> {
        let displacement = self.displacement.checked_add(other.displacement)?;
        let mut parts: Vec<(u8, u8)> = Vec::with_capacity(4);
        for sum in [self, other] {
            let terms = sum.base.map(|base| (base, 1)).into_iter().chain(sum.index);
            for (register, times) in terms {
                match parts.iter_mut().find(|(known, _)| *known == register) {
                    Some((_, known)) => *known = known.checked_add(times)?,
                    None => parts.push((register, times)),
                }
            }
        }
        let (base, index) = match parts.as_slice() {
            [] => (None, None),
            [(base, 1)] => (Some(*base), None),
            [(register, times @ (3 | 5 | 9))] => (Some(*register), Some((*register, times - 1))),
            [(_, times)] if !matches!(times, 2 | 4 | 8) => return None,
            [one] => (None, Some(*one)),
            [(_, 1), (_, times)] | [(_, times), (_, 1)] if !matches!(times, 1 | 2 | 4 | 8) => {
                return None;
            }
            [(base, 1), other] | [other, (base, 1)] => (Some(*base), Some(*other)),
            _ => return None,
        };
        // RSP can't be an index.
        let (base, index) = match (base, index) {
            (Some(base), Some((4, 1))) => (Some(4), Some((base, 1))),
            (_, Some((4, _))) => return None,
            other => other,
        };
        Some(Sum {
            base,
            index,
            displacement,
            is_32: self.is_32,
        })
    }

    /// Times 2, 4 or 8; `None` when that has no form.
    pub(super) fn times(self, scale: u8) -> Option<Sum> {
        if scale == 1 {
            return Some(self);
        }
        let displacement = self.displacement.checked_mul(i32::from(scale))?;
        let index = match (self.base, self.index) {
            (None, None) => None,
            // RSP can't be an index.
            (Some(base), None) if base != 4 => Some((base, scale)),
            (None, Some((index, times))) if times.checked_mul(scale)? <= 8 => {
                Some((index, times * scale))
            }
            _ => return None,
        };
        Some(Sum {
            base: None,
            index,
            displacement,
            is_32: self.is_32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_stay_addresses() {
        let base = |n| Sum {
            base: Some(n),
            ..Sum::default()
        };
        let eight = base(1).times(8).unwrap();
        let sum = base(2).plus(eight).unwrap();
        assert_eq!((sum.base, sum.index), (Some(2), Some((1, 8))));
        assert!(sum.plus(base(3)).is_none());
        assert!(base(4).times(2).is_none(), "RSP is no index");
        assert_eq!(base(4).plus(base(3)).unwrap().base, Some(4));
        assert!(eight.times(2).is_none());
        assert_eq!(sum.times(1), Some(sum));
        let twice = base(1).plus(base(1)).unwrap();
        assert_eq!((twice.base, twice.index), (None, Some((1, 2))));
        let thrice = twice.plus(base(1)).unwrap();
        assert_eq!((thrice.base, thrice.index), (Some(1), Some((1, 2))));
        assert!(thrice.plus(base(1)).unwrap().plus(twice).is_none());
        let far = Sum::constant(i32::MAX, false);
        assert!(far.plus(Sum::constant(1, false)).is_none());
    }
}
