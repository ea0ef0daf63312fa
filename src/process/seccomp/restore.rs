//! Filters across execve(2): the plain form in which one Temper hands them to the next.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Filter, Invalid, Program, RawInstruction, Seccomp};

/// A thread's seccomp state as plain data.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, Debug)]
pub struct Carried {
    pub strict: bool,
    /// Oldest first; an instruction is the bytes of a struct sock_filter.
    pub filters: Vec<Vec<[u8; 8]>>,
}

impl Seccomp {
    pub fn carried(&self) -> Carried {
        let filters = match self {
            Seccomp::Off | Seccomp::Strict => Vec::new(),
            Seccomp::Filtered(filters) => filters
                .iter()
                .map(|filter| {
                    filter
                        .program
                        .raw()
                        .iter()
                        .map(|raw| raw.to_bytes())
                        .collect()
                })
                .collect(),
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
            .map(|filter| {
                let raw = filter.iter().copied().map(RawInstruction::from_bytes);
                Ok(Arc::new(Filter::new(Program::new(raw.collect())?)))
            })
            .collect::<Result<Vec<_>, Invalid>>()?;
        match (carried.strict, filters.is_empty()) {
            (false, true) => Ok(Seccomp::Off),
            (false, false) => Ok(Seccomp::Filtered(filters)),
            (true, true) => Ok(Seccomp::Strict),
            (true, false) => Err(Invalid),
        }
    }
}
