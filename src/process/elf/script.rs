//! `#!` lines, read as the kernel reads them (fs/binfmt_script.c).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// Bytes of a file that the kernel looks at (BINPRM_BUF_SIZE).
pub const LINE_BYTES: usize = 256;

/// What a script asks to be run by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shebang {
    pub interpreter: OsString,
    /// All that follows the interpreter, as one argument.
    pub argument: Option<OsString>,
}

/// True if the file's first bytes make it a script.
pub fn is_script(start: &[u8]) -> bool {
    start.starts_with(b"#!")
}

/// Reads the line; `None` if it names no interpreter, or one whose name the kernel's
/// buffer cuts off.
pub fn parse(start: &[u8]) -> Option<Shebang> {
    // The kernel's buffer is zero-filled, and its last byte is never part of the line.
    let mut buffer = [0u8; LINE_BYTES];
    let len = start.len().min(LINE_BYTES);
    buffer[..len].copy_from_slice(&start[..len]);
    let body = buffer.get(2..)?;
    let mut line = match body
        .iter()
        .take_while(|b| **b != 0)
        .position(|b| *b == b'\n')
    {
        Some(end) => &body[..end],
        None => {
            let body = &body[..body.len() - 1];
            let name = body.iter().position(|b| !is_blank(*b))?;
            // Without a blank or NUL after it, the name may be cut off.
            body[name..].iter().position(|b| is_blank(*b) || *b == 0)?;
            body
        }
    };
    while let [rest @ .., last] = line
        && is_blank(*last)
    {
        line = rest;
    }
    let name = line.iter().position(|b| !is_blank(*b))?;
    let line = &line[name..];
    let name_end = line
        .iter()
        .position(|b| is_blank(*b) || *b == 0)
        .unwrap_or(line.len());
    if name_end == 0 {
        return None;
    }
    let argument = match line.get(name_end) {
        Some(b) if is_blank(*b) => {
            let rest = &line[name_end..];
            let start = rest
                .iter()
                .position(|b| !is_blank(*b))
                .unwrap_or(rest.len());
            let rest = &rest[start..];
            let end = rest.iter().position(|b| *b == 0).unwrap_or(rest.len());
            Some(&rest[..end]).filter(|rest| !rest.is_empty())
        }
        _ => None,
    };
    Some(Shebang {
        interpreter: OsString::from_vec(line[..name_end].to_vec()),
        argument: argument.map(|bytes| OsString::from_vec(bytes.to_vec())),
    })
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shebang(interpreter: &str, argument: Option<&str>) -> Option<Shebang> {
        Some(Shebang {
            interpreter: interpreter.into(),
            argument: argument.map(Into::into),
        })
    }

    #[test]
    fn the_rest_of_the_line_is_one_argument() {
        assert_eq!(parse(b"#!/bin/sh\nx"), shebang("/bin/sh", None));
        assert_eq!(
            parse(b"#! \t/usr/bin/env  python3 -u \t\nx"),
            shebang("/usr/bin/env", Some("python3 -u"))
        );
        assert_eq!(parse(b"#!/bin/sh -e"), shebang("/bin/sh", Some("-e")));
        assert_eq!(parse(b"#!/bin/sh"), shebang("/bin/sh", None));
    }

    #[test]
    fn a_line_without_a_name_or_with_one_cut_off_is_refused() {
        assert_eq!(parse(b"#!\n"), None);
        assert_eq!(parse(b"#!   \t\n"), None);
        let mut long = b"#!/".to_vec();
        long.resize(400, b'x');
        assert_eq!(parse(&long), None);
        let mut cut_argument = b"#!/bin/sh ".to_vec();
        cut_argument.resize(400, b'x');
        let parsed = parse(&cut_argument).expect("the argument is cut, not refused");
        assert_eq!(parsed.interpreter, "/bin/sh");
        assert_eq!(parsed.argument.map(|a| a.len()), Some(255 - 10));
    }
}
