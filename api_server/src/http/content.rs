//! A request's content while it comes.

use super::chunked::Decoder;
use super::head::{Framing, Manners, Refusal, too_large};

/// A request whose content is not complete.
#[derive(Debug)]
pub(super) struct Pending {
    pub head: Vec<u8>,
    pub manners: Manners,
    pub body: Vec<u8>,
    coding: Coding,
}

#[derive(Debug)]
pub(super) enum Coding {
    /// Bytes to come.
    Length(usize),
    Chunked(Decoder),
}

impl Pending {
    /// With this head, and nothing of the content yet.
    pub fn new(head: &[u8], manners: Manners) -> Self {
        let coding = match manners.framing {
            Framing::Length(bytes) => Coding::Length(bytes),
            Framing::Chunked => Coding::Chunked(Decoder::new()),
        };
        Self {
            head: head.to_vec(),
            manners,
            body: Vec::new(),
            coding,
        }
    }

    /// Bytes of memory that it holds.
    pub fn held(&self) -> usize {
        self.head.capacity() + self.body.capacity()
    }

    /// Takes what is content. The bytes used, and whether it is complete.
    pub fn advance(&mut self, input: &[u8], limit: usize) -> Result<(usize, bool), Refusal> {
        match &mut self.coding {
            Coding::Length(left) => {
                let piece = input.get(..*left).unwrap_or(input);
                // Checked with the head, and kept true here.
                if self.body.len() + piece.len() > limit {
                    return Err(too_large(None, limit));
                }
                self.body.extend_from_slice(piece);
                *left -= piece.len();
                Ok((piece.len(), *left == 0))
            }
            Coding::Chunked(decoder) => decoder.advance(input, &mut self.body, limit),
        }
    }
}
