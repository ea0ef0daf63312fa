//! gzip, bzip2, xz, zstd: there, and back again. Archives made by the fixture's own
//! programs natively would hide a fault that is the same both ways, so what they write is
//! compared with what they write natively.

use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::case::Case;
use crate::fixture;

/// What `program` makes of the fixture's text, natively; empty if it isn't there.
fn packed(program: &str, args: &[&str]) -> Vec<u8> {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(fixture::fresh_copy);
    Command::new(program)
        .args(args)
        .arg("text")
        .current_dir(folder.path())
        .stderr(Stdio::null())
        .output()
        .map(|output| output.stdout)
        .unwrap_or_default()
}

pub fn cases() -> Vec<Case> {
    let lines = [
        "gzip -n6 text",
        "gzip -n1 binary",
        "gzip -n9k text",
        "gzip -lv text",
        "bzip2 -9 text",
        "bzip2 -1k binary",
        "xz -T1 -6 text",
        "xz -T1 -0 -k --check=crc64 binary",
        "xz -T1 --format=lzma text",
        "zstd --single-thread --no-asyncio -q -3 text",
        "zstd --single-thread --no-asyncio -q -15 binary",
        "zstd --single-thread --no-asyncio -q -1 --check text -o other.zst",
    ];
    let mut cases: Vec<Case> = lines.iter().map(|line| Case::new(line)).collect();
    let back: [(&str, &str, &[&str]); 4] = [
        ("gzip -dc", "gzip", &["-c", "-n"]),
        ("bzip2 -dc", "bzip2", &["-c"]),
        ("xz -T1 -dc", "xz", &["-T1", "-c"]),
        (
            "zstd --single-thread --no-asyncio -dcq",
            "zstd",
            &["-c", "-q"],
        ),
    ];
    for (line, program, args) in back {
        cases.push(Case::new(line).stdin(packed(program, args)));
        // Damaged input ends in an error message and a status.
        let mut damaged = packed(program, args);
        let middle = damaged.len() / 2;
        if let Some(byte) = damaged.get_mut(middle) {
            *byte ^= 0x55;
        }
        cases.push(
            Case::new(line)
                .stdin(damaged)
                .named(&format!("{line} of damaged data")),
        );
    }
    cases
}
