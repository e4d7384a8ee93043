//! Kinds of devices: how each is used by a driver in good order.

use serde_json::{Value, json};
use tests::vm::VmBuilder;

use super::driver::{
    BUFFER, Descriptor, Device, NEXT, Transport, WRITE, describe, offer, wait_for_used,
};
use super::script::Script;

/// What a disk begins with.
pub const MARK: &[u8; 8] = b"hostile!";
/// Page that a balloon is given: behind the buffers.
const PAGE: u64 = 0xd0_0000 >> 12;

/// The guest's address as a socket device has it.
const GUEST_CID: u64 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Block,
    Net,
    Entropy,
    Balloon,
    Vsock,
    Console,
}

/// In the order in which a machine has them.
pub const ALL: [Kind; 6] = [
    Kind::Block,
    Kind::Net,
    Kind::Entropy,
    Kind::Balloon,
    Kind::Vsock,
    Kind::Console,
];

impl Kind {
    fn number(self) -> u32 {
        match self {
            Self::Net => 1,
            Self::Block => 2,
            Self::Console => 3,
            Self::Entropy => 4,
            Self::Balloon => 5,
            Self::Vsock => 19,
        }
    }

    /// Number of queues in a machine of two vCPUs.
    fn queues(self) -> u16 {
        match self {
            Self::Block | Self::Net | Self::Console => 2,
            Self::Entropy => 1,
            Self::Vsock => 3,
            Self::Balloon => 5,
        }
    }

    /// Features of its own that a driver takes.
    fn features(self) -> u64 {
        match self {
            // Several queues.
            Self::Block => 1 << 12,
            // Frames in several chains.
            Self::Net => 1 << 15,
            Self::Entropy | Self::Console | Self::Vsock => 0,
            // Statistics, reports.
            Self::Balloon => 1 << 1 | 1 << 5,
        }
    }

    /// Whether the device looks into a queue when it is kicked, or soon after, in this test's surroundings.
    pub fn is_eager(self, queue: u16) -> bool {
        match self {
            // The third is for hints, which it does not take.
            Self::Balloon => queue != 3,
            // There is no input, and nobody of the host's calls.
            Self::Console | Self::Vsock => queue == 1,
            Self::Block | Self::Net | Self::Entropy => true,
        }
    }

    /// Puts it into a configuration.
    pub fn configure(self, builder: &mut VmBuilder) {
        let (disk, socket) = (builder.path("disk"), builder.path("passt"));
        let (section, value): (&str, Value) = match self {
            Self::Block => (
                "drives",
                json!([{"drive_id": "data", "path_on_host": disk}]),
            ),
            Self::Net => (
                "network-interfaces",
                json!([{"iface_id": "eth0", "backend": "passt", "socket_path": socket}]),
            ),
            Self::Entropy => ("entropy", json!({})),
            Self::Balloon => (
                "balloon",
                json!({"amount_mib": 1, "deflate_on_oom": false, "free_page_reporting": true}),
            ),
            Self::Vsock => (
                "vsock",
                json!({"guest_cid": GUEST_CID, "uds_path": builder.path("vsock")}),
            ),
            Self::Console => ("console", json!({"output_path": builder.path("console")})),
        };
        builder.config[section] = value;
    }

    /// The device as its driver knows it, in a machine with all kinds.
    pub fn device(self, transport: Transport) -> Device {
        let place = ALL.iter().position(|kind| *kind == self).unwrap();
        Device {
            transport,
            place: place as u64,
            kind: self.number(),
            queues: self.queues(),
            features: self.features(),
        }
    }

    /// A chain that the device can serve, for a queue.
    fn chain(self, queue: u16) -> Vec<Descriptor> {
        match (self, queue) {
            (Self::Block, _) => vec![
                Descriptor(BUFFER, 16, NEXT, 1),
                Descriptor(BUFFER + 0x1000, 512, NEXT | WRITE, 2),
                Descriptor(BUFFER + 0x2000, 1, WRITE, 0),
            ],
            (Self::Net | Self::Console | Self::Vsock, 0) | (Self::Entropy, _) => {
                vec![Descriptor(BUFFER + 0x3000, 2048, WRITE, 0)]
            }
            // A header of zeroes and a frame of them.
            (Self::Net | Self::Console, _) => vec![Descriptor(BUFFER, 72, 0, 0)],
            // A request for a port that nobody has, which is answered.
            (Self::Vsock, 1) => vec![Descriptor(BUFFER + 0x4100, 44, 0, 0)],
            (Self::Vsock, _) => vec![Descriptor(BUFFER + 0x3000, 4, WRITE, 0)],
            (Self::Balloon, 0 | 1) => vec![Descriptor(BUFFER + 0x4000, 4, 0, 0)],
            (Self::Balloon, 4) => vec![Descriptor(PAGE << 12, 0x1000, WRITE, 0)],
            (Self::Balloon, _) => vec![Descriptor(BUFFER, 10, 0, 0)],
        }
    }

    /// Puts what a driver sends where its chains say.
    pub fn prepare(script: &mut Script) {
        // A request to read the first sector, and a network header: zeroes.
        script.clear(BUFFER, 0x5000);
        script.write(4, BUFFER + 0x4000, PAGE);
        // Addresses, ports, no payload; a stream, its request.
        let packet = BUFFER + 0x4100;
        script.write(8, packet, GUEST_CID);
        script.write(8, packet + 8, 2);
        script.write(8, packet + 16, 99 << 32 | 5);
        script.write(8, packet + 24, 1 << 48 | 1 << 32);
    }

    /// A chain in each queue, in a device that was set up.
    pub fn offer_something(self, script: &mut Script, device: &Device) {
        for queue in 0..device.queues {
            describe(script, super::driver::ring(queue), &self.chain(queue));
            offer(script, queue, &[0]);
        }
    }

    /// Uses the device as it should be, in all of its queues that answer.
    pub fn use_well(self, script: &mut Script, device: &Device) {
        Self::prepare(script);
        device.set_up(script);
        self.offer_something(script, device);
        device.start(script);
        for queue in 0..device.queues {
            device.kick(script, queue.into());
            // Statistics stay with the device until it wants more of them; a console without input keeps its buffers.
            let stays = match self {
                Self::Balloon => matches!(queue, 2 | 3),
                Self::Console => queue == 0,
                // Answers come when there is something to answer; of events there are none.
                Self::Vsock => queue != 1,
                _ => false,
            };
            if !stays {
                wait_for_used(script, queue, 1);
            }
        }
        if self == Self::Vsock {
            wait_for_used(script, 0, 1);
        }
        if self == Self::Block {
            let [low, high] =
                [&MARK[..4], &MARK[4..]].map(|half| u32::from_le_bytes(half.try_into().unwrap()));
            script.wait(4, BUFFER + 0x1000, u32::MAX, low);
            script.wait(4, BUFFER + 0x1004, u32::MAX, high);
            script.wait(1, BUFFER + 0x2000, 0xff, 0);
        }
        device.set_status(script, 0);
    }
}
