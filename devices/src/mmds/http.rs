//! HTTP/1.0 and 1.1 (RFC 9112) as far as the service needs it: bytes of a connection to the bytes of an answer.
//!
//! Status codes and words are those of Firecracker's `docs/mmds/mmds-user-guide.md`. `GET` reads; `PUT /latest/api/token` gives a
//! session token, in both versions, and version 2 wants one with each `GET`.

use std::fmt::Write;
use std::time::Instant;

use super::store::{Format, GetError};
use super::{Inner, Mmds, Version, count, token};

/// Bytes of the longest request, with its body, which nobody looks at.
pub const MOST: usize = 4096;
/// Lines of a header.
const HEADERS: usize = 48;
/// Where tokens are had.
const TOKEN_PATH: &str = "/latest/api/token";

/// Each header has two names: Firecracker's, and EC2's.
const TOKEN: [&str; 2] = ["X-metadata-token", "X-aws-ec2-metadata-token"];
const LIFETIME: [&str; 2] = [
    "X-metadata-token-ttl-seconds",
    "X-aws-ec2-metadata-token-ttl-seconds",
];
/// Who sends this asks for somebody else, who shall not get a token.
const FORWARDED: &str = "X-Forwarded-For";

/// An answer to the first request of a connection's bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// Bytes of the request.
    pub taken: usize,
    /// Head and body.
    pub bytes: Vec<u8>,
    /// Whether it is the connection's last.
    pub last: bool,
}

/// What a request comes to.
struct Response {
    status: &'static str,
    json: bool,
    /// Whole lines.
    headers: String,
    body: String,
}

const OK: &str = "200 OK";
const BAD_REQUEST: &str = "400 Bad Request";
const UNAUTHORIZED: &str = "401 Unauthorized";
const NOT_FOUND: &str = "404 Not Found";
const NOT_ALLOWED: &str = "405 Method Not Allowed";
const TOO_LARGE: &str = "413 Content Too Large";
const SERVER_ERROR: &str = "500 Internal Server Error";
const NOT_IMPLEMENTED: &str = "501 Not Implemented";

fn text(status: &'static str, body: impl Into<String>) -> Response {
    Response {
        status,
        json: false,
        headers: String::new(),
        body: body.into(),
    }
}

/// Answers the first request of `bytes`. `None` where not all of it is there, and it may still come.
pub fn answer(bytes: &[u8], mmds: &Mmds, now: Instant) -> Option<Answer> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    // What cannot be understood is the last: nobody knows where the next request begins.
    let end = |response: Response| Some(write(&response, bytes.len(), 1, true, false));
    let head = match request.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) if bytes.len() < MOST => return None,
        Ok(httparse::Status::Partial) => {
            return end(text(
                TOO_LARGE,
                format!("The request has more than {MOST} bytes."),
            ));
        }
        Err(httparse::Error::Version) => {
            return end(text(NOT_IMPLEMENTED, "Unsupported HTTP version."));
        }
        Err(error) => return end(text(BAD_REQUEST, format!("Invalid request: {error}."))),
    };
    let request = Request {
        method: request.method.unwrap_or_default(),
        path: request.path.unwrap_or_default(),
        headers: request.headers,
    };
    let body = match request.body() {
        Ok(body) => body,
        Err(response) => return end(response),
    };
    let taken = match head.checked_add(body).filter(|all| *all <= MOST) {
        Some(all) if all <= bytes.len() => all,
        Some(_) => return None,
        None => {
            return end(text(
                TOO_LARGE,
                format!("The request has more than {MOST} bytes."),
            ));
        }
    };
    let response = request.serve(mmds, now);
    // Bytes that the parser has taken for a request line end in its version.
    let first_line = bytes
        .split(|byte| *byte == b'\n')
        .find(|line| line.len() > 1);
    let old = first_line.is_some_and(|line| line.trim_ascii_end().ends_with(b"/1.0"));
    let connection = request.value("Connection").unwrap_or_default();
    let asks = |word: &str| {
        let mut words = connection.split(',');
        words.any(|found| found.trim().eq_ignore_ascii_case(word))
    };
    let last = asks("close") || old && !asks("keep-alive");
    let no_body = request.method == "HEAD";
    Some(write(&response, taken, u8::from(!old), last, no_body))
}

fn write(response: &Response, taken: usize, minor: u8, last: bool, no_body: bool) -> Answer {
    let Response {
        status,
        json,
        headers,
        body,
    } = response;
    let kind = if *json {
        "application/json"
    } else {
        "text/plain"
    };
    let connection = if last { "close" } else { "keep-alive" };
    let len = body.len();
    let mut bytes = format!(
        "HTTP/1.{minor} {status}\r\nServer: Tandem MMDS\r\nConnection: {connection}\r\n\
         Content-Type: {kind}\r\n{headers}Content-Length: {len}\r\n\r\n"
    );
    if !no_body {
        bytes.push_str(body);
    }
    Answer {
        taken,
        bytes: bytes.into_bytes(),
        last,
    }
}

struct Request<'a> {
    method: &'a str,
    path: &'a str,
    headers: &'a [httparse::Header<'a>],
}

