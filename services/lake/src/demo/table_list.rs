//! The list of tables as aligned lines of text. Pure: from rows and a width to lines.
//!
//! Names come from outside. They may be longer than the terminal is wide, hold wide or combining characters, and control characters, which
//! are not shown.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// One table of the list.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// Folder below the lake's root.
    pub path: String,
    /// Name that people gave the form; empty for cases and locations.
    pub name: String,
    /// Rows after the last commit.
    pub rows: i64,
    /// Data files after the last commit.
    pub files: i64,
    /// Delta version; `None` before the first commit.
    pub version: Option<i64>,
    /// Time since the last commit, for people.
    pub age: String,
}

/// Columns between the left edge and the list.
const INDENT: usize = 2;
/// Columns between two columns of the list.
const GAP: usize = 2;
/// Least width of the columns for the folder and for the name. On a terminal too narrow for it lines are longer than the terminal is wide.
const TEXT_WIDTH_MIN: usize = 12;
/// Width of the longest bar.
const BAR_WIDTH: usize = 12;
/// Stands for what was cut out of the middle of a text.
const ELLIPSIS: char = '…';

/// Lines for all tables: a heading, a line for each, and their sum. No line is wider than `width` where that is possible.
pub fn lines(tables: &[Line], count: usize, rows: i64, width: usize) -> Vec<String> {
    let most = tables.iter().map(|table| table.rows).max().unwrap_or(0);
    let heading = ["table", "form's name", "", "rows", "files", "version", "age"].map(str::to_owned);
    let body = tables.iter().map(|table| {
        let version = table.version.map_or_else(|| "-".to_owned(), |version| version.to_string());
        let numbers = [table.rows.to_string(), table.files.to_string(), version, table.age.clone()];
        let [rows, files, version, age] = numbers;
        [shown(&table.path), shown(&table.name), bar(table.rows, most), rows, files, version, age]
    });
    let sum = [format!("{count} tables"), String::new(), String::new(), rows.to_string()];
    let [table, name, bar, rows] = sum;
    let sum = [table, name, bar, rows, String::new(), String::new(), String::new()];
    let cells: Vec<[String; 7]> = std::iter::once(heading).chain(body).chain([sum]).collect();

    let natural: [usize; 7] =
        std::array::from_fn(|column| cells.iter().map(|line| line[column].width()).max().unwrap_or(0));
    let numbers: usize = natural[3..].iter().map(|width| width + GAP).sum();
    let room = width.saturating_sub(INDENT + GAP + BAR_WIDTH + GAP + numbers);
    let (path_width, name_width) = text_widths(natural[0], natural[1], room);
    cells
        .iter()
        .map(|[path, name, bar, numbers @ ..]| {
            let mut line = " ".repeat(INDENT);
            for (text, width) in [(path, path_width), (name, name_width), (bar, BAR_WIDTH)] {
                line.push_str(&padded(&cut(text, width), width));
                line.push_str(&" ".repeat(GAP));
            }
            let numbers = numbers.iter().zip(&natural[3..]).map(|(number, width)| format!("{number:>width$}"));
            line.push_str(&numbers.collect::<Vec<_>>().join(&" ".repeat(GAP)));
            line.trim_end().to_owned()
        })
        .collect()
}

/// Widths for the folder and the name that together fit into `room`. The name gets what the folder leaves, but at least a third.
fn text_widths(path: usize, name: usize, room: usize) -> (usize, usize) {
    if path + name <= room {
        return (path, name);
    }
    let name = name.min(room.saturating_sub(path).max(room / 3)).max(TEXT_WIDTH_MIN.min(name));
    (path.min(room.saturating_sub(name)).max(TEXT_WIDTH_MIN.min(path)), name)
}

/// The text without control characters, which could move the cursor or change colours.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// The text, with its middle replaced by `…` where it is wider than `width`. Its beginning and its end tell similar names apart.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let Some(room) = width.checked_sub(1) else { return String::new() };
    let head = within(text.chars(), room.div_ceil(2));
    let tail: String = within(text.chars().rev(), room - head.width()).chars().rev().collect();
    format!("{head}{ELLIPSIS}{tail}")
}

