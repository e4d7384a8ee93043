//! Who may send how much (5.10.6.3): counters of bytes modulo 2^32, one pair for each direction of a connection.

use std::num::Wrapping;

/// What may be sent to the guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outgoing {
    sent: Wrapping<u32>,
    buf_alloc: u32,
    fwd_cnt: Wrapping<u32>,
}

impl Outgoing {
    /// Takes over what a packet of the guest's says. Any numbers will do: those that make no sense leave no room.
    pub fn told(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.buf_alloc = buf_alloc;
        self.fwd_cnt = Wrapping(fwd_cnt);
    }

    /// Bytes that the guest has room for.
    pub fn room(&self) -> u32 {
        // A guest may make its buffer smaller than what is in it.
        self.buf_alloc.saturating_sub((self.sent - self.fwd_cnt).0)
    }

    /// Counts bytes that were sent: no more than there was room for.
    pub fn sent(&mut self, bytes: u32) {
        self.sent += bytes;
    }
}

/// What the guest may send.
#[derive(Clone, Copy, Debug)]
pub struct Incoming {
    buf_alloc: u32,
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    /// What the guest knows of `forwarded`.
    told: Wrapping<u32>,
}

impl Incoming {
    /// With a buffer of so many bytes.
    pub fn new(buf_alloc: u32) -> Self {
        Self {
            buf_alloc,
            received: Wrapping(0),
            forwarded: Wrapping(0),
            told: Wrapping(0),
        }
    }

    /// Bytes that are in the buffer.
    pub fn held(&self) -> u32 {
        (self.received - self.forwarded).0
    }

    /// Counts bytes that have come in. False if there is no room for them: the guest has ignored its credit.
    #[must_use]
    pub fn receive(&mut self, bytes: u32) -> bool {
        let fits = bytes <= self.buf_alloc.saturating_sub(self.held());
        if fits {
            self.received += bytes;
        }
        fits
    }

    /// Counts bytes that have gone on to the host.
    pub fn forward(&mut self, bytes: u32) {
        self.forwarded += bytes.min(self.held());
    }

    /// `buf_alloc` and `fwd_cnt` for a packet to the guest.
    pub fn announce(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (self.buf_alloc, self.told.0)
    }

    /// Whether the guest believes that less than half of the buffer is free, and more is.
    pub fn news(&self) -> bool {
        let believed = (self.received - self.told).0;
        believed > self.buf_alloc / 2 && self.told != self.forwarded
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counters_wrap() {
        let mut out = Outgoing::default();
        out.told(10, u32::MAX - 3);
        out.sent = Wrapping(u32::MAX - 1);
        assert_eq!(out.room(), 8);
        out.sent(8);
        assert_eq!((out.sent.0, out.room()), (6, 0));
        out.told(10, 6);
        assert_eq!(out.room(), 10);
        // More taken than there was; a buffer that has shrunk.
        out.told(10, 7);
        assert_eq!(out.room(), 0);
        out.told(3, 2);
        assert_eq!(out.room(), 0);
    }

    #[test]
    fn the_guest_hears_when_half_is_gone() {
        let mut credit = Incoming::new(100);
        assert!(credit.receive(50));
        credit.forward(50);
        assert!(!credit.news());
        assert!(credit.receive(1));
        assert!(credit.news());
        assert_eq!(credit.announce(), (100, 50));
        assert!(!credit.news());
        assert!(!credit.receive(100));
        assert!(credit.receive(99));
        assert!(!credit.news(), "there is nothing new to say");
    }

    proptest! {
        /// Two ends that follow the rules: no more is under way than the receiver has room for, and nothing is stuck.
        #[test]
        fn two_ends_agree(
            start in any::<u32>(),
            size in 1_u32..100_000,
            steps in prop::collection::vec((0_u8..3, 0_u32..200_000), 1..200),
        ) {
            let mut sender = Outgoing { sent: Wrapping(start), buf_alloc: size, fwd_cnt: Wrapping(start) };
            let mut receiver = Incoming {
                buf_alloc: size,
                received: Wrapping(start),
                forwarded: Wrapping(start),
                told: Wrapping(start),
            };
            for (kind, amount) in steps {
                match kind {
                    0 => {
                        let bytes = amount.min(sender.room());
                        sender.sent(bytes);
                        prop_assert!(receiver.receive(bytes));
                    }
                    1 => receiver.forward(amount),
                    _ => {
                        let (buf_alloc, fwd_cnt) = receiver.announce();
                        sender.told(buf_alloc, fwd_cnt);
                        prop_assert_eq!(sender.room(), size - receiver.held());
                    }
                }
                prop_assert!(receiver.held() <= size);
            }
            // Once all is forwarded, whoever waits for room hears of it.
            receiver.forward(u32::MAX);
            prop_assert!(receiver.news() || sender.room() >= size / 2);
        }

        /// Whatever a guest says, no more is sent than it says there is room for.
        #[test]
        fn a_liar_gets_no_more_than_it_asked_for(
            steps in prop::collection::vec((any::<u32>(), any::<u32>(), any::<u32>()), 1..50),
        ) {
            let mut out = Outgoing::default();
            for (buf_alloc, fwd_cnt, bytes) in steps {
                out.told(buf_alloc, fwd_cnt);
                let bytes = bytes.min(out.room());
                prop_assert!(bytes <= buf_alloc);
                out.sent(bytes);
                prop_assert!(bytes == 0 || (out.sent - Wrapping(fwd_cnt)).0 <= buf_alloc);
            }
        }
    }
}
