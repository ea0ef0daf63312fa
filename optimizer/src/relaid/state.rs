//! What the rewritten code knows at a point: where guest values are.

use crate::region::{FlagsOf, StatePoint, Value};

/// A temporary register, and what it holds that may be used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Temporary {
    pub register: u8,
    /// The sign extension of this register's low half.
    pub extended: Option<u8>,
}

/// Values that the guest's registers have but that weren't computed into them.
///
/// No pending value reads the register of a guest register that is pending itself, so they
/// can be computed in any order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct State {
    pub general: [Option<Value>; 16],
    pub vectors: [Option<u8>; 16],
    pub flags: Option<FlagsOf>,
    /// A bit for each slot that is in its register.
    pub loaded: u64,
    pub temporaries: Vec<Temporary>,
}

impl State {
    pub fn exact(loaded: u64, temporaries: &[u8]) -> State {
        State {
            general: [None; 16],
            vectors: [None; 16],
            flags: None,
            loaded,
            temporaries: temporaries
                .iter()
                .map(|&register| Temporary {
                    register,
                    extended: None,
                })
                .collect(),
        }
    }

    /// What a guest register holds, in terms of host registers.
    pub fn value(&self, register: u8) -> Value {
        self.general[usize::from(register)].unwrap_or(Value::register(register))
    }

    /// Whether what is pending needs a host register.
    pub fn reads(&self, register: u8) -> bool {
        let pending = self.general.iter().flatten();
        pending.into_iter().any(|value| value.reads(register)) || self.flags_read(register)
    }

    pub fn flags_read(&self, register: u8) -> bool {
        self.flags
            .is_some_and(|flags| flags.left.reads(register) || flags.right.reads(register))
    }

    /// The temporary that holds the sign extension of a register's low half.
    pub fn extension(&self, of: u8) -> Option<u8> {
        let holder = |temporary: &&Temporary| temporary.extended == Some(of);
        let found = self.temporaries.iter().find(holder);
        found.map(|temporary| temporary.register)
    }

    /// A host register has a new value.
    pub fn changed(&mut self, register: u8) {
        for temporary in &mut self.temporaries {
            if temporary.extended == Some(register) || temporary.register == register {
                temporary.extended = None;
            }
        }
    }

    /// The value of host register `from` is in `to` now, too.
    pub fn moved(&mut self, from: u8, to: u8) {
        for value in self.general.iter_mut().flatten() {
            value.replace(from, to);
        }
        if let Some(flags) = &mut self.flags {
            flags.left.replace(from, to);
            flags.right.replace(from, to);
        }
    }

    /// With the guest at `guest`; the host offset is filled in later.
    pub fn point(&self, guest: u64) -> StatePoint {
        let registers = self.general.iter().enumerate();
        let vectors = self.vectors.iter().enumerate();
        StatePoint {
            host: 0,
            guest,
            registers: registers
                .filter_map(|(number, value)| Some((number as u8, (*value)?)))
                .collect(),
            vectors: vectors
                .filter_map(|(number, from)| Some((number as u8, (*from)?)))
                .collect(),
            flags: self.flags,
            store: None,
            spilled: false,
        }
    }
}
