//! /proc/self/status, where the kernel doesn't know what Temper keeps for the guest.

use super::host_maps;
use crate::process::seccomp::Seccomp;

/// The guest's version; `None` where the kernel's own is right.
pub fn status(seccomp: &Seccomp) -> Option<Vec<u8>> {
    if matches!(seccomp, Seccomp::Off) {
        return None;
    }
    let host = host_maps::read("/proc/self/status").ok()?;
    Some(with_seccomp(&host, seccomp.mode(), seccomp.filters()).into_bytes())
}

/// Filters of the host's own count too: the guest inherited them.
fn with_seccomp(host: &str, mode: u32, filters: usize) -> String {
    let mut text = String::with_capacity(host.len() + 8);
    for line in host.lines() {
        match line.split_once(":\t") {
            Some(("Seccomp", _)) => text.push_str(&format!("Seccomp:\t{mode}")),
            Some(("Seccomp_filters", own)) => {
                let all = own.parse::<usize>().unwrap_or(0) + filters;
                text.push_str(&format!("Seccomp_filters:\t{all}"));
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_lines_about_seccomp_change() {
        let host = "Name:\tx\nNoNewPrivs:\t1\nSeccomp:\t0\nSeccomp_filters:\t1\nMems:\t0\n";
        let guest = "Name:\tx\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t4\nMems:\t0\n";
        assert_eq!(with_seccomp(host, 2, 3), guest);
        assert_eq!(status(&Seccomp::Off), None);
    }
}
