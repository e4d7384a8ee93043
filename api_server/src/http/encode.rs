//! Responses to bytes.

use std::io::Write;

use super::message::Response;

/// What the server calls itself.
const SERVER: &str = "Tandem API";
/// Has the client send the content (RFC 9110, 15.2.1).
pub(super) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// The last chunk, without trailers.
pub(super) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Writes a whole response. `head`: as the answer to HEAD, that is without its content.
pub(super) fn response(out: &mut Vec<u8>, response: &Response, keep: bool, head: bool) {
    // What is not a status would end the connection at the client's side.
    let status = match response.status {
        status @ 200..=599 => status,
        _ => 500,
    };
    let bare = matches!(status, 204 | 304);
    out.reserve(256 + response.body.len());
    start(out, status, keep, &response.headers);
    if !bare {
        if let Some(kind) = response.content_type {
            text(out, format_args!("Content-Type: {kind}\r\n"));
        }
        text(
            out,
            format_args!("Content-Length: {}\r\n", response.body.len()),
        );
    }
    out.extend_from_slice(b"\r\n");
    if !bare && !head {
        out.extend_from_slice(&response.body);
    }
}

/// Writes the head of a response whose content comes in pieces: in chunks, or until the connection's end.
pub(super) fn stream(out: &mut Vec<u8>, kind: &str, keep: bool, chunked: bool) {
    start(out, 200, keep, &[]);
    text(out, format_args!("Content-Type: {kind}\r\n"));
    if chunked {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes a piece of a stream.
pub(super) fn chunk(out: &mut Vec<u8>, bytes: &[u8], chunked: bool) {
    if chunked {
        text(out, format_args!("{:x}\r\n", bytes.len()));
        out.extend_from_slice(bytes);
        out.extend_from_slice(b"\r\n");
    } else {
        out.extend_from_slice(bytes);
    }
}

fn start(out: &mut Vec<u8>, status: u16, keep: bool, headers: &[(&'static str, String)]) {
    let connection = if keep { "keep-alive" } else { "close" };
    let reason = reason(status);
    text(
        out,
        format_args!(
            "HTTP/1.1 {status} {reason}\r\nServer: {SERVER}\r\nConnection: {connection}\r\n"
        ),
    );
    for (name, value) in headers {
        text(out, format_args!("{name}: "));
        // A line feed would begin another header.
        out.extend(value.bytes().filter(|byte| !byte.is_ascii_control()));
        out.extend_from_slice(b"\r\n");
    }
}

fn text(out: &mut Vec<u8>, text: std::fmt::Arguments) {
    // Writing to a vector does not fail.
    let _ = out.write_fmt(text);
}

/// Names of RFC 9110, 15.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_say_what_follows() {
        let cases = [
            (
                Response::empty(204),
                true,
                false,
                "HTTP/1.1 204 No Content\r\nServer: Tandem API\r\nConnection: keep-alive\r\n\r\n",
            ),
            (
                Response::json(200, "{}").with_header("Deprecation", "tr\r\nue"),
                false,
                false,
                "HTTP/1.1 200 OK\r\nServer: Tandem API\r\nConnection: close\r\nDeprecation: true\r\n\
                 Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
            ),
            (
                Response::fault(400, "\"x\"\n"),
                true,
                true,
                "HTTP/1.1 400 Bad Request\r\nServer: Tandem API\r\nConnection: keep-alive\r\n\
                 Content-Type: application/json\r\nContent-Length: 27\r\n\r\n",
            ),
            (
                Response::empty(99),
                true,
                false,
                "HTTP/1.1 500 Internal Server Error\r\nServer: Tandem API\r\nConnection: keep-alive\r\n\
                 Content-Length: 0\r\n\r\n",
            ),
        ];
        for (value, keep, head, expected) in cases {
            let mut out = Vec::new();
            response(&mut out, &value, keep, head);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
