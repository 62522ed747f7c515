//! The only place that writes to the terminal: text for people, JSON for programs, complaints on standard
//! error. A reader that goes away (`| head`) is not an error.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};

use serde_json::Value;

/// How results look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Standard output with a format.
#[derive(Debug)]
pub(crate) struct Output {
    format: Format,
}

impl Output {
    pub(crate) const fn new(format: Format) -> Self {
        Self { format }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether a person looks at a screen that can be drawn again.
    pub(crate) fn is_terminal(&self) -> bool {
        std::io::stdout().is_terminal()
    }

    /// Writes text as it is.
    pub(crate) fn text(&mut self, text: &str) {
        let mut out = std::io::stdout().lock();
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            // Nobody reads any more, and there is nobody to tell.
        }
    }

    /// Writes a value as indented JSON.
    pub(crate) fn json(&mut self, value: &Value) {
        self.text(&format!("{value:#}\n"));
    }
}

/// Writes one sentence to standard error.
pub(crate) fn complain(error: &dyn std::fmt::Display) {
    if writeln!(std::io::stderr().lock(), "meshctl: {error}").is_err() {
        // Nobody reads any more, and there is nobody to tell.
    }
}

/// Rows of text under headings, each column as wide as its longest cell.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|h| (*h).to_owned()).collect()] }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows
            .push(cells.into_iter().map(|cell| if cell.is_empty() { "-".into() } else { cell }).collect());
    }

    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                // Writing to a String cannot fail.
                write!(line, "{cell:<width$}   ").unwrap_or_default();
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A field as one cell: texts as they are, absent as nothing, lists separated by commas.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["NAME", "X"]);
        table.row(vec!["reviews-v1".into(), "1".into()]);
        table.row(vec!["a".into(), String::new()]);
        assert_eq!(table.render(), "NAME         X\nreviews-v1   1\na            -\n");
    }

    #[test]
    fn cells() {
        assert_eq!(cell(&Value::Null), "");
        assert_eq!(cell(&serde_json::json!(["a", 1])), "a, 1");
    }
}
