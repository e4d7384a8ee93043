//! The log: one line a message, as Firecracker's look.
//!
//! `2026-11-20T21:29:03.123456789 [id:thread:LEVEL:file:line] message`, where level and origin are shown if asked for.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::{OnceLock, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, SystemTime};

use devices::utc::Utc;
use log::{LevelFilter, Log, Metadata, Record};
use vmm::config::LoggerConfig;
use vmm::console::append_to;

use crate::sandbox;

/// How the log looks and where it goes.
#[derive(Default)]
struct Look {
    file: Option<File>,
    /// Least important level, once somebody has said it.
    level: Option<LevelFilter>,
    module: String,
    show_level: bool,
    show_origin: bool,
}

struct Logger {
    id: OnceLock<String>,
    look: RwLock<Look>,
}

static LOGGER: Logger = Logger {
    id: OnceLock::new(),
    look: RwLock::new(Look {
        file: None,
        level: None,
        module: String::new(),
        show_level: false,
        show_origin: false,
    }),
};

/// Starts logging, to standard error at first.
///
/// # Errors
/// Somebody else logs already.
pub fn start(id: &str) -> io::Result<()> {
    // Once: this process has one name.
    let _ = LOGGER.id.set(id.to_owned());
    log::set_logger(&LOGGER).map_err(io::Error::other)?;
    configure(&LoggerConfig::default())
}

/// Changes the log, from the next line on. What `config` leaves out stays as it is.
///
/// # Errors
/// The log file could not be opened; nothing has changed.
pub fn configure(config: &LoggerConfig) -> io::Result<()> {
    let level = LOGGER.change(config)?;
    log::set_max_level(level);
    Ok(())
}

impl Logger {
    fn change(&self, config: &LoggerConfig) -> io::Result<LevelFilter> {
        let file = config.log_path.as_deref().map(append_to).transpose()?;
        let mut look = self.look.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(log) = &file {
            sandbox::tell_in(log.as_raw_fd());
            look.file = file;
        }
        if let Some(level) = config.level {
            look.level = Some(level.into());
        }
        if let Some(module) = &config.module {
            look.module.clone_from(module);
        }
        look.show_level = config.show_level.unwrap_or(look.show_level);
        look.show_origin = config.show_log_origin.unwrap_or(look.show_origin);
        Ok(look.level.unwrap_or(match look.file {
            Some(_) => LevelFilter::Info,
            None => LevelFilter::Warn,
        }))
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        let look = self.look.read().unwrap_or_else(PoisonError::into_inner);
        metadata.target().starts_with(&look.module)
    }

    fn log(&self, record: &Record) {
        let look = self.look.read().unwrap_or_else(PoisonError::into_inner);
        if !record.target().starts_with(&look.module) {
            return;
        }
        let id = self.id.get().map_or("-", String::as_str);
        let line = look.line(id, record, SystemTime::now());
        // There is nobody left to tell when the log cannot be written. A FIFO that nobody reads must not hold up the guest:
        // its lines are lost.
        let _ = match &look.file {
            Some(file) => (&*file).write_all(line.as_bytes()),
            None => io::stderr().write_all(line.as_bytes()),
        };
    }

    fn flush(&self) {}
}

impl Look {
    fn line(&self, id: &str, record: &Record, now: SystemTime) -> String {
        let utc = Utc::from(now);
        let nanoseconds = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .subsec_nanos();
        let thread = thread::current();
        let mut origin = format!("{id}:{}", thread.name().unwrap_or("-"));
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
    use vmm::config::Level;

    fn line(show_level: bool, show_origin: bool) -> String {
        let look = Look {
            show_level,
            show_origin,
            ..Look::default()
        };
        let record = Record::builder()
            .args(format_args!("one\ntwo"))
            .level(log::Level::Warn)
            .file(Some("a.rs"))
            .line(Some(7))
            .build();
        look.line(
            "vm-1",
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

    #[test]
    fn what_is_left_out_stays_and_what_cannot_be_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let logger = Logger {
            id: OnceLock::new(),
            look: RwLock::new(Look::default()),
        };
        let nothing = LoggerConfig::default();
        assert_eq!(logger.change(&nothing).unwrap(), LevelFilter::Warn);
        let to_file = LoggerConfig {
            log_path: Some(dir.path().join("log")),
            show_level: Some(true),
            ..nothing.clone()
        };
        assert_eq!(logger.change(&to_file).unwrap(), LevelFilter::Info);
        let louder = LoggerConfig {
            level: Some(Level::Debug),
            module: Some("mine".into()),
            ..nothing.clone()
        };
        assert_eq!(logger.change(&louder).unwrap(), LevelFilter::Debug);
        let nowhere = LoggerConfig {
            log_path: Some(dir.path().join("no/log")),
            level: Some(Level::Off),
            ..nothing.clone()
        };
        assert!(logger.change(&nowhere).is_err());
        assert_eq!(logger.change(&nothing).unwrap(), LevelFilter::Debug);
        for (target, text) in [("mine::a", "kept"), ("other", "left out")] {
            logger.log(
                &Record::builder()
                    .args(format_args!("{text}"))
                    .target(target)
                    .build(),
            );
        }
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
        assert!(log.ends_with(":INFO] kept\n"), "{log}");
        assert_eq!(log.lines().count(), 1);
    }
}
