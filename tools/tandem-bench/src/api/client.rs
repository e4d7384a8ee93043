//! A client: `GET /`, over and over, and what it takes to have a guest.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// What is asked.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n";
/// No answer takes as long.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Client {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
        })
    }

    /// Asks.
    pub fn ask(&mut self) -> io::Result<()> {
        self.stream.write_all(REQUEST)
    }

    /// Has something done.
    pub fn done(&mut self, method: &str, path: &str, body: &Value) -> io::Result<()> {
        let body = body.to_string();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(request.as_bytes())?;
        self.answer()
    }

    /// Takes the answer, which must be one that says yes.
    pub fn answer(&mut self) -> io::Result<()> {
        self.buffer.clear();
        loop {
            let mut piece = [0; 4096];
            let count = self.stream.read(&mut piece)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.buffer.extend_from_slice(&piece[..count]);
            if let Some(end) = end(&self.buffer)
                && self.buffer.len() >= end
            {
                break;
            }
        }
        if self.buffer.starts_with(b"HTTP/1.1 20") {
            return Ok(());
        }
        Err(io::Error::other(
            String::from_utf8_lossy(&self.buffer).into_owned(),
        ))
    }
}

/// Where an answer ends, once its head is complete.
fn end(answer: &[u8]) -> Option<usize> {
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
    let length = text
        .split("content-length:")
        .nth(1)
        .and_then(|rest| rest.lines().next()?.trim().parse::<usize>().ok());
    Some(head + length.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_answer() {
        assert_eq!(end(b"HTTP/1.1 200 OK\r\nContent-Le"), None);
        assert_eq!(end(b"HTTP/1.1 204 \r\n\r\n"), Some(17));
        assert_eq!(
            end(b"HTTP/1.1 200 \r\ncontent-length: 12\r\n\r\n{}"),
            Some(49)
        );
    }
}
