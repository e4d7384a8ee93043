//! What a network device counts.

use super::header::Unsound;
use crate::virtio::Counters;

/// Frames, unless something else is said; bytes are those of frames without the virtio header.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    /// Dropped: longer than the driver's buffers, or no frame at all.
    pub rx_dropped_no_fit: u64,
    /// Errors of the host when it was asked for a frame.
    pub rx_errors: u64,
    /// Times that the driver had no buffers.
    pub rx_no_buffers: u64,
    /// Times that the limit was reached.
    pub rx_throttled: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    /// Dropped: shorter than their headers.
    pub tx_dropped_short: u64,
    /// Dropped: longer than any frame.
    pub tx_dropped_long: u64,
    /// Dropped: the virtio header is wrong.
    pub tx_dropped_header: u64,
    /// Dropped: the link is down.
    pub tx_dropped_link_down: u64,
    /// Dropped: the host did not take them.
    pub tx_errors: u64,
    /// Times that the host had no room.
    pub tx_no_room: u64,
    /// Times that the limit was reached.
    pub tx_throttled: u64,
    /// Commands of the control queue, and those of them that were refused.
    pub commands: u64,
    pub commands_refused: u64,
    /// Times that the link was lost.
    pub link_lost: u64,
}

impl Counts {
    /// Counts a frame of the driver's that was dropped.
    pub fn dropped(&mut self, unsound: Unsound) {
        match unsound {
            Unsound::TooShort => self.tx_dropped_short += 1,
            Unsound::TooLong => self.tx_dropped_long += 1,
            Unsound::Header => self.tx_dropped_header += 1,
        }
    }

    /// By name.
    pub fn list(&self) -> Counters {
        vec![
            ("rx_packets", self.rx_packets),
            ("rx_bytes", self.rx_bytes),
            ("rx_dropped_no_fit", self.rx_dropped_no_fit),
            ("rx_errors", self.rx_errors),
            ("rx_no_buffers", self.rx_no_buffers),
            ("rx_throttled", self.rx_throttled),
            ("tx_packets", self.tx_packets),
            ("tx_bytes", self.tx_bytes),
            ("tx_dropped_short", self.tx_dropped_short),
            ("tx_dropped_long", self.tx_dropped_long),
            ("tx_dropped_header", self.tx_dropped_header),
            ("tx_dropped_link_down", self.tx_dropped_link_down),
            ("tx_errors", self.tx_errors),
            ("tx_no_room", self.tx_no_room),
            ("tx_throttled", self.tx_throttled),
            ("commands", self.commands),
            ("commands_refused", self.commands_refused),
            ("link_lost", self.link_lost),
        ]
    }
}
