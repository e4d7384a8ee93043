//! JSON text with indents and colours. Names, their order and the digits of numbers stay what they are: the text is laid
//! out, not read into values and written again.

use serde::de::IgnoredAny;

use crate::output::{Colour, Style};

/// Columns of a level.
const INDENT: usize = 2;

/// One JSON document in lines, with a line end; `None` if the text is not one.
pub fn pretty(text: &str, style: Style) -> Option<String> {
    let mut out = lay_out(text, style, true)?;
    out.push('\n');
    Some(out)
}

/// One JSON document in one line, without a line end; `None` if the text is not one.
pub fn line(text: &str, style: Style) -> Option<String> {
    lay_out(text, style, false)
}

fn lay_out(text: &str, style: Style, lines: bool) -> Option<String> {
    let _: IgnoredAny = serde_json::from_str(text).ok()?;
    let mut out = String::with_capacity(text.len() * 2);
    let mut depth = 0;
    let mut tokens = Tokens(text).peekable();
    let break_line = |out: &mut String, depth: usize| {
        if lines {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', depth * INDENT));
        }
    };
    while let Some(token) = tokens.next() {
        let next = tokens.peek().copied().unwrap_or("");
        match token {
            "{" | "[" => {
                out.push_str(token);
                if !matches!(next, "}" | "]") {
                    depth += 1;
                    break_line(&mut out, depth);
                } else if let Some(end) = tokens.next() {
                    out.push_str(end);
                }
            }
            "}" | "]" => {
                depth = depth.saturating_sub(1);
                break_line(&mut out, depth);
                out.push_str(token);
            }
            "," => {
                out.push(',');
                if lines {
                    break_line(&mut out, depth);
                } else {
                    out.push(' ');
                }
            }
            ":" => out.push_str(": "),
            "null" => out += &style.paint(Colour::Dim, token),
            name if next == ":" => out += &style.paint(Colour::Bold, name),
            text if text.starts_with('"') => out += &style.paint(Colour::Green, text),
            value => out += &style.paint(Colour::Yellow, value),
        }
    }
    Some(out)
}

/// The tokens of valid JSON: strings, other values, and marks of one character.
struct Tokens<'a>(&'a str);

impl<'a> Iterator for Tokens<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let text = self.0.trim_start();
        let length = match text.bytes().next()? {
            b'"' => string(text),
            b'{' | b'}' | b'[' | b']' | b',' | b':' => 1,
            _ => {
                let ends = |letter: char| letter.is_ascii_whitespace() || ",]}".contains(letter);
                text.find(ends).unwrap_or(text.len())
            }
        };
        let (token, rest) = text.split_at_checked(length)?;
        self.0 = rest;
        Some(token)
    }
}

/// Length of the string in front, with its quotes.
fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_laid_out() {
        let text =
            r#"{"a":[1,{"b":null}], "c" : "x\"{,}:\\","e":{},"f":[ ],"n":18446744073709551616.50}"#;
        let expected = "{
  \"a\": [
    1,
    {
      \"b\": null
    }
  ],
  \"c\": \"x\\\"{,}:\\\\\",
  \"e\": {},
  \"f\": [],
  \"n\": 18446744073709551616.50
}
";
        assert_eq!(pretty(text, Style::PLAIN).unwrap(), expected);
        // And once more, from what came out.
        assert_eq!(pretty(expected, Style::PLAIN).unwrap(), expected);
        assert_eq!(
            line(expected, Style::PLAIN).unwrap(),
            r#"{"a": [1, {"b": null}], "c": "x\"{,}:\\", "e": {}, "f": [], "n": 18446744073709551616.50}"#
        );
    }

    #[test]
    fn a_single_value_is_a_document() {
        for text in ["1", "\"x\"", "null", "true", "[]"] {
            assert_eq!(line(text, Style::PLAIN).unwrap(), text);
        }
    }

    #[test]
    fn what_is_no_json_is_left_alone() {
        for text in ["", "{", "{} {}", "nonsense", "{'a': 1}"] {
            assert_eq!(pretty(text, Style::PLAIN), None, "{text}");
        }
    }
}
