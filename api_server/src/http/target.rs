//! The target of a request: its path and its query.

use std::borrow::Cow;

use super::head::{Refusal, bad};

/// Path and query of a target.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target<'a> {
    /// Begins with `/`, or is `*`.
    pub path: Cow<'a, str>,
    pub query: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// Reads any of the forms of RFC 9112, 3.2 but that of CONNECT.
    pub fn parse(target: &'a str) -> Result<Self, Refusal> {
        if !target.is_ascii() {
            return Err(bad(
                "the request's target has bytes that are not ASCII; percent-encode them",
            ));
        }
        let target = if target.starts_with('/') || target == "*" {
            target
        } else {
            origin(target).ok_or_else(|| {
                bad("the request's target is not a path; give one that begins with /")
            })?
        };
        if target.contains('#') {
            return Err(bad(
                "the request's target has a fragment; percent-encode # as %23",
            ));
        }
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        // `http://host` and `http://host?query` mean the root.
        let path = if path.is_empty() { "/" } else { path };
        Ok(Self {
            path: decode(path)?,
            query,
        })
    }
}

/// What follows the authority of an absolute target.
fn origin(target: &str) -> Option<&str> {
    let (scheme, rest) = target.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") {
        return None;
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(end)?;
    (!authority.is_empty()).then_some(path)
}

/// Takes the percent-encoding off, save that of `/` and `%`, which would make another path.
fn decode(path: &str) -> Result<Cow<'_, str>, Refusal> {
    if !path.contains('%') {
        return Ok(Cow::Borrowed(path));
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    loop {
        rest = match rest {
            [] => break,
            [b'%', high, low, rest @ ..] => {
                let byte = (digit(*high)? << 4) | digit(*low)?;
                match byte {
                    b'/' => bytes.extend_from_slice(b"%2F"),
                    b'%' => bytes.extend_from_slice(b"%25"),
                    0..=31 | 127 => {
                        return Err(bad("the request's target has a control character"));
                    }
                    byte => bytes.push(byte),
                }
                rest
            }
            [b'%', ..] => {
                return Err(bad(
                    "the request's target ends within a percent-encoded byte",
                ));
            }
            [byte, rest @ ..] => {
                bytes.push(*byte);
                rest
            }
        };
    }
    String::from_utf8(bytes)
        .map(Cow::Owned)
        .map_err(|_| bad("the request's target is not UTF-8"))
}

fn digit(byte: u8) -> Result<u8, Refusal> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        b'A'..=b'F' => Ok(byte - b'A' + 10),
        _ => Err(bad(
            "the request's target has % that is not followed by two hexadecimal digits",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_target() {
        for (text, path, query) in [
            ("/", "/", None),
            ("/drives/rootfs", "/drives/rootfs", None),
            ("/mmds?x=%20?y", "/mmds", Some("x=%20?y")),
            ("/?", "/", Some("")),
            ("*", "*", None),
            ("http://localhost/vm/config?a", "/vm/config", Some("a")),
            ("HTTP://localhost:80", "/", None),
            ("http://localhost?a", "/", Some("a")),
            ("/a%20b%2fc%2Fd%25e%7E", "/a b%2Fc%2Fd%25e~", None),
            ("/%c3%A4", "/ä", None),
            ("//vm/../x", "//vm/../x", None),
        ] {
            let target = Target::parse(text).unwrap();
            assert_eq!((&*target.path, target.query), (path, query), "{text}");
        }
        for text in [
            "",
            "vm",
            "localhost:80",
            "http://",
            "http:///vm",
            "https://localhost/",
            "ä",
            "/ä",
            "/#",
            "/a?b#c",
            "/%",
            "/%1",
            "/%g0",
            "/%0g",
            "/%00",
            "/%0d%0a",
            "/%7f",
            "/%ff",
            "/%c3",
            "**",
            "*?",
        ] {
            assert_eq!(Target::parse(text).unwrap_err().status, 400, "{text}");
        }
    }
}
