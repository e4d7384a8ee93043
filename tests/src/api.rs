//! A client of a control socket, one connection for each request.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::patience;

/// A control socket.
#[derive(Clone, Debug)]
pub struct Api {
    path: PathBuf,
}

impl Api {
    /// The socket at `path`, which may not be there yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    pub fn path(&self) -> &PathBuf {
        &self.path
    }

    /// A connection, for what no well-behaved client does. Reading from it takes [`patience`] at most.
    ///
    /// # Panics
    /// There is no socket.
    pub fn connect(&self) -> UnixStream {
        let deadline = Instant::now() + patience();
        loop {
            match UnixStream::connect(&self.path) {
                Ok(stream) => {
                    let limit = Some(patience());
                    stream.set_read_timeout(limit).expect("a time that passes");
                    return stream;
                }
                Err(error) => assert!(Instant::now() < deadline, "{:?}: {error}", self.path),
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> BufReader<UnixStream> {
        let mut stream = self.connect();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream
            .write_all(request.as_bytes())
            .expect("it takes a request");
        BufReader::new(stream)
    }

    /// Status and body of an answer.
    ///
    /// # Panics
    /// There is no socket, or no answer.
    #[track_caller]
    pub fn send(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut answer = String::new();
        let read = self.ask(method, path, body).read_to_string(&mut answer);
        read.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        (status.expect("a status"), body.to_owned())
    }

    /// Has something done.
    ///
    /// # Panics
    /// It is refused.
    #[track_caller]
    pub fn done(&self, method: &str, path: &str, body: &Value) {
        let (status, answer) = self.send(method, path, &body.to_string());
        assert_eq!(status, 204, "{method} {path} {body}: {answer}");
    }

    /// The same by PUT.
    ///
    /// # Panics
    /// It is refused.
    #[track_caller]
    pub fn put(&self, path: &str, body: &Value) {
        self.done("PUT", path, body);
    }

    /// Does one of the `/actions`.
    ///
    /// # Panics
    /// It is refused.
    #[track_caller]
    pub fn action(&self, name: &str) {
        self.put("/actions", &serde_json::json!({ "action_type": name }));
    }

    /// Has the VM `Paused` or `Resumed`.
    ///
    /// # Panics
    /// It is refused.
    #[track_caller]
    pub fn set_state(&self, state: &str) {
        self.done("PATCH", "/vm", &serde_json::json!({ "state": state }));
    }

    /// A document.
    ///
    /// # Panics
    /// There is none.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        let (status, answer) = self.send("GET", path, "");
        assert_eq!(status, 200, "{path}: {answer}");
        serde_json::from_str(&answer).expect("answers are JSON")
    }

    /// The state in `GET /`.
    ///
    /// # Panics
    /// There is no answer.
    #[track_caller]
    pub fn state(&self) -> String {
        self.get("/")["state"].as_str().expect("a word").to_owned()
    }

    /// The error of a request that is refused.
    ///
    /// # Panics
    /// It is not.
    #[track_caller]
    pub fn refused(&self, method: &str, path: &str, body: &Value) -> String {
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let (status, answer) = self.send(method, path, &body);
        assert_eq!(status, 400, "{method} {path} {body}: {answer}");
        let answer: Value = serde_json::from_str(&answer).expect("errors are JSON");
        answer["fault_message"].as_str().expect("text").to_owned()
    }

    /// The lines of `/events`, from now on to the end.
    ///
    /// # Panics
    /// There is no answer.
    pub fn events(&self) -> Events {
        let mut stream = self.ask("GET", "/events", "");
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            let read = stream.read_line(&mut line).expect("an answer");
            assert_ne!(read, 0, "no answer");
        }
        Events { stream }
    }
}

/// Events as they come.
#[derive(Debug)]
pub struct Events {
    stream: BufReader<UnixStream>,
}

impl Iterator for Events {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            let read = self.stream.read_line(&mut line).expect("events come");
            if read == 0 {
                return None;
            }
            // Between the lines of JSON are those of the chunked coding.
            if line.starts_with('{') {
                return Some(serde_json::from_str(&line).expect("events are JSON"));
            }
        }
    }
}
