//! Tables that fit the terminal, and numbers and names as people read them.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Row, Table, presets};

/// Names are cut beyond this, so that one C++ template doesn't fill the screen.
const MAX_NAME: usize = 60;

/// How a column is laid out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// A table of text under a line of titles.
pub(super) struct TextTable {
    table: Table,
    columns: Vec<Align>,
}

impl TextTable {
    pub fn new(columns: &[(&str, Align)]) -> TextTable {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic);
        let columns_alone = columns.iter().map(|(_, align)| *align).collect();
        let mut text_table = TextTable {
            table,
            columns: columns_alone,
        };
        let titles = columns.iter().map(|(title, _)| title.to_uppercase());
        let header = text_table.cells(titles);
        text_table.table.set_header(header);
        text_table
    }

    fn cells(&self, texts: impl Iterator<Item = String>) -> Vec<Cell> {
        texts
            .zip(&self.columns)
            .map(|(text, align)| {
                Cell::new(text).set_alignment(match align {
                    Align::Left => CellAlignment::Left,
                    Align::Right => CellAlignment::Right,
                })
            })
            .collect()
    }

    pub fn row(&mut self, texts: impl IntoIterator<Item = String>) {
        let mut row = Row::from(self.cells(texts.into_iter()));
        row.max_height(1);
        self.table.add_row(row);
    }

    /// The table's lines, each with its end of line.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for line in self.table.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A number in at most five characters: `950`, `12.3k`, `4.6M`.
pub(super) fn short(number: u64) -> String {
    const UNITS: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    if number < 1000 {
        return number.to_string();
    }
    let mut scaled = number as f64;
    let mut unit = 0;
    // 999.95 would be shown as 1000.0.
    while scaled >= 999.95 && unit + 1 < UNITS.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    format!("{scaled:.1}{}", UNITS[unit])
}

/// A part of a whole, in percent.
pub(super) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".into();
    }
    format!("{:.1}%", part as f64 * 100.0 / whole as f64)
}

/// How long ago something was, in the largest unit that fits.
pub(super) fn ago(seconds: u64) -> String {
    let (number, unit) = match seconds {
        0..60 => return "just now".into(),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        86_400..63_072_000 => (seconds / 86_400, "day"),
        _ => (seconds / 31_536_000, "year"),
    };
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {unit}{plural} ago")
}

/// Text without control characters, which could redraw a terminal.
pub(super) fn clean(text: &str) -> String {
    text.replace(char::is_control, "?")
}

/// A name, cleaned and short enough for a table.
pub(super) fn name(text: &str) -> String {
    let length = text.chars().count();
    if length <= MAX_NAME {
        return clean(text);
    }
    // Both ends tell names apart: namespaces at the front, offsets at the back.
    let head: String = text.chars().take(MAX_NAME - 21).collect();
    let tail: String = text.chars().skip(length - 20).collect();
    clean(&format!("{head}…{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_short() {
        let shown: Vec<_> = [0, 999, 1000, 999_949, 999_951, 12_345_678, u64::MAX]
            .map(short)
            .to_vec();
        assert_eq!(
            shown,
            ["0", "999", "1.0k", "999.9k", "1.0M", "12.3M", "18.4E"]
        );
        assert_eq!((percent(1, 3), percent(0, 0)), ("33.3%".into(), "-".into()));
    }

    #[test]
    fn times_are_told_in_their_largest_unit() {
        let shown: Vec<_> = [5, 60, 7200, 86_400 * 3, 86_400 * 800].map(ago).to_vec();
        assert_eq!(
            shown,
            [
                "just now",
                "1 minute ago",
                "2 hours ago",
                "3 days ago",
                "2 years ago"
            ]
        );
    }

    #[test]
    fn long_and_hostile_names_are_tamed() {
        assert_eq!(name("main"), "main");
        assert_eq!(name("a\x1b[2Jb\n"), "a?[2Jb?");
        let long = name(&format!("{}+0x10", "x".repeat(200)));
        assert_eq!(long.chars().count(), MAX_NAME);
        assert!(long.ends_with("+0x10"));
    }

    #[test]
    fn a_table_has_a_line_for_each_row() {
        let mut table = TextTable::new(&[("Name", Align::Left), ("Count", Align::Right)]);
        table.row(["a".into(), "7".into()]);
        table.row(["b".into(), "12345".into()]);
        let text = table.text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].trim_start().starts_with("NAME"));
        assert!(lines[1].ends_with("    7"));
    }
}