impl Request<'_> {
    /// The first header of one of these names: the name as it is in the request, and the value.
    fn header(&self, names: &[&str]) -> Option<(&str, &str)> {
        let of = |header: &&httparse::Header| {
            let mut names = names.iter();
            names.any(|name| header.name.eq_ignore_ascii_case(name))
        };
        let found = self.headers.iter().find(of)?;
        // What is no text is nothing that is looked for here.
        let value = std::str::from_utf8(found.value).unwrap_or_default();
        Some((found.name, value.trim()))
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.header(&[name]).map(|(_, value)| value)
    }

    /// Bytes of the body.
    fn body(&self) -> Result<usize, Response> {
        if self.value("Transfer-Encoding").is_some() {
            return Err(text(NOT_IMPLEMENTED, "Unsupported transfer encoding."));
        }
        let Some((name, value)) = self.header(&["Content-Length"]) else {
            return Ok(0);
        };
        let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        let bad = || text(BAD_REQUEST, invalid_value(name, value));
        match value.parse() {
            Ok(length) if digits => Ok(length),
            // A number beyond all bounds is too large rather than wrong.
            Err(_) if digits => Ok(usize::MAX),
            _ => Err(bad()),
        }
    }

    fn serve(&self, mmds: &Mmds, now: Instant) -> Response {
        let Some(path) = absolute_path(self.path) else {
            return text(BAD_REQUEST, "Invalid URI.");
        };
        let mut inner = mmds.lock();
        match self.method {
            "GET" => self.get(path, &inner, mmds, now),
            "PUT" => self.put(path, &mut inner, now),
            _ => Response {
                headers: "Allow: GET, PUT\r\n".into(),
                ..text(NOT_ALLOWED, "Not allowed HTTP method.")
            },
        }
    }

    fn get(&self, path: &str, inner: &Inner, mmds: &Mmds, now: Instant) -> Response {
        let token = self.header(&TOKEN);
        let valid = token.map(|(_, token)| inner.tokens.is_valid(token, now));
        match valid {
            Some(true) => {}
            Some(false) => count(&mmds.counts().rx_invalid_token),
            None => count(&mmds.counts().rx_no_token),
        }
        if inner.behaviour.version == Version::V2 {
            match valid {
                Some(true) => {}
                Some(false) => return text(UNAUTHORIZED, "MMDS token not valid."),
                None => {
                    let problem = "No MMDS token provided. Use `X-metadata-token` or \
                                   `X-aws-ec2-metadata-token` header to specify the session token.";
                    return text(UNAUTHORIZED, problem);
                }
            }
        }
        let format = if inner.behaviour.imds_compat {
            Format::Imds
        } else {
            self.accepts()
        };
        match inner.store.get(path, format) {
            Ok(body) => Response {
                json: format == Format::Json,
                ..text(OK, body)
            },
            Err(GetError::NotFound) => text(NOT_FOUND, format!("Resource not found: {path}.")),
            Err(GetError::NoText) => {
                let problem = "Cannot retrieve value. The value has an unsupported type.";
                text(NOT_IMPLEMENTED, problem)
            }
        }
    }

    fn put(&self, path: &str, inner: &mut Inner, now: Instant) -> Response {
        if self.header(&[FORWARDED]).is_some() {
            let problem =
                format!("Invalid header. Reason: Unsupported header name. Key: {FORWARDED}");
            return text(BAD_REQUEST, problem);
        }
        let segments = path.split('/').filter(|segment| !segment.is_empty());
        if !segments.eq(TOKEN_PATH.split('/').skip(1)) || path.ends_with('/') {
            return text(NOT_FOUND, format!("Resource not found: {path}."));
        }
        let Some((name, value)) = self.header(&LIFETIME) else {
            let problem = "Token time to live value not found. Use `X-metadata-token-ttl-seconds` or \
                           `X-aws-ec2-metadata-token-ttl-seconds` header to specify the token's lifetime.";
            return text(BAD_REQUEST, problem);
        };
        let Ok(seconds) = value.parse::<u32>() else {
            return text(BAD_REQUEST, invalid_value(name, value));
        };
        let (least, most) = token::LIFETIMES.into_inner();
        if !token::LIFETIMES.contains(&seconds) {
            let problem = format!(
                "Invalid time to live value provided for token: {seconds}. Please provide a value \
                 between {least} and {most}."
            );
            return text(BAD_REQUEST, problem);
        }
        match inner.tokens.issue(seconds, now) {
            Ok(token) => Response {
                headers: format!("{name}: {seconds}\r\n"),
                ..text(OK, token)
            },
            Err(error) => text(SERVER_ERROR, format!("Cannot make a token: {error}.")),
        }
    }

    /// The first of the two formats that `Accept` names; plain text where it names neither.
    fn accepts(&self) -> Format {
        let accept = self.value("Accept").unwrap_or_default();
        let mut types = accept.split(',').map(|range| {
            let kind = range.split(';').next().unwrap_or_default();
            kind.trim().to_ascii_lowercase()
        });
        types
            .find_map(|kind| match kind.as_str() {
                "application/json" => Some(Format::Json),
                "text/plain" => Some(Format::Imds),
                _ => None,
            })
            .unwrap_or(Format::Imds)
    }
}

/// The words of Firecracker's HTTP server.
fn invalid_value(name: &str, value: &str) -> String {
    let mut words = String::new();
    // Writing to a string does not fail.
    let _ = write!(
        words,
        "Invalid header. Reason: Invalid value. Key:{name}; Value:{value}"
    );
    words
}

/// The path of a request's target, which may have a server's name in it (RFC 9112, 3.2.2).
fn absolute_path(target: &str) -> Option<&str> {
    if target.starts_with('/') {
        return Some(target);
    }
    let rest = target.strip_prefix("http://")?;
    rest.find('/').and_then(|start| rest.get(start..))
}
