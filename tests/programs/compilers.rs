//! The compiler's own programs, run directly (the `gcc` command itself needs children), and
//! programs that the tests build: C++ and Rust.

use std::path::Path;

use crate::case::{Case, Find};
use crate::fixture;

fn part(name: &'static str) -> Find {
    Box::new(move || fixture::compiler_part(name))
}

fn guest(compiler: &'static str, flags: &'static [&'static str], file: &'static str) -> Find {
    Box::new(move || {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/programs/guests")
            .join(file);
        fixture::built(compiler, flags, &source)
    })
}

pub fn cases() -> Vec<Case> {
    let cc1 = |name: &str, args: &[&str]| Case::of(name, part("cc1"), args).heavy();
    let made = |name: &str, find: Find| Case::of(name, find, &["7"]);
    vec![
        cc1("cc1 -O2", &["-quiet", "-O2", "unit.c", "-o", "made.s"]),
        cc1("cc1 -O0", &["-quiet", "-O0", "unit.c", "-o", "made.s"]),
        cc1(
            "cc1 of a wrong program",
            &["-quiet", "text", "-o", "made.s"],
        ),
        Case::of("as", part("as"), &["unit.s", "-o", "made.o"]),
        Case::of(
            "as of a wrong program",
            part("as"),
            &["short", "-o", "made.o"],
        ),
        Case::of("ld without input", part("ld"), &["nothing.o", "-o", "made"]),
        Case::of(
            "ld -r",
            part("ld"),
            &["-r", "-b", "binary", "binary", "text", "-o", "made.o"],
        ),
        Case::of("objdump", part("objdump"), &["-d", "/usr/bin/true"]).heavy(),
        Case::of("readelf", part("readelf"), &["-aW", "/usr/bin/true"]),
        made("a C++ program", guest("g++", &["-O2"], "shapes.cpp")),
        made("a C++ program, -O0", guest("g++", &["-O0"], "shapes.cpp")),
        made(
            "a C++ program, static",
            guest("g++", &["-O2", "-static"], "shapes.cpp"),
        ),
        made(
            "a C++ program, no-pie",
            guest("g++", &["-O2", "-no-pie"], "shapes.cpp"),
        ),
        made("a Rust program", guest("rustc", &["-O"], "words.rs")),
        made(
            "a Rust program, static",
            guest("rustc", &["-O", "-Ctarget-feature=+crt-static"], "words.rs"),
        ),
        Case::of(
            "a Rust program of threads",
            guest("rustc", &["-O", "--edition=2024"], "workers.rs"),
            &[],
        )
        .heavy(),
        Case::of(
            "a Rust program that panics",
            guest("rustc", &["-O"], "words.rs"),
            &["panic"],
        ),
    ]
}
