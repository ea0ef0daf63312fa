//! From a command to mapped images: finds the program, follows `#!` lines, reads ELF
//! headers, maps segments where guest code belongs. Hostile files give an error, never a
//! crash. Set-user-id bits are without effect: the guest runs with Temper's own rights.

mod error;
mod header;
mod load;
mod open;
mod script;
mod search;

pub use error::{ElfError, LoadError};
pub use header::{Image, Kind, Segment, parse};
pub use load::{LoadedImage, load_image};
pub use open::{OpenProgram, Program, base_name, open_program};
pub use search::{check, find_program};
