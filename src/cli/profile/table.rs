//! Tables that fit the terminal, and numbers and names as people read them.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};

/// Names are cut beyond this, so that one C++ template doesn't fill the screen.
const MAX_NAME: usize = 60;
/// And not below this, however narrow the screen.
const LEAST_NAME: usize = 8;

/// How a column is laid out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// A table of text under a line of titles.
pub(super) struct TextTable {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl TextTable {
    pub fn new(columns: &[(&str, Align)]) -> TextTable {
        let columns = columns.iter();
        TextTable {
            columns: columns
                .map(|(title, align)| (title.to_uppercase(), *align))
                .collect(),
            rows: Vec::new(),
        }
    }

    pub fn row(&mut self, texts: impl IntoIterator<Item = String>) {
        self.rows.push(texts.into_iter().collect());
    }

    /// The table's lines, each with its end of line, as wide as the terminal at most.
    pub fn text(&self) -> String {
        self.fit(Table::new().width().map(usize::from))
    }

    /// What is too wide is cut in the columns of names; numbers stay whole.
    fn fit(&self, width: Option<usize>) -> String {
        let length = |text: &String| text.chars().count();
        let mut widths: Vec<usize> = (self.columns.iter().enumerate())
            .map(|(column, (title, _))| {
                let cells = self.rows.iter().map(|row| length(&row[column]));
                cells.chain([length(title)]).max().unwrap_or(0)
            })
            .collect();
        let flexible = |column: usize| self.columns[column].1 == Align::Left;
        // Each column has a space on both sides.
        while width.is_some_and(|width| widths.iter().map(|w| w + 2).sum::<usize>() > width) {
            let widest = (0..widths.len())
                .filter(|&column| flexible(column) && widths[column] > LEAST_NAME)
                .max_by_key(|&column| widths[column]);
            match widest {
                Some(column) => widths[column] -= 1,
                None => break,
            }
        }
        let cells = |texts: Vec<String>| -> Vec<Cell> {
            let columns = texts.into_iter().zip(&self.columns).zip(&widths);
            columns
                .map(|((text, (_, align)), width)| {
                    Cell::new(cut(&text, *width)).set_alignment(match align {
                        Align::Left => CellAlignment::Left,
                        Align::Right => CellAlignment::Right,
                    })
                })
                .collect()
        };
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(cells(self.columns.iter().map(|c| c.0.clone()).collect()));
        for row in &self.rows {
            table.add_row(cells(row.clone()));
        }
        let mut text = String::new();
        for line in table.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `text` with its middle left out where it is too long: both ends tell names apart,
/// namespaces at the front, offsets at the back.
fn cut(text: &str, limit: usize) -> String {
    let length = text.chars().count();
    if length <= limit {
        return text.into();
    }
    let tail = limit / 3;
    let mut cut: String = text.chars().take(limit.saturating_sub(tail + 1)).collect();
    cut.push('…');
    cut.extend(text.chars().skip(length - tail));
    cut
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
    cut(&clean(text), MAX_NAME)
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

    #[test]
    fn a_table_fits_and_cuts_names_alone() {
        let mut table = TextTable::new(&[
            ("Executions", Align::Right),
            ("From", Align::Left),
            ("To", Align::Left),
        ]);
        let long = format!("{}+0x10", "x".repeat(50));
        table.row(["1".into(), long.clone(), "short".into()]);
        table.row(["123".into(), long.clone(), long.clone()]);
        assert!(table.fit(None).contains(&long));
        for width in [60, 80, 100] {
            let text = table.fit(Some(width));
            let widest = text.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(width), "{width}: {text}");
            assert!(
                text.contains("EXECUTIONS") && text.contains("+0x10"),
                "{text}"
            );
        }
        // No name is cut away entirely.
        assert!(table.fit(Some(10)).contains("short"));
    }
}
