//! The VM's answers as documents.

use serde::Serialize;
use serde_json::{Map, Value, json};
use vmm::config::VmConfig;
use vmm::control;
use vmm::request::{RequestError, Response, StoreError};

use super::{FIRECRACKER_VERSION, fault};
use crate::http;

/// What the VM said.
pub type Told = control::Answer;

/// Answer to what the VM said: 200 with a document, 204, 400, or 413 for metadata that are too large.
pub fn document(told: Told) -> http::Response {
    match told {
        Ok(Response::Done) => http::Response::empty(204),
        Ok(Response::Instance(instance)) => json(&instance),
        Ok(Response::Config(config)) => json(&whole(&config)),
        Ok(Response::Machine(machine)) => json(&machine),
        Ok(Response::Balloon(balloon)) => json(&balloon),
        Ok(Response::BalloonStatistics(counters)) => json(&statistics(&counters)),
        Ok(Response::Timeline(boot)) => json(&boot),
        Ok(Response::Counters(counters)) => json(&counters),
        // Firecracker's clients look for an object before there is one.
        Ok(Response::Mmds(document)) => json(&document.unwrap_or_else(|| json!({}))),
        Err(error @ RequestError::Mmds(StoreError::TooLarge)) => fault(413, &error.to_string()),
        Err(error) => fault(400, &error.to_string()),
    }
}

/// Answer to `GET /version`.
pub fn version() -> http::Response {
    json(&json!({ "firecracker_version": FIRECRACKER_VERSION }))
}

fn json(document: &impl Serialize) -> http::Response {
    match serde_json::to_vec(document) {
        Ok(document) => http::Response::json(200, document),
        Err(error) => fault(500, &format!("cannot write the document: {error}")),
    }
}

/// A configuration with every section that Firecracker's document has: its clients read them without asking whether they are
/// there. All of it can be given back to `PUT /vm`.
fn whole(config: &VmConfig) -> Value {
    let mut document = serde_json::to_value(config).unwrap_or_default();
    if let Some(sections) = document.as_object_mut() {
        for (name, empty) in [
            ("balloon", Value::Null),
            ("cpu-config", Value::Null),
            ("drives", json!([])),
            ("entropy", Value::Null),
            ("logger", Value::Null),
            ("memory-hotplug", Value::Null),
            ("metrics", Value::Null),
            ("mmds-config", Value::Null),
            ("network-interfaces", json!([])),
            ("pmem", json!([])),
            ("vsock", Value::Null),
        ] {
            sections.entry(name).or_insert(empty);
        }
    }
    document
}

/// What Firecracker tells of a balloon that the device's counters do not have: numbers of MiB. The counters of the device's own
/// work are left to `/metrics`.
fn statistics(counters: &[(&'static str, u64)]) -> Value {
    /// Pages of 4 KiB in a MiB.
    const PAGES: u64 = 256;
    let mut document = Map::new();
    for (name, value) in counters {
        let name = *name;
        let amount = match name {
            "target_pages" => Some("target_mib"),
            "actual_pages" => Some("actual_mib"),
            _ => None,
        };
        if let Some(amount) = amount {
            document.insert(amount.into(), (value / PAGES).into());
        }
        if !OWN_WORK.contains(&name) {
            document.insert(name.into(), (*value).into());
        }
    }
    document.into()
}

/// Counters of a balloon that are not its guest's statistics.
const OWN_WORK: [&str; 8] = [
    "inflate_count",
    "inflated_bytes",
    "deflate_count",
    "deflated_bytes",
    "free_page_report_count",
    "free_page_report_freed",
    "release_fails",
    "stats_updates_count",
];

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::config::BootSource;

    #[test]
    fn a_configuration_is_whole_and_can_be_given_back() {
        let config = VmConfig::new(BootSource::new("/k"));
        let document = whole(&config);
        assert_eq!(document["drives"], json!([]));
        assert_eq!(document["vsock"], Value::Null);
        let again = crate::config::parse(document.to_string().as_bytes()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn statistics_have_amounts_and_leave_the_devices_work_out() {
        let told = statistics(&[
            ("target_pages", 512),
            ("actual_pages", 300),
            ("inflate_count", 3),
            ("free_memory", 7),
        ]);
        let expected = json!({"target_pages": 512, "target_mib": 2, "actual_pages": 300,
            "actual_mib": 1, "free_memory": 7});
        assert_eq!(told, expected);
    }
}
