//! The chunked transfer coding (RFC 9112, 7.1), taken off byte by byte.

use super::head::{Refusal, bad, too_large};

/// Most bytes of the line that begins a chunk, extensions included. They mean nothing here.
const MOST_LINE: usize = 256;
/// Most bytes of the trailers. They mean nothing here either.
const MOST_TRAILERS: usize = 4096;

/// Where in the coding the last byte left off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// In the size of a chunk, after this many bytes.
    Size(usize),
    /// In its extensions, after this many bytes of the line.
    Extension(usize),
    /// At the LF after the size.
    SizeEnd,
    /// In the chunk, with this many bytes to come.
    Data(usize),
    /// At the CR after the chunk.
    DataCr,
    /// At the LF after that.
    DataLf,
    /// In a trailer: bytes of its line, bytes of all.
    Trailer(usize, usize),
    /// At the LF after a trailer, or after the empty line.
    TrailerLf(usize, usize),
    /// After the last byte.
    Done,
}

/// Takes the coding off one content.
#[derive(Debug)]
pub(super) struct Decoder {
    at: At,
    size: usize,
}

impl Decoder {
    pub fn new() -> Self {
        Self {
            at: At::Size(0),
            size: 0,
        }
    }

    /// Adds what is content of `input` to `body`. The bytes that were used, and whether the content is complete.
    pub fn advance(
        &mut self,
        input: &[u8],
        body: &mut Vec<u8>,
        limit: usize,
    ) -> Result<(usize, bool), Refusal> {
        let mut used = 0;
        while let Some(rest) = input.get(used..).filter(|rest| !rest.is_empty()) {
            if let At::Data(left) = self.at {
                let piece = rest.get(..left).unwrap_or(rest);
                body.extend_from_slice(piece);
                used += piece.len();
                self.at = match left - piece.len() {
                    0 => At::DataCr,
                    left => At::Data(left),
                };
                continue;
            }
            let Some(&byte) = rest.first() else { break };
            used += 1;
            self.at = self.next(byte, body.len(), limit)?;
            if self.at == At::Done {
                return Ok((used, true));
            }
        }
        Ok((used, false))
    }

    /// Where one more byte leads. `have` is the size of the content so far.
    fn next(&mut self, byte: u8, have: usize, limit: usize) -> Result<At, Refusal> {
        let wrong = || bad("the request's chunks are not as RFC 9112, 7.1 has them");
        Ok(match (self.at, byte) {
            (At::Size(digits), byte) if byte.is_ascii_hexdigit() && digits < MOST_LINE => {
                let value = char::from(byte).to_digit(16).ok_or_else(wrong)?;
                self.size = self
                    .size
                    .checked_mul(16)
                    .and_then(|size| size.checked_add(value as usize))
                    .filter(|size| *size <= limit.saturating_sub(have))
                    .ok_or_else(|| too_large(None, limit))?;
                At::Size(digits + 1)
            }
            (At::Size(0), _) => return Err(wrong()),
            (At::Size(_), b'\r') | (At::Extension(_), b'\r') => At::SizeEnd,
            (At::Size(bytes), b';' | b' ' | b'\t') => At::Extension(bytes),
            (At::Extension(bytes), b'\t' | 32..=126 | 128..) if bytes < MOST_LINE => {
                At::Extension(bytes + 1)
            }
            (At::SizeEnd, b'\n') => match std::mem::take(&mut self.size) {
                0 => At::Trailer(0, 0),
                size => At::Data(size),
            },
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Size(0),
            (At::Trailer(line, all), b'\r') => At::TrailerLf(line, all),
            (At::Trailer(line, all), b'\t' | 32..=126 | 128..) => {
                if all >= MOST_TRAILERS {
                    return Err(Refusal::new(431, "the request's trailers are too long"));
                }
                At::Trailer(line + 1, all + 1)
            }
            (At::TrailerLf(0, _), b'\n') => At::Done,
            (At::TrailerLf(_, all), b'\n') => At::Trailer(0, all),
            _ => return Err(wrong()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The content, and what of the input is not part of it; in steps of `step` bytes.
    fn decode(input: &[u8], limit: usize, step: usize) -> Result<Option<(Vec<u8>, usize)>, u16> {
        let mut decoder = Decoder::new();
        let mut body = Vec::new();
        let mut used = 0;
        for piece in input.chunks(step) {
            let (bytes, done) = decoder
                .advance(piece, &mut body, limit)
                .map_err(|refusal| refusal.status)?;
            used += bytes;
            if done {
                return Ok(Some((body, input.len() - used)));
            }
            assert_eq!(bytes, piece.len());
        }
        Ok(None)
    }

    #[test]
    fn content_comes_out_whole_however_it_is_cut() {
        let input = b"4\r\nWiki\r\n5;a=\"b\"\r\npedia\r\n00e \r\n in\r\n\r\nchunks.\r\n0\r\nX: y\r\nZ: \r\n\r\nGET";
        for step in 1..=input.len() {
            let (body, rest) = decode(input, 23, step).unwrap().unwrap();
            assert_eq!(body, b"Wikipedia in\r\n\r\nchunks.");
            assert_eq!(rest, 3);
            assert_eq!(decode(input, 22, step), Err(413));
        }
    }

    #[test]
    fn what_is_not_chunks_is_refused() {
        let long = format!("1;{}\r\n", "x".repeat(300));
        let zeros = format!("{}1\r\nx\r\n0\r\n\r\n", "0".repeat(300));
        let trailers = format!("0\r\n{}", "x: y\r\n".repeat(2000));
        for (input, status) in [
            ("\r\n", 400),
            ("x\r\n", 400),
            ("-1\r\n", 400),
            ("+1\r\n", 400),
            ("0x1\r\n", 400),
            (" 1\r\n", 400),
            ("1\nx\r\n", 400),
            ("1\r\nxy", 400),
            ("1\r\nx\ry", 400),
            ("1\r\nx\n", 400),
            ("1\rx", 400),
            ("0\r\n\n", 400),
            ("0\r\nx\0", 400),
            ("1;\0", 400),
            (&long, 400),
            (&zeros, 400),
            ("10000000000000000\r\n", 413),
            ("ffffffffffffffff\r\n", 413),
            ("65\r\n", 413),
            (&trailers, 431),
        ] {
            for step in [1, 2, 3, input.len()] {
                assert_eq!(
                    decode(input.as_bytes(), 100, step),
                    Err(status),
                    "{input:?}"
                );
            }
        }
    }
}
