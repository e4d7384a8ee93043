//! What is measured: jobs that the guest runs, and the figures that are read off their output.

use std::time::Duration;

use serde_json::Value;

use super::network::{HOST, PEER_PORT};

/// Which device a job is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// The disk.
    Block,
    /// The network.
    Net,
}

/// Something that the guest does.
#[derive(Debug)]
pub struct Job {
    /// Its name, in the JSON document and on the guest's console.
    pub key: &'static str,
    /// Which device it is about.
    pub part: Part,
    /// The command.
    work: Work,
    /// The figures, the rate of its operations first.
    pub figures: &'static [Figure],
}

#[derive(Debug)]
enum Work {
    /// fio: pattern, block size, depth.
    Fio(&'static str, &'static str, u32),
    /// iperf3, with this option.
    Iperf(&'static str),
    /// This program at the guest's end: see [`peer`](super::peer).
    Peer(&'static str),
}

/// Something that is compared.
#[derive(Debug)]
pub struct Figure {
    /// Name in the JSON document.
    pub key: &'static str,
    /// Title in the table.
    pub title: &'static str,
    /// A greater one is a better one.
    pub more_is_better: bool,
    /// What a rate counts, for "per operation".
    pub operation: Option<&'static str>,
    source: Source,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    /// A number at this JSON pointer, times a factor. `{}` is `read` or `write`.
    At(&'static str, f64),
    /// Count by seconds.
    Rate,
}

const fn rate(
    key: &'static str,
    title: &'static str,
    what: &'static str,
    source: Source,
) -> Figure {
    Figure {
        key,
        title,
        more_is_better: true,
        operation: Some(what),
        source,
    }
}

const fn latency(key: &'static str, title: &'static str, source: Source) -> Figure {
    Figure {
        key,
        title,
        more_is_better: false,
        operation: None,
        source,
    }
}

const MIB: f64 = 1.0 / (1 << 20) as f64;
const BITS_TO_MIB: f64 = MIB / 8.0;
const NS_TO_US: f64 = 1e-3;
const IOPS: Source = Source::At("/jobs/0/{}/iops", 1.0);
const BANDWIDTH: Source = Source::At("/jobs/0/{}/bw_bytes", MIB);
const P50: Source = Source::At("/jobs/0/{}/clat_ns/percentile/50.000000", NS_TO_US);
const P99: Source = Source::At("/jobs/0/{}/clat_ns/percentile/99.000000", NS_TO_US);
/// What has arrived, whoever the receiver is.
const RECEIVED: Source = Source::At("/end/sum_received/bits_per_second", BITS_TO_MIB);

macro_rules! random {
    ($key:literal, $pattern:literal, $name:literal, 1) => {
        Job {
            key: $key,
            part: Part::Block,
            work: Work::Fio($pattern, "4k", 1),
            figures: &[
                rate(
                    "iops",
                    concat!("4 KiB random ", $name, ", depth 1: IOPS"),
                    "request",
                    IOPS,
                ),
                latency("p50_us", "  of that: median latency, us", P50),
                latency("p99_us", "  of that: 99th percentile, us", P99),
            ],
        }
    };
    ($key:literal, $pattern:literal, $name:literal, 32) => {
        Job {
            key: $key,
            part: Part::Block,
            work: Work::Fio($pattern, "4k", 32),
            figures: &[rate(
                "iops",
                concat!("4 KiB random ", $name, ", depth 32: IOPS"),
                "request",
                IOPS,
            )],
        }
    };
}

macro_rules! sequential {
    ($key:literal, $pattern:literal, $name:literal, $depth:literal) => {
        Job {
            key: $key,
            part: Part::Block,
            work: Work::Fio($pattern, "128k", $depth),
            figures: &[rate(
                "mib_per_s",
                concat!("128 KiB sequential ", $name, ", depth ", $depth, ": MiB/s"),
                "MiB",
                BANDWIDTH,
            )],
        }
    };
}

/// All of them, in the order of the table.
pub static JOBS: [Job; 13] = [
    random!("random-read-1", "randread", "read", 1),
    random!("random-read-32", "randread", "read", 32),
    random!("random-write-1", "randwrite", "write", 1),
    random!("random-write-32", "randwrite", "write", 32),
    sequential!("read-1", "read", "read", 1),
    sequential!("read-32", "read", "read", 32),
    sequential!("write-1", "write", "write", 1),
    sequential!("write-32", "write", "write", 32),
    Job {
        key: "tcp-to-host",
        part: Part::Net,
        work: Work::Iperf(""),
        figures: &[rate(
            "mib_per_s",
            "TCP, guest to host: MiB/s",
            "MiB",
            RECEIVED,
        )],
    },
    Job {
        key: "tcp-to-guest",
        part: Part::Net,
        work: Work::Iperf(" --reverse"),
        figures: &[rate(
            "mib_per_s",
            "TCP, host to guest: MiB/s",
            "MiB",
            RECEIVED,
        )],
    },
    Job {
        key: "round-trips",
        part: Part::Net,
        work: Work::Peer("round-trips"),
        figures: &[
            rate(
                "per_s",
                "TCP request and response of 1 byte: round trips/s",
                "round trip",
                Source::Rate,
            ),
            latency(
                "p50_us",
                "  of that: median round trip, us",
                Source::At("/p50_us", 1.0),
            ),
            latency(
                "p99_us",
                "  of that: 99th percentile, us",
                Source::At("/p99_us", 1.0),
            ),
        ],
    },
    Job {
        key: "packets-to-host",
        part: Part::Net,
        work: Work::Peer("to-host"),
        figures: &[rate(
            "per_s",
            "UDP of 64 bytes, guest to host: packets/s",
            "packet",
            Source::Rate,
        )],
    },
    Job {
        key: "packets-to-guest",
        part: Part::Net,
        work: Work::Peer("to-guest"),
        figures: &[rate(
            "per_s",
            "UDP of 64 bytes, host to guest: packets/s",
            "packet",
            Source::Rate,
        )],
    },
];

impl Job {
    /// Words for the guest's shell.
    pub fn command(&self, time: Duration) -> String {
        let seconds = time.as_secs();
        match self.work {
            // The first MiB is left alone: a VMM may guard what makes an image look like another format. The disk is
            // long in the host's page cache, or past it: nothing to invalidate.
            Work::Fio(pattern, block, depth) => format!(
                "fio --name=job --filename=/dev/vda --direct=1 --ioengine=libaio --thread --rw={pattern} --bs={block} \
                 --iodepth={depth} --offset=1m --norandommap --time_based --runtime={seconds} --ramp_time=500ms \
                 --invalidate=0 --percentile_list=50:99 --disk_util=0 --output-format=json"
            ),
            Work::Iperf(option) => format!(
                "iperf3 --client {HOST} --time {seconds} --omit 1 --interval 0 --json{option}"
            ),
            Work::Peer(mode) => {
                format!(
                    "/bench/peer peer {mode} {HOST}:{PEER_PORT} {}",
                    time.as_millis()
                )
            }
        }
    }

    /// Reads the figures off what the command printed, in the order of `figures`.
    pub fn parse(&self, output: &str) -> Result<Vec<f64>, String> {
        let value: Value = serde_json::from_str(output)
            .map_err(|error| format!("the output of its program is not JSON: {error}"))?;
        if let Work::Fio(pattern, ..) = self.work
            && value.pointer("/jobs/0/error") != Some(&Value::from(0))
        {
            return Err(format!("fio's {pattern} met an error"));
        }
        if let Some(Value::String(error)) = value.get("error") {
            return Err(error.clone());
        }
        let number = |pointer: &str| {
            let found = value.pointer(pointer)?.as_f64()?;
            found.is_finite().then_some(found)
        };
        self.figures
            .iter()
            .map(|figure| {
                let found = match figure.source {
                    Source::At(pointer, factor) => {
                        let direction = match self.work {
                            Work::Fio(pattern, ..) => pattern.trim_start_matches("rand"),
                            _ => "",
                        };
                        number(&pointer.replace("{}", direction)).map(|number| number * factor)
                    }
                    Source::Rate => number("/count").zip(number("/seconds")).map(|(n, s)| n / s),
                };
                // Nothing happened at all: that is a failure, not a figure.
                found.filter(|&found| found > 0.0).ok_or_else(|| {
                    format!(
                        "the output of its program has no {} for {}",
                        figure.key, self.key
                    )
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(key: &str) -> &'static Job {
        JOBS.iter().find(|job| job.key == key).unwrap()
    }

    #[test]
    fn fio_reads_and_writes() {
        // As fio 3.33 prints it, without blanks and most fields.
        let output = r#"{"fioversion":"fio-3.33","jobs":[{"jobname":"job","error":0,
            "read":{"bw_bytes":0,"iops":0.0,"clat_ns":{"percentile":{"50.000000":0}}},
            "write":{"bw_bytes":2097152,"iops":512.5,
              "clat_ns":{"percentile":{"50.000000":72192,"99.000000":144384}}}}]}"#;
        let figures = job("random-write-1").parse(output).unwrap();
        for (figure, expected) in figures.iter().zip([512.5, 72.192, 144.384]) {
            assert!((figure - expected).abs() < 1e-6, "{figures:?}");
        }
        assert_eq!(figures.len(), 3);
        assert_eq!(job("write-32").parse(output).unwrap(), [2.0]);
        // It read nothing: no figure.
        assert!(job("random-read-32").parse(output).is_err());
        let failed = output.replace("\"error\":0", "\"error\":5");
        assert!(
            job("write-32")
                .parse(&failed)
                .unwrap_err()
                .contains("error")
        );
    }

    #[test]
    fn iperf3_and_the_peers() {
        let output = r#"{"start":{},"end":{"sum_sent":{"bits_per_second":1.7e7},
            "sum_received":{"bits_per_second":16777216}}}"#;
        assert_eq!(job("tcp-to-guest").parse(output).unwrap(), [2.0]);
        let refused = r#"{"start":{},"end":{},"error":"unable to connect"}"#;
        assert_eq!(
            job("tcp-to-host").parse(refused).unwrap_err(),
            "unable to connect"
        );
        let output = r#"{"count":30,"seconds":1.5,"p50_us":40.5,"p99_us":99}"#;
        assert_eq!(
            job("round-trips").parse(output).unwrap(),
            [20.0, 40.5, 99.0]
        );
        let silent = r#"{"count":0,"seconds":1.5,"p50_us":null,"p99_us":null}"#;
        assert!(job("packets-to-host").parse(silent).is_err());
        assert!(job("packets-to-host").parse("").is_err());
    }

    #[test]
    fn keys_are_unique_and_commands_say_what_they_do() {
        for (index, job) in JOBS.iter().enumerate() {
            assert!(JOBS[..index].iter().all(|other| other.key != job.key));
            assert!(job.figures[0].operation.is_some());
        }
        let command = job("random-read-32").command(Duration::from_secs(3));
        for part in ["--rw=randread", "--bs=4k", "--iodepth=32", "--runtime=3"] {
            assert!(command.contains(part), "{command}");
        }
    }
}
