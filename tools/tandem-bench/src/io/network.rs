//! The host's side of the network: a network namespace with nothing in it but one tap at a time and the servers.
//!
//! The namespace is the benchmark's own, and that of the processes that it starts: nothing of it can meet the host's
//! addresses or firewall, and all of it goes with the last of these processes, whatever ends them.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::peer;
use crate::sys;

pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Where the host's ends of [`peer`] are.
pub const PEER_PORT: u16 = 7007;
const IPERF_PORT: u16 = 5201;
const TAP: &str = "tandem0";
/// A locally administered one.
const MAC: &str = "02:54:44:4d:00:02";

/// The namespace.
#[derive(Debug)]
pub struct Network(());

impl Network {
    /// Makes it; this process is in it from now on. It has to be called before a thread is started.
    pub fn enter() -> Result<Self, String> {
        sys::own_network().map_err(|error| {
            format!("a network namespace cannot be made: {error}; run as root, or without net (--only block)")
        })?;
        run("ip", &["link", "set", "lo", "up"])?;
        peer::serve(SocketAddr::from((Ipv4Addr::UNSPECIFIED, PEER_PORT)))
            .map_err(|error| format!("cannot listen on port {PEER_PORT}: {error}"))?;
        Ok(Self(()))
    }

    /// A tap and an iperf3 server for one VM.
    pub fn for_one_vm(&self) -> Result<Link, String> {
        run("ip", &["tuntap", "add", "dev", TAP, "mode", "tap"])?;
        // From here on it is removed again.
        let mut link = Link { iperf: None };
        let address = format!("{HOST}/24");
        run("ip", &["address", "add", &address, "dev", TAP])?;
        run("ip", &["link", "set", "dev", TAP, "up"])?;
        let iperf = Command::new("iperf3")
            .args(["--server", "--port", &IPERF_PORT.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot run iperf3: {error}; install Debian's iperf3"))?;
        link.iperf = Some(iperf);
        let start = Instant::now();
        while !listens(IPERF_PORT) {
            if start.elapsed() > Duration::from_secs(10) {
                return Err("the iperf3 server does not listen after 10 s".into());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(link)
    }

    /// What a VMM is told of it.
    pub fn interface() -> crate::adapters::Net {
        crate::adapters::Net {
            tap: TAP.into(),
            mac: MAC.into(),
        }
    }
}

/// Gone when the value is.
#[derive(Debug)]
pub struct Link {
    iperf: Option<Child>,
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(mut iperf) = self.iperf.take() {
            // It may have ended by itself.
            let _ = iperf.kill();
            let _ = iperf.wait();
        }
        let _ = run("ip", &["link", "delete", "dev", TAP]);
    }
}

/// Does a TCP socket of this namespace listen on the port?
fn listens(port: u16) -> bool {
    ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .any(|table| table.lines().any(|line| is_listener(line, port)))
}

/// `0: 00000000:1451 00000000:0000 0A ...`: local address, remote address, state.
fn is_listener(line: &str, port: u16) -> bool {
    const LISTEN: &str = "0A";
    let mut words = line.split_ascii_whitespace().skip(1);
    let local = words.next().and_then(|address| address.rsplit_once(':'));
    words.next();
    local.is_some_and(|(_, text)| u16::from_str_radix(text, 16) == Ok(port))
        && words.next() == Some(LISTEN)
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run {program}: {error}; install Debian's iproute2"))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    let command = arguments.join(" ");
    Err(format!("`{program} {command}` failed: {}", why.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_told_from_connections() {
        let listening =
            "   0: 00000000:1451 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1 1";
        let connected =
            "   1: 0100007F:1451 0100007F:A1B2 01 00000000:00000000 00:00000000 00000000 0 0 1 1";
        let six = "   0: 00000000000000000000000000000000:1451 00000000000000000000000000000000:0000 0A x";
        assert!(is_listener(listening, IPERF_PORT) && is_listener(six, IPERF_PORT));
        assert!(!is_listener(connected, IPERF_PORT) && !is_listener(listening, 5202));
        assert!(!is_listener(
            "  sl  local_address rem_address   st tx_queue",
            5201
        ));
    }
}
