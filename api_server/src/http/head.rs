//! The head of a request: where it ends, and what it says of the content and of the connection.

use std::mem::MaybeUninit;

use httparse::{EMPTY_HEADER, Error, Header, Status};

use super::message::Response;

/// Most headers of a request.
pub(super) const MOST_HEADERS: usize = 64;

/// Why a request is refused. The connection ends with it: where the next request begins is not certain.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub status: u16,
    pub text: String,
}

impl Refusal {
    pub fn new(status: u16, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
        }
    }

    pub fn response(&self) -> Response {
        Response::fault(self.status, &self.text)
    }
}

/// A refusal with status 400.
pub(super) fn bad(text: impl Into<String>) -> Refusal {
    Refusal::new(400, text)
}

/// Finds the end of a head, byte by byte, so that what it finds does not depend on how the bytes arrive, and each byte is
/// looked at once. Lines end in CR LF alone: RFC 9112, 2.2 allows to be strict, and who is not can be told two requests for one.
#[derive(Clone, Debug, Default)]
pub(super) struct Scan {
    /// Bytes looked at.
    at: usize,
    /// Bytes of the current line.
    line: usize,
    /// Complete lines.
    lines: usize,
    /// The last byte was CR.
    cr: bool,
}

impl Scan {
    /// Looks at the bytes after those that were looked at already. `input` begins where the head does, which is not with an
    /// empty line. The length of the head, once it is complete.
    pub fn advance(&mut self, input: &[u8], limit: usize) -> Result<Option<usize>, Refusal> {
        for &byte in input.get(self.at..).unwrap_or_default() {
            if self.at >= limit {
                return Err(self.too_long(limit));
            }
            self.at += 1;
            match (self.cr, byte) {
                (true, b'\n') => {
                    self.cr = false;
                    if self.line == 0 {
                        return Ok(Some(self.at));
                    }
                    self.line = 0;
                    self.lines += 1;
                }
                (false, b'\r') => self.cr = true,
                (true, _) | (false, b'\n') => {
                    return Err(bad(
                        "a line of the request's head does not end in CR LF; end each in both",
                    ));
                }
                (false, 0..=8 | 11..=31 | 127) => {
                    return Err(bad("the request's head has a control character"));
                }
                (false, _) => self.line += 1,
            }
        }
        Ok(None)
    }

    /// Whether nothing has been looked at.
    pub fn is_new(&self) -> bool {
        self.at == 0
    }

    fn too_long(&self, limit: usize) -> Refusal {
        if self.lines == 0 {
            Refusal::new(
                414,
                format!("the request's target is too long; a head has at most {limit} bytes"),
            )
        } else {
            Refusal::new(
                431,
                format!("the request's headers are too long; a head has at most {limit} bytes"),
            )
        }
    }
}

/// Room for the headers of a request.
pub(super) type Room<'a> = [MaybeUninit<Header<'a>>; MOST_HEADERS];

/// Room with nothing in it.
pub(super) const fn room<'a>() -> Room<'a> {
    [MaybeUninit::new(EMPTY_HEADER); MOST_HEADERS]
}

/// Parts of a head.
pub(super) struct Parts<'a, 'h> {
    pub method: &'a str,
    pub target: &'a str,
    /// HTTP/1.0, not 1.1.
    pub old: bool,
    pub headers: &'h [Header<'a>],
}

/// Takes a complete head apart.
pub(super) fn parse<'a, 'h>(
    head: &'a [u8],
    room: &'h mut Room<'a>,
) -> Result<Parts<'a, 'h>, Refusal> {
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, room) {
        Ok(Status::Complete(_)) => {}
        Ok(Status::Partial) => return Err(bad("the request's head is incomplete")),
        Err(Error::TooManyHeaders) => {
            return Err(Refusal::new(
                431,
                format!("the request has more than {MOST_HEADERS} headers"),
            ));
        }
        Err(Error::Version) => return Err(version(head)),
        Err(Error::HeaderName | Error::HeaderValue) => {
            return Err(bad(
                "the request has a header that is not NAME: VALUE in one line",
            ));
        }
        Err(_) => {
            return Err(bad(
                "the request's first line is not METHOD TARGET HTTP/1.1",
            ));
        }
    }
    match (request.method, request.path, request.version) {
        (Some(method), Some(target), Some(version)) => Ok(Parts {
            method,
            target,
            old: version == 0,
            headers: request.headers,
        }),
        _ => Err(bad("the request's head is incomplete")),
    }
}

