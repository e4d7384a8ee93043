//! A request and a response, as the service sees them.

use httparse::Header;

/// A complete request. What it is made of lives for the call only.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// As sent; methods are case-sensitive (RFC 9110, 9.1).
    pub method: &'a str,
    /// Path of the target, from the first `/` and without the query. Percent-encoded bytes are decoded, save `/` and `%`,
    /// which stay `%2F` and `%25`: a segment never grows a slash. Has no control characters.
    pub path: &'a str,
    /// What follows the first `?` of the target, as sent.
    pub query: Option<&'a str>,
    /// The content, with the transfer coding taken off.
    pub body: &'a [u8],
    headers: &'a [Header<'a>],
}

impl<'a> Request<'a> {
    /// A request without headers.
    pub fn new(method: &'a str, path: &'a str, body: &'a [u8]) -> Self {
        Self {
            method,
            path,
            query: None,
            body,
            headers: &[],
        }
    }

    pub(super) fn with(mut self, query: Option<&'a str>, headers: &'a [Header<'a>]) -> Self {
        self.query = query;
        self.headers = headers;
        self
    }

    /// Value of the first header of this name, in whatever case; none if it is not UTF-8.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name))
            .and_then(|header| std::str::from_utf8(header.value).ok())
    }
}

/// A response. Framing (`Content-Length`, `Connection`, `Server`) is the server's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// Three digits, 200 to 599.
    pub status: u16,
    /// Headers beside the content's type, such as `Allow` or `Deprecation`. Control characters in a value are left out.
    pub headers: Vec<(&'static str, String)>,
    /// `Content-Type`, where there is content.
    pub content_type: Option<&'static str>,
    /// The content. Not sent with 204 and 304, nor in answer to HEAD.
    pub body: Vec<u8>,
}

impl Response {
    /// A response without content.
    pub fn empty(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    /// A response with this JSON document.
    pub fn json(status: u16, document: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            content_type: Some("application/json"),
            body: document.into(),
            ..Self::default()
        }
    }

    /// An error, as Firecracker words it: `{"fault_message": "..."}`.
    pub fn fault(status: u16, message: &str) -> Self {
        let document = serde_json::json!({ "fault_message": message });
        Self::json(status, document.to_string())
    }

    /// With one more header.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}
