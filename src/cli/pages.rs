//! `temper completions` and `temper man`, made from the same definition as the parser.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use clap::Command;

use super::failure::Failure;

/// Prints the completion script for `shell`.
pub fn completions(command: &mut Command, shell: clap_complete::Shell) -> Result<i32, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, command, "temper", &mut script);
    print_all(&script)
}

/// Prints temper(1), or writes it and a page for each command into `dir`.
pub fn manual(command: Command, dir: Option<&Path>) -> Result<i32, Failure> {
    let Some(dir) = dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command)
            .render(&mut page)
            .map_err(|error| Failure::own(format!("the manual page can't be made ({error})")))?;
        return print_all(&page);
    };
    fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(command, dir))
        .map_err(|error| {
            Failure::own(format!(
                "{}: manual pages can't be written there ({error}); give another folder",
                dir.display()
            ))
        })?;
    Ok(0)
}

fn print_all(bytes: &[u8]) -> Result<i32, Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|error| Failure::own(format!("standard output can't be written ({error})")))?;
    Ok(0)
}