/// What is wrong with the version: another one, or none at all.
fn version(head: &[u8]) -> Refusal {
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let version = line.rsplit(|&byte| byte == b' ').next().unwrap_or_default();
    match version {
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Refusal::new(505, "the request is not in HTTP/1.1 or HTTP/1.0")
        }
        _ => bad("the request's first line is not METHOD TARGET HTTP/1.1"),
    }
}

/// How long the content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// This many bytes.
    Length(usize),
    /// As its chunks say.
    Chunked,
}

/// What the head says of the content and of the connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manners {
    pub framing: Framing,
    /// The connection is kept after the answer.
    pub keep: bool,
    /// HTTP/1.0, which knows no chunks.
    pub old: bool,
    /// The answer has no content, whatever its headers say.
    pub head: bool,
    /// The client waits for 100 before it sends the content.
    pub expects: bool,
}

impl Manners {
    /// Reads the headers that are not the service's.
    pub fn of(parts: &Parts, body_limit: usize) -> Result<Self, Refusal> {
        let mut length = None;
        let mut coding = None;
        let mut hosts = 0;
        let mut expects = false;
        let (mut close, mut keep_alive) = (false, false);
        for header in parts.headers {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            if is("content-length") {
                if length.replace(content_length(header.value)?).is_some() {
                    return Err(bad("the request has more than one Content-Length"));
                }
            } else if is("transfer-encoding") {
                if coding.replace(header.value).is_some() {
                    return Err(bad("the request has more than one Transfer-Encoding"));
                }
            } else if is("connection") {
                for word in header.value.split(|&byte| byte == b',') {
                    let word = word.trim_ascii();
                    close |= word.eq_ignore_ascii_case(b"close");
                    keep_alive |= word.eq_ignore_ascii_case(b"keep-alive");
                }
            } else if is("expect") {
                if !header
                    .value
                    .trim_ascii()
                    .eq_ignore_ascii_case(b"100-continue")
                {
                    return Err(Refusal::new(
                        417,
                        "the request expects what is not known here; 100-continue is",
                    ));
                }
                // 1.0 has no 100 (RFC 9110, 10.1.1).
                expects = !parts.old;
            } else if is("host") {
                hosts += 1;
            }
        }
        // None at all would be an error too (RFC 9112, 3.2); but on a socket of the file system it names nothing, and hand-made
        // clients leave it out.
        if hosts > 1 {
            return Err(bad("the request has more than one Host"));
        }
        let framing = framing(length, coding, parts.old)?;
        if let Framing::Length(length) = framing
            && length > body_limit
        {
            return Err(too_large(Some(length), body_limit));
        }
        Ok(Self {
            framing,
            keep: !close && (keep_alive || !parts.old),
            old: parts.old,
            head: parts.method == "HEAD",
            expects: expects && framing != Framing::Length(0),
        })
    }
}

/// RFC 9112, 6.3. Both lengths at once is how one request is smuggled in another: an error, as 6.1 allows.
fn framing(length: Option<usize>, coding: Option<&[u8]>, old: bool) -> Result<Framing, Refusal> {
    match (length, coding) {
        (length, None) => Ok(Framing::Length(length.unwrap_or(0))),
        (Some(_), Some(_)) => Err(bad(
            "the request has both Content-Length and Transfer-Encoding; give one",
        )),
        (None, Some(_)) if old => Err(bad("HTTP/1.0 has no Transfer-Encoding")),
        (None, Some(coding)) if coding.trim_ascii().eq_ignore_ascii_case(b"chunked") => {
            Ok(Framing::Chunked)
        }
        (None, Some(_)) => Err(Refusal::new(
            501,
            "the request has a Transfer-Encoding that is not known here; chunked is",
        )),
    }
}

/// Digits alone. What is no number of this machine is too large in any case, and is refused as that later.
fn content_length(value: &[u8]) -> Result<usize, Refusal> {
    let value = value.trim_ascii();
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(bad("the request's Content-Length is not a number"));
    }
    let length = value.iter().try_fold(0_usize, |length, digit| {
        length
            .checked_mul(10)?
            .checked_add(usize::from(digit - b'0'))
    });
    Ok(length.unwrap_or(usize::MAX))
}

/// Content beyond the limit, of this size if it is known.
pub(super) fn too_large(size: Option<usize>, limit: usize) -> Refusal {
    let text = match size {
        Some(size) if size < usize::MAX => format!(
            "Request payload with size {size} is larger than the limit of {limit} allowed by server (--http-api-max-payload-size)."
        ),
        _ => format!(
            "Request payload is larger than the limit of {limit} allowed by server (--http-api-max-payload-size)."
        ),
    };
    Refusal::new(413, text)
}
