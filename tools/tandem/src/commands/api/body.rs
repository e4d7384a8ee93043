//! How a body's bytes lie in what comes from the socket (RFC 9112, 6).

/// Where a body ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After so many bytes.
    Length(u64),
    /// After a chunk of no bytes.
    Chunks(Chunk),
    /// Where the connection does.
    UntilClosed,
}

/// Where in a chunk the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// In the line of its size.
    Size,
    /// In its data, with so many bytes to go.
    Data(u64),
    /// In the line end behind its data.
    End,
    /// In the lines behind the last chunk.
    Trailer,
    /// Nowhere: the body is over.
    Over,
}

/// Longest line of a chunk's size and of the trailer, in bytes.
const MOST_LINE: usize = 8 << 10;

/// What breaks the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(&'static str);

impl Framing {
    /// Whether the body is over, as far as its own bytes say.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunks(Chunk::Over))
    }

    /// Takes what is of the body from the front of `input` and appends it to `output`. What stays in `input` needs more
    /// bytes to make sense, or comes after the body.
    ///
    /// # Errors
    /// [`Broken`], for chunks that are none.
    pub fn take(&mut self, input: &mut Vec<u8>, output: &mut Vec<u8>) -> Result<(), Broken> {
        match self {
            Self::UntilClosed => output.append(input),
            Self::Length(left) => *left -= pass(input, output, *left),
            Self::Chunks(chunk) => while step(chunk, input, output)? {},
        }
        Ok(())
    }
}

/// Moves up to `most` bytes and says how many those were.
fn pass(input: &mut Vec<u8>, output: &mut Vec<u8>, most: u64) -> u64 {
    let count = usize::try_from(most).unwrap_or(usize::MAX).min(input.len());
    output.extend(input.drain(..count));
    count as u64
}

/// One step in chunks; false if it needs more bytes, or if there are no more.
fn step(chunk: &mut Chunk, input: &mut Vec<u8>, output: &mut Vec<u8>) -> Result<bool, Broken> {
    *chunk = match *chunk {
        // The parser takes a line without digits for 0.
        Chunk::Size if input.first().is_some_and(|byte| !byte.is_ascii_hexdigit()) => {
            return Err(Broken("the size of a chunk is not a number"));
        }
        Chunk::Size => match httparse::parse_chunk_size(input) {
            Ok(httparse::Status::Complete((used, size))) => {
                input.drain(..used);
                match size {
                    0 => Chunk::Trailer,
                    size => Chunk::Data(size),
                }
            }
            Ok(httparse::Status::Partial) if input.len() <= MOST_LINE => return Ok(false),
            _ => return Err(Broken("the size of a chunk is not a number")),
        },
        Chunk::Data(left) => match left - pass(input, output, left) {
            0 => Chunk::End,
            left => {
                *chunk = Chunk::Data(left);
                return Ok(false);
            }
        },
        Chunk::End => match input.as_slice() {
            [b'\r', b'\n', ..] => {
                input.drain(..2);
                Chunk::Size
            }
            [] | [b'\r'] => return Ok(false),
            _ => return Err(Broken("a chunk is longer than its size")),
        },
        Chunk::Trailer => match input.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                let line: Vec<_> = input.drain(..=end).collect();
                match line.as_slice() {
                    b"\r\n" | b"\n" => Chunk::Over,
                    _ => Chunk::Trailer,
                }
            }
            None if input.len() <= MOST_LINE => return Ok(false),
            None => return Err(Broken("the trailer has no end")),
        },
        Chunk::Over => return Ok(false),
    };
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out when so many bytes come at a time.
    fn all(
        mut framing: Framing,
        input: &[u8],
        at_a_time: usize,
    ) -> Result<(Vec<u8>, bool, Vec<u8>), Broken> {
        let (mut waiting, mut output) = (Vec::new(), Vec::new());
        for piece in input.chunks(at_a_time) {
            waiting.extend(piece);
            framing.take(&mut waiting, &mut output)?;
        }
        Ok((output, framing.is_over(), waiting))
    }

    #[test]
    fn chunks_are_put_together_however_they_come() {
        let text =
            b"4\r\nwiki\r\n5;name=x\r\npedia\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\nmore";
        for at_a_time in 1..text.len() {
            let (output, over, rest) = all(Framing::Chunks(Chunk::Size), text, at_a_time).unwrap();
            assert_eq!(output, b"wikipedia0123456789");
            assert!(over);
            assert_eq!(rest, b"more");
        }
    }

    #[test]
    fn what_breaks_off_is_not_over() {
        let text = b"4\r\nwiki\r\n0\r\n\r\n";
        for cut in 0..text.len() {
            let framing = Framing::Chunks(Chunk::Size);
            let (output, over, _) = all(framing, &text[..cut], 1).unwrap();
            assert!(b"wiki".starts_with(&output) && !over, "{cut}");
        }
        assert!(!all(Framing::Length(5), b"1234", 2).unwrap().1);
        assert!(!all(Framing::UntilClosed, b"1234", 2).unwrap().1);
    }

    #[test]
    fn a_length_ends_a_body() {
        let (output, over, rest) = all(Framing::Length(3), b"abcdef", 2).unwrap();
        assert_eq!(
            (output.as_slice(), over, rest.as_slice()),
            (&b"abc"[..], true, &b"def"[..])
        );
    }

    #[test]
    fn what_is_no_chunk_is_told() {
        for text in [
            &b"x\r\n"[..],
            b"-1\r\n",
            b"\r\n",
            b"3\r\nabcd\r\n",
            b"fffffffffffffffff\r\n",
        ] {
            assert!(
                all(Framing::Chunks(Chunk::Size), text, 1).is_err(),
                "{text:?}"
            );
        }
        let endless = [&b"0\r\n"[..], &vec![b'a'; MOST_LINE + 1]].concat();
        assert!(all(Framing::Chunks(Chunk::Size), &endless, 4096).is_err());
    }
}
