//! From a command to mapped images: opens the program, follows `#!` lines, reads ELF
//! headers, maps segments where guest code belongs. Hostile files give an error, never a
//! crash. Programs that would run with more rights than their caller's are refused: the
//! guest has Temper's.

mod error;
mod executable;
mod header;
mod load;
mod open;
mod privilege;
mod script;

pub use error::{ElfError, LoadError};
pub use executable::Executable;
pub use header::{Image, Kind, Segment, parse};
pub use load::{LoadedImage, load_image};
pub use open::{OpenProgram, Program, base_name, open_program};
pub use privilege::Privilege;
