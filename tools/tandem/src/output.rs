//! Writing for people: colour only where it is wanted, and no complaint when the reader goes away.

use std::io::{self, ErrorKind, IsTerminal, Write};

/// A colour of the terminal's own palette.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// All is well.
    Green,
    /// Worth a look.
    Yellow,
    /// Broken.
    Red,
    /// Of less interest.
    Dim,
    /// Headings.
    Bold,
}

/// Whether and how text is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    colour: bool,
}

impl Style {
    /// Without colour.
    #[cfg(test)]
    pub const PLAIN: Self = Self { colour: false };

    /// For standard output: colour on a terminal, unless `NO_COLOR` is set and not empty
    /// (<https://no-color.org>) or the terminal is "dumb".
    pub fn of_stdout() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            colour: io::stdout().is_terminal() && !set("NO_COLOR") && !dumb,
        }
    }

    /// The text in the colour.
    pub fn paint(self, colour: Colour, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match colour {
            Colour::Green => "32",
            Colour::Yellow => "33",
            Colour::Red => "31",
            Colour::Dim => "2",
            Colour::Bold => "1",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Writes all of the text to standard output. A reader that went away (EPIPE) is no error: it has
/// seen what it wanted.
///
/// # Errors
/// Every other failure to write.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Breaks text into lines of at most `width` characters, between words.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > width {
            lines.push(String::new());
            used = 0;
        }
        if let Some(line) = lines.last_mut() {
            if used > 0 {
                line.push(' ');
                used += 1;
            }
            line.push_str(word);
            used += length;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_wrapped_between_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("averylongword x", 5), ["averylongword", "x"]);
        assert_eq!(wrap("", 5), [""]);
    }

    #[test]
    fn plain_text_stays_plain() {
        assert_eq!(Style::PLAIN.paint(Colour::Red, "x"), "x");
        assert_eq!(
            Style { colour: true }.paint(Colour::Red, "x"),
            "\x1b[31mx\x1b[0m"
        );
    }
}
