//! Renders [`Stats`] as a table for people.

use comfy_table::{CellAlignment, Table, presets};

use crate::engine::stats::Stats;

/// The table that `--stats` prints.
pub fn render(stats: &Stats) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut section = |title: &str, rows: &[(&str, String)]| {
        for (index, (name, value)) in rows.iter().enumerate() {
            table.add_row([if index == 0 { title } else { "" }, name, value]);
        }
    };
    section("run", &[("time", seconds(stats.seconds))]);
    let interpreter = &stats.interpreter;
    section(
        "interpreter",
        &[
            ("blocks", count(interpreter.blocks)),
            ("entries", count(interpreter.entries)),
            ("instructions", count(interpreter.instructions)),
            (
                "  of those in stubs",
                count(interpreter.native_instructions),
            ),
            ("time", seconds(interpreter.seconds)),
        ],
    );
    let blocks = &stats.blocks;
    section(
        "blocks",
        &[
            ("translated", count(blocks.translated)),
            (
                "  of those from profile",
                count(blocks.translated_from_profile),
            ),
            ("guest instructions", count(blocks.guest_instructions)),
            ("guest code", bytes(blocks.guest_bytes)),
            ("generated code", bytes(blocks.code_bytes)),
            ("links", count(blocks.links)),
            ("entries", count(blocks.entries)),
            ("translation", seconds(blocks.translation_seconds)),
            ("time", seconds(blocks.seconds)),
        ],
    );
    let superblocks = &stats.superblocks;
    section(
        "superblocks",
        &[
            ("made", count(superblocks.formed)),
            ("kept", count(superblocks.kept)),
            ("rejected by their trials", count(superblocks.rejected)),
            ("heads without one", count(superblocks.refused)),
            ("guest instructions", count(superblocks.guest_instructions)),
            (
                "instructions made of them",
                count(superblocks.host_instructions),
            ),
            ("frame slots in registers", count(superblocks.renamed)),
            ("stores that are checked", count(superblocks.guards)),
            ("inlined calls", count(superblocks.inlined_calls)),
        ],
    );
    let cache = &stats.cache;
    section(
        "code cache",
        &[
            ("in use", bytes(cache.used_bytes)),
            ("peak", bytes(cache.peak_bytes)),
            ("bound", bytes(cache.capacity_bytes)),
            ("map of indirect branches", bytes(cache.indirect_map_bytes)),
            ("evictions", count(cache.evictions)),
            ("invalidated", count(cache.invalidated)),
        ],
    );
    let exits = &stats.exits;
    section(
        "exits",
        &[
            ("direct", count(exits.direct)),
            ("indirect", count(exits.indirect)),
            ("system call", count(exits.syscall)),
            ("interpret one", count(exits.interpret)),
            ("profile counter", count(exits.counter)),
            ("fault", count(exits.fault)),
            ("signal", count(exits.interrupted)),
            ("all", count(exits.total())),
        ],
    );
    let signals = &stats.signals;
    section(
        "signals",
        &[
            ("delivered", count(signals.delivered)),
            ("faults", count(signals.faults)),
            ("writes to protected code", count(signals.protection_faults)),
        ],
    );
    let syscalls = &stats.syscalls;
    section(
        "system calls",
        &[
            ("passed", count(syscalls.passed)),
            ("handled", count(syscalls.handled)),
            ("unknown", count(syscalls.unknown)),
        ],
    );
    let profile = &stats.profile;
    section(
        "profile",
        &[
            ("modules loaded", count(profile.modules_loaded)),
            ("records loaded", count(profile.records_loaded)),
            ("loading", seconds(profile.load_seconds)),
            ("modules saved", count(profile.modules_saved)),
            ("records saved", count(profile.records_saved)),
            ("saving", seconds(profile.save_seconds)),
        ],
    );
    let reuse = &stats.reuse;
    section(
        "reused code",
        &[
            ("fragments", count(reuse.pieces)),
            ("blocks", count(reuse.blocks)),
            ("generated code", bytes(reuse.code_bytes)),
            ("loading", seconds(reuse.load_seconds)),
            ("saved", bytes(reuse.bytes_saved)),
            ("saving", seconds(reuse.save_seconds)),
        ],
    );
    section("memory", &[("peak", bytes(stats.memory.peak_bytes))]);
    if let Some(column) = table.column_mut(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// Digits in groups of three.
fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

fn bytes(value: u64) -> String {
    const KIB: f64 = 1024.0;
    let value_kib = value as f64 / KIB;
    if value < 10 * 1024 {
        format!("{} B  ", count(value))
    } else if value_kib < 10.0 * KIB {
        format!("{value_kib:.1} KiB")
    } else {
        format!("{:.1} MiB", value_kib / KIB)
    }
}

fn seconds(value: f64) -> String {
    if value >= 10.0 {
        format!("{value:.2} s ")
    } else {
        format!("{:.3} ms", value * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(0), "0");
        assert_eq!(count(1_234_567), "1 234 567");
        assert_eq!(count(123), "123");
        assert_eq!(bytes(64 << 20).trim(), "64.0 MiB");
        assert_eq!(bytes(100).trim(), "100 B");
        assert_eq!(seconds(0.0015), "1.500 ms");
    }

    #[test]
    fn every_part_is_shown() {
        let mut stats = Stats::default();
        stats.interpreter.instructions = 1234;
        stats.exits.indirect = 40;
        stats.exits.direct = 2;
        let text = render(&stats);
        let row = |name: &str| {
            text.lines()
                .find(|line| line.contains(name))
                .unwrap_or_else(|| panic!("no row {name} in\n{text}"))
                .to_owned()
        };
        assert!(row(" instructions").ends_with("1 234"));
        assert!(row(" all").ends_with("42"));
        assert!(row("memory").contains("peak"));
    }
}
