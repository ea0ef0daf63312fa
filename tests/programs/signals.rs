//! What languages make of signals, and CPython's own tests of them. The C programs of
//! `tests/programs/c` hold the kernel's rules one by one.

use crate::case::Case;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("perl signals.pl").heavy(),
        Case::new("python3 -I signals.py").heavy(),
        Case::new("python3 -I signal_tests.py").heavy(),
    ]
}
