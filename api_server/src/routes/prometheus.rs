//! Counters in Prometheus' text format, version 0.0.4: one metric for each name, labelled with the device.

use std::collections::BTreeMap;
use std::fmt::Write;

use vmm::request::{BALLOON_STATISTICS, Response};

use super::answer::{Told, document as other};
use crate::http;

/// Content type of the format.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answer to `GET /metrics`.
pub fn document(told: Told) -> http::Response {
    match told {
        Ok(Response::Counters(counters)) => http::Response {
            status: 200,
            content_type: Some(CONTENT_TYPE),
            body: text(&counters).into_bytes(),
            ..http::Response::default()
        },
        told => other(told),
    }
}

/// Whether it is an amount, which can get less: the balloon's size, and what its driver tells. All else only grows.
fn is_gauge(name: &str) -> bool {
    ["target_pages", "actual_pages"].contains(&name) || BALLOON_STATISTICS.contains(&name)
}

fn text(counters: &[(String, Vec<(&'static str, u64)>)]) -> String {
    // The lines of one metric stand together.
    let mut metrics: BTreeMap<&str, Vec<(&str, u64)>> = BTreeMap::new();
    for (device, counters) in counters {
        for (name, value) in counters {
            metrics.entry(name).or_default().push((device, *value));
        }
    }
    let mut text = String::new();
    for (name, values) in metrics {
        let (kind, suffix) = if is_gauge(name) {
            ("gauge", "")
        } else {
            ("counter", "_total")
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# TYPE tandem_{name}{suffix} {kind}");
        for (device, value) in values {
            let _ = writeln!(text, "tandem_{name}{suffix}{{device=\"{device}\"}} {value}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_has_a_line_for_each_device() {
        let counters = [
            ("block_a".to_owned(), vec![("reads", 1), ("writes", 2)]),
            ("block_b".to_owned(), vec![("reads", 3)]),
            ("balloon".to_owned(), vec![("actual_pages", 4)]),
        ];
        let expected = "\
# TYPE tandem_actual_pages gauge
tandem_actual_pages{device=\"balloon\"} 4
# TYPE tandem_reads_total counter
tandem_reads_total{device=\"block_a\"} 1
tandem_reads_total{device=\"block_b\"} 3
# TYPE tandem_writes_total counter
tandem_writes_total{device=\"block_a\"} 2
";
        assert_eq!(text(&counters), expected);
    }
}
