//! Whole programs against their native run: same standard output, standard error, exit
//! status or signal, and same files left behind, in every mode of Temper's.
//!
//! One test a program and mode: `cargo test --test programs -- gzip`, or
//! `-- small-cache`; `--list` shows all. A program that can't be had says
//! `skipped: why`.

mod case;
mod children;
mod compilers;
mod compression;
mod files;
mod fixture;
mod languages;
mod modes;
#[path = "../support/servers.rs"]
mod place;
mod privileges;
mod pythons;
mod saves;
mod servers;
mod signals;
mod sources;
mod special;
mod stressors;
#[path = "../support/mod.rs"]
mod support;
mod text;
mod threads;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    // Shells start background jobs with these ignored, and every program here would be too.
    // SAFETY: no other thread runs yet.
    unsafe {
        libc::signal(libc::SIGINT, libc::SIG_DFL);
        libc::signal(libc::SIGQUIT, libc::SIG_DFL);
    }
    let arguments = Arguments::from_args();
    let cases = [
        files::cases(),
        text::cases(),
        compression::cases(),
        languages::cases(),
        compilers::cases(),
        sources::cases(),
        children::cases(),
        signals::cases(),
        threads::cases(),
    ];
    let mut trials = special::trials();
    trials.extend(privileges::trials());
    trials.extend(saves::trials());
    trials.extend(servers::trials());
    trials.extend(stressors::trials());
    trials.extend(pythons::trials());
    for case in cases.into_iter().flatten().map(Arc::new) {
        for &mode in modes::ALL {
            if mode.affords(&case) {
                let case = Arc::clone(&case);
                trials.push(Trial::test(
                    format!("{} [{}]", case.name, mode.name()),
                    move || modes::check(&case, mode),
                ));
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
