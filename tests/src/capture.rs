//! What a process prints, collected while it runs.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What [`Capture::wait_until`] begins with when nothing more can come.
pub const ENDED: &str = "the stream ended";

/// A stream, read to its end by a thread.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<(Mutex<Collected>, Condvar)>,
    reader: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Collected {
    bytes: Vec<u8>,
    ended: bool,
}

impl Capture {
    /// Collects all of `stream`.
    pub fn new(mut stream: impl Read + Send + 'static) -> Self {
        let shared = Arc::new((Mutex::new(Collected::default()), Condvar::new()));
        let sink = shared.clone();
        let reader = thread::spawn(move || {
            let mut buffer = [0; 64 * 1024];
            loop {
                // A pty's master fails with EIO when the last user of its other side is gone: the end as well.
                let read = stream.read(&mut buffer).unwrap_or(0);
                let mut collected = sink.0.lock().unwrap_or_else(PoisonError::into_inner);
                collected.bytes.extend_from_slice(&buffer[..read]);
                collected.ended = read == 0;
                let ended = collected.ended;
                drop(collected);
                sink.1.notify_all();
                if ended {
                    return;
                }
            }
        });
        Self { shared, reader }
    }

    /// Waits until `wanted` answers for what has come so far.
    ///
    /// # Errors
    /// What has come, if that does not happen in `patience` or the stream ends before.
    pub fn wait_until<T>(
        &self,
        patience: Duration,
        mut wanted: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<T, String> {
        let deadline = Instant::now() + patience;
        let mut collected = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(answer) = wanted(&collected.bytes) {
                return Ok(answer);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || collected.ended {
                let end = if collected.ended {
                    ENDED
                } else {
                    "out of time"
                };
                return Err(format!(
                    "{end} after:\n{}",
                    String::from_utf8_lossy(&collected.bytes)
                ));
            }
            collected = self
                .shared
                .1
                .wait_timeout(collected, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// All bytes so far.
    pub fn so_far(&self) -> Vec<u8> {
        let collected = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        collected.bytes.clone()
    }

    /// All bytes, once the stream has ended.
    pub fn finish(self) -> Vec<u8> {
        let _ = self.reader.join();
        let mut collected = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut collected.bytes)
    }
}

/// Whether `text` is in `bytes`.
pub fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

/// The end of what was printed, for whoever reads a failure.
pub fn tail(bytes: &[u8]) -> String {
    let start = bytes.len().saturating_sub(4096);
    String::from_utf8_lossy(&bytes[start..]).into_owned()
}