/// The first characters that are together at most so wide.
fn within(characters: impl Iterator<Item = char>, width: usize) -> String {
    let mut used = 0;
    characters
        .take_while(|c| {
            used += c.width().unwrap_or(0);
            used <= width
        })
        .collect()
}

fn padded(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(text.width())))
}

/// A bar of at most [`BAR_WIDTH`] blocks, so that the eye finds the large tables.
fn bar(rows: i64, most: i64) -> String {
    let eighths = if most > 0 { rows.max(0) * BAR_WIDTH as i64 * 8 / most } else { 0 };
    let (blocks, rest) = (eighths / 8, eighths % 8);
    let partial = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let partial = usize::try_from(rest).ok().and_then(|rest| partial.get(rest)).copied().unwrap_or_default();
    "█".repeat(usize::try_from(blocks).unwrap_or_default()) + partial
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn table(path: &str, name: &str, rows: i64) -> Line {
        Line { path: path.into(), name: name.into(), rows, files: 3, version: Some(12), age: "4 s".into() }
    }

    #[test]
    fn short_names_are_shown_whole_beside_the_rows() {
        let tables = [table("a/case-sql/person", "", 800), table("a/form-sql/8A6F", "Child visit", 400)];
        assert_eq!(
            lines(&tables, 2, 1_200, 100),
            [
                "  table              form's name                rows  files  version  age",
                "  a/case-sql/person               ████████████   800      3       12  4 s",
                "  a/form-sql/8A6F    Child visit  ██████         400      3       12  4 s",
                "  2 tables                                      1200",
            ]
        );
    }

    #[test]
    fn long_and_wide_names_are_cut_in_the_middle_and_leave_the_numbers_aligned() {
        let tables = [
            table(&format!("a/form-sql/{}end", "x".repeat(120)), "Visit", 1_000_000),
            table("a/form-sql/short", &format!("{}last", "訪問".repeat(40)), 5),
            table("a/form-sql/combining", &"e\u{301}".repeat(60), 1),
            table(&"é".repeat(300), &"n".repeat(300), 0),
        ];
        for width in [80, 100, 121, 200] {
            let lines = lines(&tables, 4, 1_000_006, width);
            assert!(lines.iter().all(|line| line.width() <= width), "{width}: {lines:#?}");
            // All lines end with the same numbers' widths, so they are aligned when they are equally wide.
            let body = &lines[1..5];
            assert!(body.iter().all(|line| line.width() == body[0].width()), "{width}: {lines:#?}");
            assert!(body[0].contains("…") && body[0].contains("xend "), "{width}: {}", body[0]);
            assert!(body[1].contains("訪…") || body[1].contains("問…"), "{width}: {}", body[1]);
            assert!(body[1].contains("last "), "{width}: {}", body[1]);
        }
    }

    #[test]
    fn a_terminal_too_narrow_for_the_numbers_still_shows_both_names() {
        let tables = [table(&"p".repeat(50), &"n".repeat(50), 1)];
        for width in [0, 20, 40] {
            let line = &lines(&tables, 1, 1, width)[1];
            assert!(line.contains("pppppp…ppppp  nnnnnn…nnnnn  █"), "{width}: {line}");
        }
    }

    #[test]
    fn control_characters_are_not_printed() {
        let line = &lines(&[table("a", "\u{1b}[31mred\nnext", 1)], 1, 1, 100)[1];
        assert!(line.contains("\u{fffd}[31mred\u{fffd}next"), "{line:?}");
    }

    #[test]
    fn a_text_is_cut_to_exactly_its_width_where_its_characters_allow() {
        assert_eq!(cut("abcdefgh", 5), "ab…gh");
        assert_eq!(cut("abcdefgh", 8), "abcdefgh");
        assert_eq!(cut("訪問訪問", 5), "訪…問");
        assert_eq!(cut("abc", 1), "…");
        assert_eq!(cut("abc", 0), "");
    }

    #[test]
    fn no_tables_have_a_heading_and_a_sum() {
        assert_eq!(lines(&[], 0, 0, 80).len(), 2);
    }
}
