//! `tandem api`: one request to a VM's control socket, and its answer for people.
//!
//! | module | what |
//! |---|---|
//! | `client` | HTTP/1.1 over a Unix socket: one request, one answer, as it comes |
//! | `body` | the ways in which a body can come: by length, in chunks, until the end |
//! | `show` | the answer on standard output: JSON with indents, streams line by line |
//! | `json` | indents and colours for JSON text, which is otherwise left as it is |
//! | `routes` | the list of requests, from the OpenAPI document |

mod body;
mod client;
mod json;
mod routes;
mod show;

use std::fs;
use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::exit;
use crate::output::{Style, print};
use client::{Client, Failure, Outgoing};

const HELP: &str = "\
Examples:
  tandem api --socket vm.sock GET /
  export TANDEM_SOCKET=vm.sock
  tandem api PUT /boot-source '{\"kernel_image_path\": \"vmlinux\"}'
  tandem api PUT /drives/root -d @drive.json
  tandem api PUT /actions '{\"action_type\": \"InstanceStart\"}'
  tandem api GET /events
  jq '.[\"machine-config\"].vcpu_count = 2' vm.json | tandem api PUT /vm -
  tandem api --list

The body of a 2xx answer goes to standard output: JSON with indents, and with
colour on a terminal unless NO_COLOR is set. What any other answer says goes to
standard error. With --include or --raw both go to standard output.

Exit codes, most of them curl's:
  0   a 2xx answer, all of it
  7   no connection to the socket
  8   what answered is not HTTP, or broke its rules
  18  the answer broke off
  22  an answer other than 2xx: the request was refused
  26  the body to send could not be read
  28  the time limit was reached
  52  the connection was closed without an answer
  55  the request could not be sent
  56  the answer could not be received
  64  the command line was not understood
  74  standard output could not be written";

/// Send a request to a VM's control socket and show the answer.
///
/// The socket is the one that `tandem-vmm --api-sock` listens on, or any other
/// that speaks HTTP. The answer is readable as it is; --raw leaves it alone.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment, after_help = HELP, after_long_help = HELP)]
pub struct Api {
    /// The control socket; $TANDEM_SOCKET where it is left out
    #[arg(short, long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Show the status and the headers too
    #[arg(short, long)]
    include: bool,
    /// Write the body's bytes as they come
    #[arg(long)]
    raw: bool,
    /// Send this body; @FILE for a file's contents, @- for standard input
    #[arg(short, long, value_name = "BODY", conflicts_with = "body")]
    data: Option<String>,
    /// Send this header too, as `Name: value`
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// Longest wait for the next sign of the other side, in seconds; 0 for any.
    /// Streams of events may be silent for longer
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u32,
    /// Print all requests there are, and what for
    #[arg(long, exclusive = true)]
    list: bool,
    /// GET, PUT, PATCH, DELETE
    #[arg(required_unless_present = "list")]
    method: Option<String>,
    /// Path of the request, such as /vm/config
    #[arg(required_unless_present = "list")]
    path: Option<String>,
    /// Body of the request, JSON as a rule; - for standard input, @FILE for a
    /// file's contents
    body: Option<String>,
}

impl Api {
    /// Runs it to the exit code.
    pub fn run(self) -> ExitCode {
        if self.list {
            let style = Style::of_stdout();
            let printed =
                routes::list(style).and_then(|text| print(&text).map_err(Failure::Output));
            return finish(printed);
        }
        finish(self.send())
    }

    fn send(&self) -> Result<(), Failure> {
        let method = method(self.method.as_deref().unwrap_or_default())?;
        let path = path(self.path.as_deref().unwrap_or_default())?;
        let headers = headers(&self.headers)?;
        let socket = self
            .socket
            .clone()
            .or_else(|| std::env::var_os("TANDEM_SOCKET").map(PathBuf::from))
            .filter(|socket| !socket.as_os_str().is_empty());
        let Some(socket) = socket else {
            return Err(Failure::Usage(
                "no socket; give --socket PATH, or set TANDEM_SOCKET".into(),
            ));
        };
        let body = match (&self.data, self.body.as_deref()) {
            (Some(data), _) => Some(read(data)?),
            (None, Some("-")) => Some(read("@-")?),
            (None, Some(body)) => Some(read(body)?),
            (None, None) => None,
        };
        let limit = (self.timeout > 0).then(|| Duration::from_secs(self.timeout.into()));
        let request = Outgoing {
            method: &method,
            path: &path,
            headers: &headers,
            body: body.as_deref(),
        };
        let answer = Client::connect(&socket, limit)?.send(&request)?;
        let shown = show::Options {
            include: self.include,
            raw: self.raw,
            terminal: io::stdout().is_terminal(),
            style: Style::of_stdout(),
        };
        show::answer(answer, shown)
    }
}

