//! An answer on standard output.

use std::io::{self, ErrorKind, Write};

use super::client::{Answer, Failure, Head};
use super::json;
use crate::output::{Colour, Style};

/// Most bytes of a document that is laid out, or of an error; more is shown as it comes.
const MOST: usize = 64 << 20;

/// How an answer is shown.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// With status and headers.
    pub include: bool,
    /// As it came.
    pub raw: bool,
    /// On a terminal, which must not obey what somebody else says.
    pub terminal: bool,
    pub style: Style,
}

/// What a body is, as its type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A JSON document.
    Json,
    /// JSON documents, a line each.
    Lines,
    /// Something else.
    Other,
}

impl Kind {
    fn of(head: &Head) -> Self {
        let given = head.header("content-type").unwrap_or_default();
        let essence = given.split(';').next().unwrap_or_default().trim();
        match essence.to_ascii_lowercase().as_str() {
            "application/json" => Self::Json,
            "application/x-ndjson" | "application/jsonl" | "application/json-lines" => Self::Lines,
            _ => Self::Other,
        }
    }
}

/// Shows it all.
///
/// # Errors
/// [`Failure::Refused`] for an answer other than 2xx, and what goes wrong on the way.
pub fn answer(mut answer: Answer, options: Options) -> Result<(), Failure> {
    if options.include {
        write(head(&answer.head, options.style).as_bytes())?;
    }
    let in_full = options.include || options.raw;
    if !answer.head.is_success() && !in_full {
        return Err(Failure::Refused(refusal(&mut answer)?));
    }
    match Kind::of(&answer.head) {
        _ if options.raw => through(&mut answer, Vec::new(), false)?,
        Kind::Json => document(&mut answer, options)?,
        Kind::Lines => lines(&mut answer, options)?,
        Kind::Other => through(&mut answer, Vec::new(), options.terminal)?,
    }
    if answer.head.is_success() {
        Ok(())
    } else {
        Err(Failure::Refused(String::new()))
    }
}

fn head(head: &Head, style: Style) -> String {
    let colour = if head.is_success() {
        Colour::Green
    } else {
        Colour::Red
    };
    let status = format!("{} {}", head.status, head.reason);
    let mut text = format!(
        "HTTP/1.{} {}\n",
        head.version,
        style.paint(colour, status.trim_end())
    );
    for (name, value) in &head.headers {
        text += &format!("{}: {}\n", style.paint(Colour::Dim, name), printable(value));
    }
    text + "\n"
}

/// The line for a request that was refused: the status and what the body says.
fn refusal(answer: &mut Answer) -> Result<String, Failure> {
    let mut body = Vec::new();
    while body.len() < MOST && answer.next(&mut body, false)? {}
    let text = String::from_utf8_lossy(&body);
    let document: Option<serde_json::Value> = serde_json::from_str(&text).ok();
    let fault = document
        .as_ref()
        .and_then(|document| document.get("fault_message")?.as_str());
    let status = format!("{} {}", answer.head.status, answer.head.reason);
    Ok(match fault.unwrap_or(text.trim()) {
        "" => status.trim_end().to_owned(),
        text => format!("{}: {}", status.trim_end(), printable(text)),
    })
}

/// A JSON document, laid out; as it is where it is none.
fn document(answer: &mut Answer, options: Options) -> Result<(), Failure> {
    let mut body = Vec::new();
    while answer.next(&mut body, false)? {
        if body.len() > MOST {
            return through(answer, body, options.terminal);
        }
    }
    let text = std::str::from_utf8(&body).ok();
    match text.and_then(|text| json::pretty(text, options.style)) {
        Some(text) => write(obeyed_by_none(&text, options.terminal, "\n\x1b").as_bytes()),
        None => through(answer, body, options.terminal),
    }
}

/// Each line when it is complete. The wait for the next one has no limit.
fn lines(answer: &mut Answer, options: Options) -> Result<(), Failure> {
    let mut waiting = Vec::new();
    loop {
        let more = answer.next(&mut waiting, true)?;
        while let Some(end) = waiting.iter().position(|byte| *byte == b'\n') {
            let line: Vec<_> = waiting.drain(..=end).collect();
            write(line_of(&line, options).as_bytes())?;
        }
        // The last line may have no end. One that is longer than anything is shown in pieces.
        if !waiting.is_empty() && (!more || waiting.len() > MOST) {
            let rest = std::mem::take(&mut waiting);
            write(line_of(&rest, options).as_bytes())?;
        }
        if !more {
            return Ok(());
        }
    }
}

fn line_of(line: &[u8], options: Options) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches(['\r', '\n']);
    let text = match json::line(text, options.style) {
        Some(line) => obeyed_by_none(&line, options.terminal, "\x1b"),
        None => obeyed_by_none(text, options.terminal, "\t"),
    };
    text + "\n"
}

/// What was read before, and then all else, as it comes.
fn through(answer: &mut Answer, mut body: Vec<u8>, for_terminal: bool) -> Result<(), Failure> {
    loop {
        if for_terminal {
            let text = String::from_utf8_lossy(&body);
            write(obeyed_by_none(&text, true, "\n\t").as_bytes())?;
        } else {
            write(&body)?;
        }
        body.clear();
        // What does not name its length may be a stream.
        let patient = !answer.has_length();
        if !answer.next(&mut body, patient)? {
            return Ok(());
        }
    }
}

fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(Failure::Output),
    }
}

/// The text in one line that no terminal obeys.
fn printable(text: &str) -> String {
    obeyed_by_none(text, true, "")
}

/// The text with its control characters written out, but for those in `kept`; as it is where it is not for a terminal.
/// Valid JSON has no escape character of its own: those in it are this program's colours.
fn obeyed_by_none(text: &str, terminal: bool, kept: &str) -> String {
    if !terminal {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() && !kept.contains(letter) {
            out += &format!("\\u{:04x}", u32::from(letter));
        } else {
            out.push(letter);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_told_nothing_to_obey() {
        let text = "a\x1b[31m\u{9b}31m\r\n\tb";
        assert_eq!(printable(text), r"a\u001b[31m\u009b31m\u000d\u000a\u0009b");
        assert_eq!(obeyed_by_none(text, false, ""), text);
        assert_eq!(obeyed_by_none("a\n\tb", true, "\n\t"), "a\n\tb");
    }

    #[test]
    fn the_type_decides() {
        let kind = |given: &str| {
            Kind::of(&Head {
                version: 1,
                status: 200,
                reason: "OK".into(),
                headers: vec![("Content-type".into(), given.into())],
            })
        };
        assert_eq!(kind("application/json"), Kind::Json);
        assert_eq!(kind("Application/JSON; charset=utf-8"), Kind::Json);
        assert_eq!(kind("application/x-ndjson"), Kind::Lines);
        assert_eq!(kind("text/plain; version=0.0.4"), Kind::Other);
    }
}
