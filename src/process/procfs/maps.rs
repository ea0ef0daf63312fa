//! /proc/self/maps and smaps as the guest should see them: the host's lines for the
//! guest's mappings only, with the guest's protections and names.

use std::fmt::Write;
use std::ops::Range;

use super::host_maps::{HostMapping, parse_line};
use crate::addr::GuestAddr;
use crate::process::address_space::{Attributes, Role, Vma, VmaMap};

/// The column at which the kernel prints names (fs/proc/task_mmu.c).
const NAME_COLUMN: usize = 73;

#[derive(Clone, PartialEq, Eq, Debug)]
struct Line<'a> {
    range: Range<GuestAddr>,
    attributes: Attributes,
    offset: u64,
    device: &'a str,
    inode: u64,
    name: &'a str,
    /// smaps: what follows the line, by name in kB, in the host's order.
    counts: Vec<(&'a str, u64)>,
    flags: &'a str,
}

/// maps, from the host's maps.
pub fn maps(guest: &VmaMap, host: &str) -> String {
    let mut text = String::new();
    for line in lines(guest, host) {
        write_line(&mut text, &line);
    }
    text.push_str(&vsyscall(host));
    text
}

/// smaps, from the host's smaps. The figures of host mappings that are one to the guest add
/// up; where the host joined what is two to the guest, each shows the host's figures.
pub fn smaps(guest: &VmaMap, host: &str) -> String {
    let mut text = String::new();
    for mut line in lines(guest, host) {
        write_line(&mut text, &line);
        let kib = (line.range.end.0 - line.range.start.0) / 1024;
        for (name, value) in &mut line.counts {
            if *name == "Size" {
                *value = kib;
            }
            // The kernel's columns: the name with its colon in 16, the value right-aligned.
            let _ = match *name {
                "ProtectionKey" => writeln!(text, "ProtectionKey:  {value:>8}"),
                "THPeligible" => writeln!(text, "THPeligible:    {value:>8}"),
                name => writeln!(text, "{:<16}{value:>8} kB", format!("{name}:")),
            };
        }
        let _ = writeln!(text, "VmFlags: {}", line.flags);
    }
    text
}

fn write_line(text: &mut String, line: &Line<'_>) {
    let start = text.len();
    let flag = |set, letter| if set { letter } else { '-' };
    let prot = line.attributes.prot;
    let _ = write!(
        text,
        "{:08x}-{:08x} {}{}{}{} {:08x} {} {} ",
        line.range.start.0,
        line.range.end.0,
        flag(prot.readable(), 'r'),
        flag(prot.writable(), 'w'),
        flag(prot.executable(), 'x'),
        if line.attributes.shared { 's' } else { 'p' },
        line.offset,
        line.device,
        line.inode,
    );
    if !line.name.is_empty() {
        while text.len() - start < NAME_COLUMN {
            text.push(' ');
        }
        text.push_str(line.name);
    }
    text.push('\n');
}

/// The guest's mappings with what the host knows of them.
fn lines<'a>(guest: &VmaMap, host: &'a str) -> Vec<Line<'a>> {
    let mut out: Vec<Line<'a>> = Vec::new();
    let mut pieces: Vec<Line<'a>> = Vec::new();
    for text in host.lines() {
        if let Some(mapping) = parse_line(text) {
            flush(&mut out, &mut pieces);
            pieces = guest
                .within(mapping.range.clone())
                .into_iter()
                .map(|vma| piece(vma, &mapping))
                .collect();
        } else if let Some((name, value)) = text.split_once(':') {
            if name == "VmFlags" {
                pieces.iter_mut().for_each(|p| p.flags = value.trim());
            } else if let Some(value) = value
                .split_whitespace()
                .next()
                .and_then(|number| number.parse().ok())
            {
                pieces.iter_mut().for_each(|p| p.counts.push((name, value)));
            }
        }
    }
    flush(&mut out, &mut pieces);
    out
}

fn piece<'a>(vma: Vma, host: &HostMapping<'a>) -> Line<'a> {
    let delta = vma.range.start.0 - host.range.start.0;
    let name = match vma.attributes.role {
        Role::Plain if matches!(host.name, "[heap]" | "[stack]" | "[vdso]") => "",
        Role::Plain => host.name,
        Role::Heap => "[heap]",
        Role::Stack => "[stack]",
        Role::Vdso => "[vdso]",
    };
    Line {
        range: vma.range,
        offset: if host.inode == 0 {
            host.offset
        } else {
            host.offset + delta
        },
        attributes: vma.attributes,
        device: host.device,
        inode: host.inode,
        name,
        counts: Vec::new(),
        flags: "",
    }
}