fn finish(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => exit::OK.into(),
        Err(failure) => {
            let text = failure.to_string();
            if !text.is_empty() {
                eprintln!("tandem api: {text}");
            }
            failure.code().into()
        }
    }
}

/// The method in capitals, as HTTP has it.
fn method(text: &str) -> Result<String, Failure> {
    if text.starts_with('/') {
        return Err(Failure::Usage(format!(
            "the method is missing; try: tandem api GET {text}"
        )));
    }
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return Err(Failure::Usage(format!(
            "{text:?} is no method; give GET, PUT, PATCH or DELETE"
        )));
    }
    Ok(text.to_ascii_uppercase())
}

/// A path that can stand in a request's first line.
fn path(text: &str) -> Result<String, Failure> {
    if !text.starts_with('/') {
        return Err(Failure::Usage(format!(
            "{text:?} is no path; give one with / in front, such as /vm/config"
        )));
    }
    if let Some(bad) = text.chars().find(|letter| !letter.is_ascii_graphic()) {
        return Err(Failure::Usage(format!(
            "{bad:?} cannot be in a path; write it as %XX, its bytes in hexadecimal"
        )));
    }
    Ok(text.to_owned())
}

/// Headers, each a name and a value.
fn headers(lines: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let split = |line: &String| {
        let (name, value) = line.split_once(':')?;
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let value = value.trim();
        (!name.is_empty() && name.bytes().all(token) && !value.contains(char::is_control))
            .then(|| (name.to_owned(), value.to_owned()))
    };
    lines
        .iter()
        .map(|line| {
            split(line)
                .ok_or_else(|| Failure::Usage(format!("{line:?} is no header; give Name: value")))
        })
        .collect()
}

/// A body: as it is, or what `@` names.
fn read(text: &str) -> Result<Vec<u8>, Failure> {
    let Some(name) = text.strip_prefix('@') else {
        return Ok(text.as_bytes().to_vec());
    };
    let failed = |error: io::Error, name: &str| Failure::Input(format!("{name}: {error}"));
    if name == "-" {
        let mut body = Vec::new();
        return match io::stdin().lock().read_to_end(&mut body) {
            Ok(_) => Ok(body),
            Err(error) => Err(failed(error, "standard input")),
        };
    }
    fs::read(name).map_err(|error| failed(error, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_sent_is_a_usage_error() {
        assert_eq!(method("put").unwrap(), "PUT");
        for (bad, expected) in [("/vm", "GET /vm"), ("", "no method"), ("G T", "no method")] {
            let error = method(bad).unwrap_err();
            assert_eq!(error.code(), exit::USAGE);
            assert!(error.to_string().contains(expected), "{error}");
        }
        assert_eq!(path("/mmds?a=b").unwrap(), "/mmds?a=b");
        for bad in ["", "vm", "/a b", "/a\r\nHost: x", "/ä"] {
            assert_eq!(path(bad).unwrap_err().code(), exit::USAGE, "{bad}");
        }
        let lines = ["X-A: b: c ".to_owned()];
        assert_eq!(headers(&lines).unwrap(), [("X-A".into(), "b: c".into())]);
        for bad in ["X", ": x", "a b: c", "a: b\r\nc: d"] {
            assert!(headers(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_body_is_text_or_a_file() {
        assert_eq!(read("{}").unwrap(), b"{}");
        let error = read("@/nonexistent/file").unwrap_err();
        assert_eq!(error.code(), 26);
        assert!(error.to_string().contains("/nonexistent/file"), "{error}");
    }
}
