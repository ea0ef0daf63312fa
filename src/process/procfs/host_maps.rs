//! The host's own view of the address space, /proc/self/maps, line by line.

use std::fs::File;
use std::io::Read;
use std::ops::Range;

use crate::addr::GuestAddr;

/// One mapping as the host reports it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostMapping<'a> {
    pub range: Range<GuestAddr>,
    pub offset: u64,
    /// "08:01", as printed.
    pub device: &'a str,
    pub inode: u64,
    pub name: &'a str,
}

/// Reads one line; `None` if it isn't of that form.
pub fn parse_line(line: &str) -> Option<HostMapping<'_>> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let (_perms, rest) = rest.split_once(' ')?;
    let (offset, rest) = rest.split_once(' ')?;
    let (device, rest) = rest.split_once(' ')?;
    let (inode, name) = rest.split_once(' ').unwrap_or((rest, ""));
    let hex = |text| u64::from_str_radix(text, 16).ok();
    Some(HostMapping {
        range: GuestAddr(hex(start)?)..GuestAddr(hex(end)?),
        offset: hex(offset)?,
        device,
        inode: inode.parse().ok()?,
        name: name.trim_start_matches(' '),
    })
}

/// A file of /proc, whole, with few reads. Bytes that aren't UTF-8 are replaced.
///
/// # Errors
/// The host's.
pub fn read(file: &str) -> std::io::Result<String> {
    // Such files have no size to go by: without room, the first reads would be tiny.
    let mut bytes = Vec::with_capacity(16 << 10);
    File::open(file)?.read_to_end(&mut bytes)?;
    Ok(match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_and_without_names_are_read() {
        let line =
            "7f5e3c000000-7f5e3c021000 rw-p 00001000 fe:01 1234                /a b (deleted)";
        let mapping = parse_line(line).expect("a mapping");
        assert_eq!(mapping.range.start, GuestAddr(0x7f5e_3c00_0000));
        assert_eq!((mapping.offset, mapping.inode), (0x1000, 1234));
        assert_eq!((mapping.device, mapping.name), ("fe:01", "/a b (deleted)"));
        let bare = parse_line("1000-2000 ---p 00000000 00:00 0 ").expect("a mapping");
        assert_eq!(bare.name, "");
        assert_eq!(parse_line("Size:                  4 kB"), None);
    }

    #[test]
    fn this_process_has_a_stack() {
        let maps = read("/proc/self/maps").expect("maps");
        assert!(maps.lines().all(|line| parse_line(line).is_some()));
        let named = |name| maps.lines().filter_map(parse_line).any(|m| m.name == name);
        assert!(named("[stack]"));
    }
}
