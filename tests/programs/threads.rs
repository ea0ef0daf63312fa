//! Debian's programs that use threads of their own accord. More of threads is in
//! `c/threads_*.c`.

use crate::case::Case;
use crate::fixture::Numbers;

pub fn cases() -> Vec<Case> {
    // sort starts a second thread from 128 K lines on.
    let mut numbers = Numbers(11);
    let lines: String = (0..150_000)
        .map(|_| format!("{}\n", numbers.below(1_000_000)))
        .collect();
    vec![
        Case::new("xz -T2 --block-size=64KiB -1 -k binary"),
        Case::new("xz -T2 --block-size=16KiB -0 -c text"),
        Case::new("zstd -T2 -q -3 text"),
        Case::new("zstd -T2 -q -1 -B32768 binary -o other.zst"),
        Case::new("sort -n --parallel=2 -S 8M").stdin(lines).heavy(),
        Case::new("python3 -I threads.py").heavy(),
        Case::new("python3 -I writers.py")
            .heavy()
            .named("sqlite3, several threads"),
    ]
}
