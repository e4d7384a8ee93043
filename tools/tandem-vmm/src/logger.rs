//! The log: one line a message, as Firecracker's look.
//!
//! `2026-11-20T21:29:03.123456789 [id:thread:LEVEL:file:line] message`, where level and origin are shown if asked for.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use devices::utc::Utc;
use log::{LevelFilter, Log, Metadata, Record};
use vmm::console::append_to;

/// How the log looks and where it goes.
pub struct Settings<'a> {
    pub id: &'a str,
    pub path: Option<&'a Path>,
    pub level: Option<LevelFilter>,
    pub module: Option<&'a str>,
    pub show_level: bool,
    pub show_origin: bool,
}

struct Logger {
    id: String,
    file: Option<File>,
    module: String,
    show_level: bool,
    show_origin: bool,
}

/// Starts logging.
///
/// # Errors
/// The log file could not be opened.
pub fn start(settings: &Settings) -> io::Result<()> {
    let file = settings.path.map(append_to).transpose()?;
    let level = settings.level.unwrap_or(match file {
        Some(_) => LevelFilter::Info,
        None => LevelFilter::Warn,
    });
    let logger = Logger {
        id: settings.id.to_owned(),
        file,
        module: settings.module.unwrap_or_default().to_owned(),
        show_level: settings.show_level,
        show_origin: settings.show_origin,
    };
    log::set_boxed_logger(Box::new(logger)).map_err(io::Error::other)?;
    log::set_max_level(level);
    Ok(())
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.target().starts_with(&self.module)
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = self.line(record, SystemTime::now());
        // There is nobody left to tell when the log cannot be written. A FIFO that nobody reads must not hold up the guest:
        // its lines are lost.
        let _ = match &self.file {
            Some(file) => (&*file).write_all(line.as_bytes()),
            None => io::stderr().write_all(line.as_bytes()),
        };
    }

    fn flush(&self) {}
}

impl Logger {
    fn line(&self, record: &Record, now: SystemTime) -> String {
        let utc = Utc::from(now);
        let nanoseconds = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .subsec_nanos();
        let thread = thread::current();
        let mut origin = format!("{}:{}", self.id, thread.name().unwrap_or("-"));
        if self.show_level {
            origin += &format!(":{}", record.level());
        }
        if let (true, Some(file), Some(line)) = (self.show_origin, record.file(), record.line()) {
            origin += &format!(":{file}:{line}");
        }
        // One message is one line, whatever is in it.
        let message = record.args().to_string().replace('\n', "\\n");
        format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{nanoseconds:09} [{origin}] {message}\n",
            utc.year, utc.month, utc.day, utc.hour, utc.minute, utc.second
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(show_level: bool, show_origin: bool) -> String {
        let logger = Logger {
            id: "vm-1".into(),
            file: None,
            module: String::new(),
            show_level,
            show_origin,
        };
        let record = Record::builder()
            .args(format_args!("one\ntwo"))
            .level(log::Level::Warn)
            .file(Some("a.rs"))
            .line(Some(7))
            .build();
        logger.line(
            &record,
            SystemTime::UNIX_EPOCH + Duration::from_millis(86_400_001),
        )
    }

    #[test]
    fn lines_look_like_firecrackers() {
        let name = thread::current().name().unwrap_or("-").to_owned();
        assert_eq!(
            line(true, true),
            format!("1970-01-02T00:00:00.001000000 [vm-1:{name}:WARN:a.rs:7] one\\ntwo\n")
        );
        assert_eq!(
            line(false, false),
            format!("1970-01-02T00:00:00.001000000 [vm-1:{name}] one\\ntwo\n")
        );
    }
}
