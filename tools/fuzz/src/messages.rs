//! The log: messages are put together and counted, and not kept.

use std::cell::Cell;
use std::io::Write;
use std::sync::Once;

use log::{LevelFilter, Log, Metadata, Record};

thread_local! {
    static COUNT: Cell<u32> = const { Cell::new(0) };
}

/// Messages that the devices of one run may cause: some sites, each with its limit of 20 and a line that says so.
const MOST: u32 = 400;

struct Counting;

impl Log for Counting {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        COUNT.set(COUNT.get() + 1);
        // What is formatted may be wrong too. With TANDEM_FUZZ_LOG it can be read.
        let text = record.args().to_string();
        if std::env::var_os("TANDEM_FUZZ_LOG").is_some() {
            let _ = writeln!(std::io::stderr(), "{}: {text}", record.level());
        }
    }

    fn flush(&self) {}
}

/// A run begins.
pub fn begin() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if log::set_logger(&Counting).is_ok() {
            log::set_max_level(LevelFilter::Info);
        }
    });
    COUNT.set(0);
}

/// A device was put in the place of another, and its limits of messages begin anew.
///
/// # Panics
/// There were too many messages before that.
pub fn anew() {
    end();
    COUNT.set(0);
}

/// The run is over.
///
/// # Panics
/// It has caused too many messages.
pub fn end() {
    let count = COUNT.get();
    assert!(count <= MOST, "{count} messages in the log");
}