/// Appends, joining what Temper's protection of pages split on the host.
fn flush<'a>(out: &mut Vec<Line<'a>>, pieces: &mut Vec<Line<'a>>) {
    for piece in pieces.drain(..) {
        match out.last_mut() {
            Some(last) if continues(last, &piece) => {
                last.range.end = piece.range.end;
                for ((_, sum), (name, value)) in last.counts.iter_mut().zip(piece.counts) {
                    if !matches!(
                        name,
                        "KernelPageSize" | "MMUPageSize" | "THPeligible" | "ProtectionKey"
                    ) {
                        *sum += value;
                    }
                }
            }
            _ => out.push(piece),
        }
    }
}

fn continues(last: &Line<'_>, next: &Line<'_>) -> bool {
    let (a, b) = (&last.attributes, &next.attributes);
    let length = last.range.end.0 - last.range.start.0;
    last.range.end == next.range.start
        && (a.prot, a.shared, a.role) == (b.prot, b.shared, b.role)
        && (last.device, last.inode, last.name) == (next.device, next.inode, next.name)
        && (last.inode == 0 || last.offset + length == next.offset)
}

/// The host's line for the vsyscall page, which belongs to every process.
fn vsyscall(host: &str) -> String {
    host.lines()
        .find(|line| line.ends_with("[vsyscall]"))
        .map(|line| format!("{line}\n"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::address_space::{Backing, FileKey, Prot};

    fn guest() -> VmaMap {
        let mut map = VmaMap::default();
        let file = |prot, offset| Attributes {
            backing: Some(Backing {
                key: FileKey { dev: 1, inode: 77 },
                offset,
                path: None,
            }),
            ..Attributes::anonymous(prot)
        };
        let at = |a: u64, b: u64| GuestAddr(a)..GuestAddr(b);
        map.insert(at(0x10000, 0x11000), file(Prot::READ, 0));
        map.insert(at(0x11000, 0x14000), file(Prot::READ_EXEC, 0x1000));
        let mut heap = Attributes::anonymous(Prot::READ_WRITE);
        heap.role = Role::Heap;
        map.insert(at(0x20000, 0x23000), heap);
        map
    }

    const HOST: &str = "\
00010000-00012000 r--p 00000000 08:01 77                         /bin/x
00012000-00014000 r--p 00002000 08:01 77                         /bin/x
00020000-00021000 rw-p 00000000 00:00 0 
00021000-00022000 r--p 00000000 00:00 0 
00022000-00024000 rw-p 00000000 00:00 0 
55550000-55560000 r-xp 00000000 08:01 99                         /usr/bin/temper
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn the_guest_sees_its_own_mappings_with_its_own_protections() {
        let expected = "\
00010000-00011000 r--p 00000000 08:01 77                                 /bin/x
00011000-00014000 r-xp 00001000 08:01 77                                 /bin/x
00020000-00023000 rw-p 00000000 00:00 0                                  [heap]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";
        assert_eq!(maps(&guest(), HOST), expected);
    }

    #[test]
    fn figures_of_split_mappings_add_up() {
        let host = "\
00020000-00021000 rw-p 00000000 00:00 0 
Size:                  4 kB
Rss:                   4 kB
VmFlags: rd wr
00021000-00023000 r--p 00000000 00:00 0 
Size:                  8 kB
Rss:                   8 kB
VmFlags: rd
";
        let expected = "\
00020000-00023000 rw-p 00000000 00:00 0                                  [heap]
Size:                 12 kB
Rss:                  12 kB
VmFlags: rd wr
";
        assert_eq!(smaps(&guest(), host), expected);
    }

    #[test]
    fn a_line_of_our_own_has_the_kernels_form() {
        let host = super::super::host_maps::read("/proc/self/maps").expect("maps");
        let line = host
            .lines()
            .find(|line| line.ends_with("[stack]"))
            .expect("a stack");
        let mapping = parse_line(line).expect("a mapping");
        let mut map = VmaMap::default();
        let mut attributes = Attributes::anonymous(Prot::READ_WRITE);
        attributes.role = Role::Stack;
        map.insert(mapping.range, attributes);
        assert_eq!(maps(&map, line), format!("{line}\n"));
    }
}
