//! Lines with tones, and when a tone becomes a colour.
//!
//! Views are made of [`Line`]s, so that what is said is tested without escape codes. A tone never carries
//! meaning of its own: everything it marks is said in words too.

use std::env;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use chrono::{DateTime, TimeDelta, Utc};

/// How a piece of text is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// As it is.
    #[default]
    Plain,
    /// All is well.
    Good,
    /// Something failed.
    Bad,
    /// Somebody should look.
    Attention,
    /// Less important.
    Quiet,
    /// A title.
    Strong,
}

impl Tone {
    fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Good => Some("32"),
            Self::Bad => Some("31"),
            Self::Attention => Some("33"),
            Self::Quiet => Some("2"),
            Self::Strong => Some("1"),
        }
    }
}

/// One line of a view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line(Vec<(Tone, String)>);

impl Line {
    /// An empty line.
    pub fn new() -> Self {
        Self::default()
    }

    /// A line of plain text.
    pub fn plain(text: impl Into<String>) -> Self {
        Self::new().with(Tone::Plain, text)
    }

    /// The line with more text at its end.
    #[must_use]
    pub fn with(mut self, tone: Tone, text: impl Into<String>) -> Self {
        self.0.push((tone, text.into()));
        self
    }

    /// The line with text filled up with spaces to `width`.
    #[must_use]
    pub fn column(self, tone: Tone, text: &str, width: usize) -> Self {
        let gap = width.saturating_sub(text.chars().count());
        self.with(tone, text).with(Tone::Plain, " ".repeat(gap))
    }

    /// The text alone, without spaces at its end.
    pub fn text(&self) -> String {
        let whole: String = self.0.iter().map(|(_, text)| text.as_str()).collect();
        whole.trim_end().to_owned()
    }

    /// The text with escape codes.
    fn coloured(&self) -> String {
        let mut out = String::new();
        for (tone, text) in &self.0 {
            let _ = match tone.code() {
                Some(code) if !text.is_empty() => write!(out, "\x1b[{code}m{text}\x1b[0m"),
                _ => out.write_str(text),
            };
        }
        out.trim_end().to_owned()
    }
}

/// Rows of cells under titles, each column as wide as its widest cell.
pub fn table(titles: &[&str], rows: &[Vec<(Tone, String)>]) -> Vec<Line> {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|(_, text)| text.chars().count());
        cells.chain(titles.get(column).map(|title| title.chars().count())).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let line = |cells: &[(Tone, String)]| {
        cells
            .iter()
            .zip(&widths)
            .fold(Line::new(), |line, ((tone, text), width)| line.column(*tone, text, width.saturating_add(3)))
    };
    let head: Vec<_> = titles.iter().map(|title| (Tone::Plain, (*title).to_owned())).collect();
    std::iter::once(line(&head)).chain(rows.iter().map(|row| line(row))).collect()
}

/// Where lines go: standard output, coloured or not, redrawn or appended to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// A person looks at it, and it can be redrawn.
    pub interactive: bool,
    /// It shows colours.
    pub colour: bool,
}

impl Terminal {
    /// Standard output as it is.
    pub fn of_stdout(no_colour: bool) -> Self {
        Self::decide(
            io::stdout().is_terminal(),
            no_colour,
            env::var_os("NO_COLOR").as_deref(),
            env::var_os("TERM").as_deref(),
        )
    }

    /// The rule: colours only on a terminal, and not when `--no-color`, a non-empty `NO_COLOR` or `TERM=dumb`
    /// says otherwise. A dumb terminal cannot be redrawn either.
    fn decide(terminal: bool, no_colour: bool, no_colour_variable: Option<&OsStr>, term: Option<&OsStr>) -> Self {
        let dumb = term.is_none_or(|term| term == "dumb");
        let refused = no_colour || no_colour_variable.is_some_and(|value| !value.is_empty());
        Self { interactive: terminal && !dumb, colour: terminal && !dumb && !refused }
    }

    /// The lines as text.
    pub fn text(self, lines: &[Line]) -> String {
        let mut out = String::new();
        for line in lines {
            out.push_str(&if self.colour { line.coloured() } else { line.text() });
            out.push('\n');
        }
        out
    }

    /// Prints the lines below what is there.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn append(self, lines: &[Line]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(self.text(lines).as_bytes())?;
        out.flush()
    }

    /// Prints the lines in place of what is there, in one write so that it does not flicker.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn redraw(self, lines: &[Line]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        // Home, the lines each cleared to their end, then everything below.
        let text = self.text(lines).replace('\n', "\x1b[K\n");
        out.write_all(format!("\x1b[H{text}\x1b[J").as_bytes())?;
        out.flush()
    }
}

/// A time of day in UTC, as in the log; with the date when it is not the day of `now`.
pub fn clock(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let format = if at.date_naive() == now.date_naive() { "%H:%M:%SZ" } else { "%Y-%m-%d %H:%M:%SZ" };
    at.format(format).to_string()
}

/// A length of time in at most two units; never negative.
pub fn length(delta: TimeDelta) -> String {
    let seconds = delta.num_seconds().max(0);
    let units = [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let shown: String = units
        .iter()
        .skip_while(|(number, _)| *number == 0)
        .take(2)
        .filter(|(number, _)| *number > 0)
        .map(|(number, unit)| format!("{number}{unit}"))
        .collect();
    if shown.is_empty() { "0s".to_owned() } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_only_where_they_are_wanted() {
        let xterm = Some(OsStr::new("xterm-256color"));
        let decide = |terminal, flag, variable: Option<&str>, term| {
            Terminal::decide(terminal, flag, variable.map(OsStr::new), term).colour
        };
        assert!(decide(true, false, None, xterm));
        assert!(decide(true, false, Some(""), xterm), "an empty NO_COLOR says nothing");
        assert!(!decide(false, false, None, xterm), "a pipe");
        assert!(!decide(true, true, None, xterm), "--no-color");
        assert!(!decide(true, false, Some("1"), xterm), "NO_COLOR");
        assert!(!decide(true, false, None, Some(OsStr::new("dumb"))), "TERM=dumb");
        assert!(!decide(true, false, None, None), "no TERM at all");
        let line = Line::plain("a ").with(Tone::Bad, "b");
        assert_eq!(Terminal { interactive: false, colour: false }.text(std::slice::from_ref(&line)), "a b\n");
        assert_eq!(Terminal { interactive: true, colour: true }.text(&[line]), "a \x1b[31mb\x1b[0m\n");
    }

    #[test]
    fn lengths_have_two_units() {
        for (seconds, text) in [(0, "0s"), (-5, "0s"), (59, "59s"), (70, "1m10s"), (3600, "1h"), (90_061, "1d1h")] {
            assert_eq!(length(TimeDelta::seconds(seconds)), text);
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec![(Tone::Plain, "web".to_owned()), (Tone::Good, "Ready".to_owned())]];
        let text: Vec<String> = table(&["NAME", "PHASE"], &rows).iter().map(Line::text).collect();
        assert_eq!(text, ["NAME   PHASE", "web    Ready"]);
    }
}
