//! Network device at a tap of the kernel's, in a network of this thread's own: frames with offloads, commands of the control queue,
//! one or two pairs of queues, an interface that goes down and comes up.
//!
//! Where this process may not make such a network, the target does nothing, and its seeds say so.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};

use devices::virtio::net::header::LEN;
use devices::virtio::net::tap::Tap;
use devices::virtio::net::{Link, Net, Options, feature};
use devices::virtio::rate_limiter::RateLimiterConfig;
use devices::virtio::{Update, VirtioDevice};

use crate::entropy::limits;
use crate::script::{Chain, Move, Reader};
use crate::seeds::{Reached, Seed, seed};
use crate::session::{self, Rig};

const NAME: &str = "fuzz0";

/// An `ifreq` for the tap.
fn request(flags: i32) -> libc::ifreq {
    // SAFETY: all zeroes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(NAME.bytes()) {
        *slot = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as i16;
    request
}

fn done(result: i32) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A network of the thread's own, with a tap that stays and nobody who speaks by himself.
fn make_network() -> io::Result<()> {
    // SAFETY: unshare takes no pointer.
    done(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    for which in ["all", "default"] {
        // A kernel without IPv6 has no such file.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1");
    }
    let tap = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    let request = request(flags);
    // SAFETY: the kernel reads and writes an ifreq.
    done(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF as _, &request) })?;
    // SAFETY: it takes a number.
    done(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETPERSIST as _, 1) })
}

/// A socket that sends and gets the interface's frames.
fn packet_socket() -> io::Result<File> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes no pointer.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, protocol.into()) };
    done(fd)?;
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { File::from_raw_fd(fd) };
    // SAFETY: all zeroes are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    // SAFETY: the name ends with a zero byte.
    address.sll_ifindex = unsafe { libc::if_nametoindex(c"fuzz0".as_ptr()) } as i32;
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel reads a sockaddr_ll.
    done(unsafe { libc::bind(fd, (&raw const address).cast(), len) })?;
    Ok(socket)
}

struct Wire {
    pairs: u16,
    socket: File,
    frames: u64,
}

impl Wire {
    fn new(pairs: u16) -> io::Result<Self> {
        let wire = Self {
            pairs,
            socket: packet_socket()?,
            frames: 0,
        };
        wire.set_up(true)?;
        Ok(wire)
    }

    fn set_up(&self, up: bool) -> io::Result<()> {
        let request = request(if up { libc::IFF_UP } else { 0 });
        // SAFETY: the kernel reads an ifreq.
        done(unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) })
    }
}

impl Rig for Wire {
    fn device(&mut self) -> Box<dyn VirtioDevice> {
        let tap = Tap::open(NAME, self.pairs).expect("the tap is there");
        let options = Options {
            name: "eth0".into(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: None,
            pairs: self.pairs,
            rx_limits: RateLimiterConfig::default(),
            tx_limits: RateLimiterConfig::default(),
        };
        let device = Net::new(options, Link::Tap(tap));
        Box::new(device.expect("an epoll"))
    }

    fn host(&mut self, bytes: &[u8]) {
        let mut from = Reader::new(bytes);
        match from.u8() % 4 {
            0 => {
                let frame = vec![0x42; 14 + usize::from(from.u16() % 1501)];
                // The interface may be down, its queue full.
                let _ = self.socket.write(&frame);
            }
            1 => {
                let _ = self.socket.write(from.bytes(2048));
            }
            2 => {
                let mut frame = vec![0; 70_000];
                while self.socket.read(&mut frame).is_ok_and(|len| len > 0) {
                    self.frames += 1;
                }
            }
            _ => self.set_up(from.u8() & 1 != 0).expect("an interface"),
        }
    }

    fn update(&mut self, bytes: &[u8]) -> Option<Update> {
        let mut from = Reader::new(bytes);
        let rx = limits(&mut from);
        let tx = limits(&mut from);
        Some(Update::Net { rx, tx })
    }

    fn reached(&self) -> Vec<(&'static str, u64)> {
        vec![("frames", self.frames)]
    }
}

/// Whether there is a network to do it in; made when it is first asked for.
fn is_possible() -> bool {
    thread_local! {
        static MADE: bool = match make_network() {
            Ok(()) => true,
            Err(error) => {
                eprintln!("no tap can be made here ({error}): nothing is tried");
                false
            }
        };
    }
    MADE.with(|made| *made)
}

/// Runs the target.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) -> Reached {
    if !is_possible() {
        return Reached::new();
    }
    let mut script = Reader::new(data);
    let pairs = 1 + u16::from(script.u8() & 1);
    let mut wire = Wire::new(pairs).expect("a socket at the tap");
    session::follow(&mut wire, &mut script)
}

/// Its seeds.
pub fn seeds() -> Vec<Seed> {
    let frame = |queue, header: [u8; LEN], padding| Chain {
        padding,
        cuts: vec![12, 14],
        ..Chain::new(
            queue,
            &[&header[..], &[0xff; 12], &[8, 0, 0x45]].concat(),
            &[],
        )
    };
    let tcp = [1, 1, 54, 0, 200, 0, 34, 0, 16, 0, 0, 0];
    let room = |queue| Chain::new(queue, &[], &[600, 1500]).offer();
    let host = |bytes: &[u8]| Move::Host(bytes.to_vec());
    let command = |queue, bytes: &[u8]| Chain::new(queue, bytes, &[1]).offer();
    let one = [
        frame(1, [0; LEN], 60).offer(),
        frame(1, tcp, 1000).offer(),
        frame(1, [1, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 60).offer(),
        Move::Kick(1),
        host(&[2]),
        room(0),
        room(0),
        Move::Kick(0),
        host(&[0, 220, 5]),
        host(&[0, 60, 0]),
        command(2, &[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]),
        command(2, &[1, 0, 1]),
        Move::Kick(2),
        host(&[3, 0]),
        frame(1, [0; LEN], 60).offer(),
        Move::Kick(1),
        host(&[3, 1]),
        Move::RestartQueue(0, 16),
        Move::Migrate,
        frame(1, [0; LEN], 60).offer(),
        Move::Kick(1),
    ];
    let two = [
        command(4, &[4, 0, 2, 0]),
        Move::Kick(4),
        frame(3, [0; LEN], 60).offer(),
        Move::Kick(3),
        room(0),
        room(2),
        Move::Kick(0),
        Move::Kick(2),
        host(&[0, 60, 0]),
        command(4, &[4, 0, 9, 0]),
        command(4, &[4, 0, 1, 0]),
        Move::Kick(4),
        Move::Restart(feature::MQ | feature::MRG_RXBUF, 8, 0),
        room(0),
        host(&[0, 60, 0]),
    ];
    // What the kernel hands over comes when it comes, so nothing is said of what is received.
    let reaches = |all: &'static [&'static str]| if is_possible() { all } else { &[] };
    vec![
        seed(
            "one",
            Move::script(0, &one),
            reaches(&[
                "tx_packets",
                "tx_dropped_header",
                "commands",
                "commands_refused",
                "migrations",
            ]),
        ),
        seed(
            "two",
            Move::script(1, &two),
            reaches(&["tx_packets", "commands", "commands_refused"]),
        ),
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_reach_what_they_are_meant_to() {
        crate::seeds::check(super::run, super::seeds);
    }
}
