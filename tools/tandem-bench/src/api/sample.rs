//! One start of a VMM, and the load that it is put under.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::Serialize;

use super::client::Client;
use crate::process::{Failure, Running, failed};
use crate::signals;
use crate::stage::StagedProgram;
use crate::sys::monotonic_ns;

/// Longest time to the first answer.
const START_LIMIT: Duration = Duration::from_secs(10);

/// From the start of a process to its first answer.
#[derive(Clone, Debug, Serialize)]
pub struct Start {
    /// Nanoseconds until somebody accepted a connection at the socket.
    pub connected_ns: u64,
    /// Until the first answer was complete.
    pub answered_ns: u64,
    /// CPU time of all threads by then.
    pub cpu_ns: u64,
    /// Resident memory by then, in KiB.
    pub rss_kib: u64,
}

/// Answers to many requests.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Load {
    /// Nanoseconds for each request on one kept connection.
    pub kept_ns: Vec<u64>,
    /// For each on a connection of its own, connecting and closing included.
    pub fresh_ns: Vec<u64>,
    /// Requests in each second over several kept connections, one for each round.
    pub rates: Vec<f64>,
    /// CPU time of the VMM for each request on a kept connection, one for each round.
    pub kept_cpu_ns: Vec<f64>,
}

/// A VMM that answers.
pub struct Vmm {
    pub running: Running,
    pub socket: PathBuf,
}

impl Vmm {
    /// Starts it and waits for its first answer.
    pub fn start(program: &StagedProgram, dir: &Path) -> Result<(Self, Start), Failure> {
        let socket = dir.join("api.sock");
        // A VMM that is killed leaves its socket, and not all replace one.
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove its socket")(error));
            }
            _ => {}
        }
        // A line of log for each request would be measured too, and nobody reads it.
        let quiet = ["--level", "Error", "--api-sock"].map(OsString::from);
        let arguments = quiet.into_iter().chain([socket.clone().into()]);
        let start_ns = monotonic_ns();
        let running = Running::start(program, arguments, start_ns)?;
        let mut client = loop {
            match Client::connect(&socket) {
                Ok(client) => break client,
                Err(_) if signals::stopped() => return Err(Failure::Interrupted),
                Err(error) => {
                    if monotonic_ns() - start_ns > START_LIMIT.as_nanos() as u64 {
                        return Err(Failure::Vm(format!(
                            "nobody answers at --api-sock: {error}; {}",
                            running.last_words()
                        )));
                    }
                    // Leaves the processor to it, should there be one only.
                    thread::yield_now();
                }
            }
        };
        let connected_ns = monotonic_ns() - start_ns;
        client.ask().map_err(failed("ask it"))?;
        client.answer().map_err(failed("get an answer"))?;
        let answered_ns = monotonic_ns() - start_ns;
        let start = Start {
            connected_ns,
            answered_ns,
            cpu_ns: cpu_ns(running.pid()).map_err(failed("read its CPU time"))?,
            rss_kib: rss_kib(running.pid()).map_err(failed("read its memory"))?,
        };
        Ok((Self { running, socket }, start))
    }

    /// Asks `requests` times in every way, and adds to `load`.
    pub fn load(&self, requests: u32, connections: u32, load: &mut Load) -> Result<(), Failure> {
        let asked = failed("get an answer under load");
        let mut client = Client::connect(&self.socket).map_err(&asked)?;
        let cpu = cpu_ns(self.running.pid()).map_err(failed("read its CPU time"))?;
        for _ in 0..requests {
            let start_ns = monotonic_ns();
            client
                .ask()
                .and_then(|()| client.answer())
                .map_err(&asked)?;
            load.kept_ns.push(monotonic_ns() - start_ns);
        }
        let spent = cpu_ns(self.running.pid()).map_err(failed("read its CPU time"))? - cpu;
        load.kept_cpu_ns.push(spent as f64 / f64::from(requests));

        for _ in 0..requests {
            let start_ns = monotonic_ns();
            let mut client = Client::connect(&self.socket).map_err(&asked)?;
            client
                .ask()
                .and_then(|()| client.answer())
                .map_err(&asked)?;
            drop(client);
            load.fresh_ns.push(monotonic_ns() - start_ns);
        }

        let mut clients = (0..connections)
            .map(|_| Client::connect(&self.socket))
            .collect::<io::Result<Vec<_>>>()
            .map_err(&asked)?;
        let start_ns = monotonic_ns();
        let times = requests.div_ceil(connections);
        for _ in 0..times {
            for client in &mut clients {
                client.ask().map_err(&asked)?;
            }
            for client in &mut clients {
                client.answer().map_err(&asked)?;
            }
        }
        let seconds = (monotonic_ns() - start_ns) as f64 / 1e9;
        load.rates.push(f64::from(times * connections) / seconds);
        if signals::stopped() {
            return Err(Failure::Interrupted);
        }
        Ok(())
    }
}

/// CPU time of all threads of a process, as the scheduler counts it. Threads that are over are not in it.
fn cpu_ns(pid: i32) -> io::Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let time = text
            .split(' ')
            .next()
            .and_then(|time| time.parse::<u64>().ok());
        sum += time.ok_or(io::ErrorKind::InvalidData)?;
    }
    Ok(sum)
}

fn rss_kib(pid: i32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_takes_time_and_memory() {
        let pid = std::process::id() as i32;
        assert!(cpu_ns(pid).unwrap() > 0);
        assert!(rss_kib(pid).unwrap() > 0);
    }
}
