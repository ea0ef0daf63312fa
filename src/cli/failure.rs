//! Failures of Temper's own, as one line for people and the exit status that shells use.

use std::fmt;

/// Temper itself failed.
pub const STATUS_OWN: u8 = 125;
/// The program was found and can't be executed.
pub const STATUS_NOT_EXECUTABLE: u8 = 126;
/// The program was not found.
pub const STATUS_NOT_FOUND: u8 = 127;
/// The command line or the environment makes no sense.
pub const STATUS_USAGE: u8 = 2;

/// Why a command can't go on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    pub status: u8,
    /// What is wrong and what to do next; one line, without the program's name.
    pub message: String,
}

impl Failure {
    pub fn own(message: impl Into<String>) -> Failure {
        Failure::new(STATUS_OWN, message)
    }

    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(STATUS_USAGE, message)
    }

    pub fn not_executable(message: impl Into<String>) -> Failure {
        Failure::new(STATUS_NOT_EXECUTABLE, message)
    }

    pub fn not_found(message: impl Into<String>) -> Failure {
        Failure::new(STATUS_NOT_FOUND, message)
    }

    fn new(status: u8, message: impl Into<String>) -> Failure {
        // Names of files may hold line breaks; the message stays one line all the same.
        let message = message.into().replace(['\n', '\r'], "?");
        Failure { status, message }
    }

    /// Prints the line and gives the status.
    pub fn report(&self) -> i32 {
        eprintln!("temper: {self}");
        i32::from(self.status)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
