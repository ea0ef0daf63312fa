//! Filters across execve(2): the plain form in which one Temper hands them to the next.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::program::INSTRUCTION_BYTES;
use super::{Filter, Invalid, Program, RawInstruction, Seccomp};

/// A thread's seccomp state as plain data.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, Debug)]
pub struct Carried {
    pub strict: bool,
    /// Oldest first; the bytes of the struct sock_filters in hexadecimal, which is short
    /// enough for arguments of a program.
    pub filters: Vec<String>,
}

impl Seccomp {
    pub fn carried(&self) -> Carried {
        let filters = match self {
            Seccomp::Off | Seccomp::Strict => Vec::new(),
            Seccomp::Filtered(filters) => filters.iter().map(|filter| hex(filter)).collect(),
        };
        Carried {
            strict: matches!(self, Seccomp::Strict),
            filters,
        }
    }

    /// # Errors
    /// It isn't what [`Seccomp::carried`] made.
    pub fn restored(carried: &Carried) -> Result<Seccomp, Invalid> {
        let filters = carried
            .filters
            .iter()
            .map(|text| Ok(Arc::new(Filter::new(program(text)?))))
            .collect::<Result<Vec<_>, Invalid>>()?;
        match (carried.strict, filters.is_empty()) {
            (false, true) => Ok(Seccomp::Off),
            (false, false) => Ok(Seccomp::Filtered(filters)),
            (true, true) => Ok(Seccomp::Strict),
            (true, false) => Err(Invalid),
        }
    }
}

/// Digits of one instruction.
const DIGITS: usize = 2 * INSTRUCTION_BYTES;

fn hex(filter: &Filter) -> String {
    let raw = filter.program.raw().iter();
    raw.map(|raw| format!("{:016x}", u64::from_be_bytes(raw.to_bytes())))
        .collect()
}

fn program(text: &str) -> Result<Program, Invalid> {
    let (instructions, rest) = text.as_bytes().as_chunks::<DIGITS>();
    if !rest.is_empty() {
        return Err(Invalid);
    }
    let raw = instructions.iter().map(|digits| {
        let digits = std::str::from_utf8(digits).map_err(|_| Invalid)?;
        let bits = u64::from_str_radix(digits, 16).map_err(|_| Invalid)?;
        Ok(RawInstruction::from_bytes(bits.to_be_bytes()))
    });
    Program::new(raw.collect::<Result<_, Invalid>>()?)
}
