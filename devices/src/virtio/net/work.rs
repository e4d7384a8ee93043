//! The device's turns: bounded pieces of receiving, sending and obeying, and what is done about a link that is lost.

use std::io;
use std::time::{Duration, Instant};

use super::control::{self, Command};
use super::link::{Link, Wish};
use super::rx::{Failed, PATIENCE, Received};
use super::tx::Sent;
use super::{Net, both, feature};
use crate::virtio::{Broken, Progress, chain};

/// Frames that a queue is served before it is another one's turn.
const FRAMES_A_TURN: usize = 64;
/// Commands of the control queue in a turn.
const COMMANDS_A_TURN: usize = 16;
/// Time between two attempts to find a link that is lost.
const RETRY: Duration = Duration::from_secs(1);
/// Errors in a row after which a link counts as lost.
const ERRORS_IN_A_ROW: u32 = 16;

impl Net {
    /// Receives frames for one pair.
    pub(super) fn receive(&mut self, pair: usize) -> Result<Progress, Broken> {
        let up = self.up;
        let some = up || self.mmds.is_some();
        let active = self.active.as_mut();
        let Some(active) = active.filter(|active| some && pair < active.pairs.into()) else {
            return Ok(Progress::Done);
        };
        let Some(Some(rx)) = active.rx.get_mut(pair) else {
            return Ok(Progress::Done);
        };
        (rx.starved, rx.throttled) = (false, false);
        if let Some(mmds) = &mut self.mmds {
            mmds.work(Instant::now());
        }
        let mut progress = Progress::More;
        let mut lost = None;
        for _ in 0..FRAMES_A_TURN {
            if !self.rx_limiter.is_unlimited()
                && let Err(wait) = self.rx_limiter.admit(Instant::now())
            {
                self.counts.rx_throttled += 1;
                rx.throttled = true;
                progress = Progress::Wait(wait);
                break;
            }
            let (memory, features) = (&active.memory, active.features);
            let mmds = self.mmds.as_mut().filter(|_| !rx.holds());
            let own = mmds.and_then(|mmds| mmds.next_frame(Instant::now()));
            let result = match own {
                Some(frame) => rx.receive_own(memory, features, &self.link, frame),
                None if up || rx.holds() => rx.receive(memory, features, &mut self.link, pair),
                None => Ok(Received::Nothing),
            };
            match result {
                Ok(Received::Frame(len)) => {
                    self.rx_limiter.charge(len as u64);
                    self.counts.rx_packets += 1;
                    self.counts.rx_bytes += len as u64;
                    self.errors_in_a_row = 0;
                }
                Ok(Received::Dropped) => self.counts.rx_dropped_no_fit += 1,
                Ok(Received::Nothing) => {
                    progress = Progress::Done;
                    break;
                }
                Ok(Received::NoBuffers) => {
                    self.counts.rx_no_buffers += 1;
                    progress = if rx.holds() {
                        Progress::Wait(PATIENCE)
                    } else {
                        Progress::Done
                    };
                    break;
                }
                Err(Failed::Broken(broken)) => return Err(broken),
                Err(Failed::Host(error)) => {
                    self.errors_in_a_row += 1;
                    if self.link.is_lost_by(&error) || self.errors_in_a_row > ERRORS_IN_A_ROW {
                        lost = Some(error);
                        progress = Progress::Done;
                        break;
                    }
                    self.counts.rx_errors += 1;
                }
            }
        }
        if rx.wants_interrupt()? {
            active.interrupt.used(2 * pair as u16);
        }
        if let Some(error) = lost {
            self.lose(&error);
        }
        self.wait_for(pair);
        Ok(progress)
    }

    /// Sends the frames of one pair.
    pub(super) fn send(&mut self, pair: usize) -> Result<Progress, Broken> {
        let Some(active) = &mut self.active else {
            return Ok(Progress::Done);
        };
        let Some(Some(tx)) = active.tx.get_mut(pair) else {
            return Ok(Progress::Done);
        };
        // A queue that the driver has given up may still have something: it goes by one that is in use.
        let over = pair % usize::from(active.pairs.max(1));
        // Room in the host is not waited for while a limit holds the queue up: it may be there all the time.
        tx.blocked = false;
        let mut progress = Progress::More;
        let mut lost = None;
        for _ in 0..FRAMES_A_TURN {
            if !self.tx_limiter.is_unlimited()
                && let Err(wait) = self.tx_limiter.admit(Instant::now())
            {
                self.counts.tx_throttled += 1;
                progress = Progress::Wait(wait);
                break;
            }
            let up = self.up && lost.is_none();
            let link = up.then_some(&mut self.link);
            let mmds = self.mmds.as_deref_mut();
            match tx.send(&active.memory, active.features, link, over, mmds)? {
                Sent::Frame(len) | Sent::Metadata(len) => {
                    self.tx_limiter.charge(len);
                    self.counts.tx_packets += 1;
                    self.counts.tx_bytes += len;
                }
                Sent::Dropped(unsound) => self.counts.dropped(unsound),
                Sent::Failed(_) if !up => self.counts.tx_dropped_link_down += 1,
                Sent::Failed(error) if self.link.is_lost_by(&error) => {
                    self.counts.tx_dropped_link_down += 1;
                    lost = Some(error);
                }
                Sent::Failed(_) => self.counts.tx_errors += 1,
                Sent::Nothing => {
                    progress = Progress::Done;
                    break;
                }
                Sent::NoRoom => {
                    self.counts.tx_no_room += 1;
                    progress = Progress::Done;
                    break;
                }
            }
        }
        if tx.wants_interrupt()? {
            active.interrupt.used(2 * pair as u16 + 1);
        }
        if let Some(error) = lost {
            self.lose(&error);
        }
        self.wait_for(pair);
        Ok(progress)
    }

    /// Sends the frames of one pair, then receives: what the host's own network answers is there at once, and need not be
    /// waited for.
    pub(super) fn send_and_receive(&mut self, pair: usize) -> Result<Progress, Broken> {
        let before = self.counts.tx_packets;
        let progress = self.send(pair)?;
        let answered = self.link.answers_at_once() && self.counts.tx_packets != before;
        if answered && self.wish(pair).frames {
            return Ok(both(progress, self.receive(pair)?));
        }
        if self.mmds.as_ref().is_some_and(|mmds| mmds.has_frames()) {
            // A queue that the driver has given up has its answers in the first one.
            let pairs = self.active.as_ref().map_or(0, |active| active.pairs);
            let pair = if pair < pairs.into() { pair } else { 0 };
            return Ok(both(progress, self.receive(pair)?));
        }
        Ok(progress)
    }

    /// Sends what the host did not have room for.
    pub(super) fn send_the_rest(&mut self, pair: usize) -> Result<Progress, Broken> {
        if let Err(error) = self.link.flush()
            && error.kind() != io::ErrorKind::WouldBlock
        {
            self.lose(&error);
        }
        let progress = self.send(pair)?;
        if progress == Progress::More
            && let Some(active) = &mut self.active
            && let Some(Some(tx)) = active.tx.get_mut(pair)
        {
            // The next turn of this side looks at what the host tells, and no further: that there is room. The driver has not
            // been asked for a kick, so nothing else would have the rest sent.
            tx.blocked = true;
            self.wait_for(pair);
        }
        Ok(progress)
    }

    /// Carries out commands of the control queue.
    pub(super) fn obey(&mut self) -> Result<Progress, Broken> {
        let mut progress = Progress::More;
        let mut served = false;
        for _ in 0..COMMANDS_A_TURN {
            if let Err(wait) = self.commands_limiter.admit(Instant::now()) {
                progress = Progress::Wait(wait);
                break;
            }
            let Some(active) = &mut self.active else {
                return Ok(Progress::Done);
            };
            let Some(ring) = &mut active.control else {
                return Ok(Progress::Done);
            };
            let Some(head) = ring.pop_or_ask(&mut active.buffers)? else {
                progress = Progress::Done;
                break;
            };
            let (mut readable, _) = chain::split(&active.memory, &active.buffers);
            let len = readable.len().min(control::LONGEST as u64) as usize;
            let mut bytes = [0; control::LONGEST];
            let bytes = bytes.get_mut(..len).unwrap_or_default();
            readable.read(bytes)?;
            let pairs = active.rx.len() as u16;
            let command = control::parse(bytes, active.features, pairs);
            self.counts.commands += 1;
            self.commands_limiter.charge(0);
            match command {
                Some(Command::Pairs(pairs)) => self.use_pairs(pairs),
                Some(Command::Offloads(offloads)) => self.take_offloads(offloads),
                None => self.counts.commands_refused += 1,
            }
            self.acknowledge(head, command.is_some())?;
            served = true;
        }
        if served
            && let Some(active) = &mut self.active
            && let (Some(ring), Some(index)) = (&mut active.control, active.control_index)
            && ring.wants_interrupt()?
        {
            active.interrupt.used(index);
        }
        Ok(progress)
    }

    /// Answers the command that was popped last.
    fn acknowledge(&mut self, head: u16, done: bool) -> Result<(), Broken> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let Some(ring) = &mut active.control else {
            return Ok(());
        };
        let (_, mut writable) = chain::split(&active.memory, &active.buffers);
        let len = writable.len().min(1);
        if len == 1 {
            writable.write(&[if done { control::OK } else { control::ERR }])?;
        }
        ring.give_back(head, len as u32)
    }

    /// What is waited for at a pair's descriptor.
    pub(super) fn wish(&self, pair: usize) -> Wish {
        let active = self.active.as_ref().filter(|_| self.up);
        active.map_or(Wish::default(), |active| Wish {
            frames: pair < active.pairs.into()
                && matches!(active.rx.get(pair), Some(Some(rx)) if !rx.starved && !rx.throttled),
            room: matches!(active.tx.get(pair), Some(Some(tx)) if tx.blocked)
                || self.link.has_unsent(),
        })
    }

    /// Waits for what a pair needs, and for nothing else.
    pub(super) fn wait_for(&mut self, pair: usize) {
        let wish = self.wish(pair);
        let result = self.waiting.want(pair, self.link.fd(pair), wish);
        if let Err(error) = result
            && self.limit.allow()
        {
            let name = &self.options.name;
            log::error!("network device {name}: cannot wait for its link: {error}");
        }
    }

    fn wait_for_all(&mut self) {
        for pair in 0..usize::from(self.options.pairs) {
            self.wait_for(pair);
        }
    }

    /// From now on the driver takes these of [`feature::GUEST_OFFLOADS`].
    pub(super) fn take_offloads(&mut self, offloads: u64) {
        let Some(active) = &mut self.active else {
            return;
        };
        active.offloads = offloads & active.features;
        if let Some(tap) = self.link.tap()
            && let Err(error) = tap.set_offloads(active.offloads)
        {
            self.lose(&error);
        }
    }

    /// From now on the driver uses so many pairs of queues.
    pub(super) fn use_pairs(&mut self, pairs: u16) {
        let Some(active) = &mut self.active else {
            return;
        };
        active.pairs = pairs.clamp(1, active.rx.len().max(1) as u16);
        if let Some(tap) = self.link.tap_mut()
            && let Err(error) = tap.use_queues(active.pairs)
        {
            self.lose(&error);
        }
        self.wait_for_all();
        self.settle();
    }

    /// Has the kernel serve the queues that it is to serve at the moment, and waits for what it has to say.
    pub(super) fn settle(&mut self) {
        let Link::Vhost(vhost) = &mut self.link else {
            return;
        };
        let mut failed = Ok(());
        if let Some(active) = &self.active {
            let pairs = if self.up && !self.paused {
                active.pairs
            } else {
                0
            };
            failed = vhost.settle(&active.memory, pairs);
        }
        let fds = vhost.fds().filter(|_| self.active.is_some()).collect();
        failed = failed.and(self.waiting.want_others(fds));
        if let Err(error) = failed {
            self.lose(&error);
        }
    }

    /// Hands on what the kernel says.
    pub(super) fn listen_to_the_kernel(&mut self) -> Result<(), Broken> {
        let Link::Vhost(vhost) = &self.link else {
            return Ok(());
        };
        let interrupt = self.active.as_ref().map(|active| &*active.interrupt);
        if !vhost.look(interrupt)? && self.up {
            self.lose(&io::Error::from_raw_os_error(libc::EBADFD));
        }
        Ok(())
    }

    /// The link is down from now on, and says so once.
    pub(super) fn lose(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.up, false) {
            return;
        }
        self.counts.link_lost += 1;
        if self.limit.allow() {
            let name = &self.options.name;
            log::warn!(
                "network device {name}: its link is lost ({error}); the guest is told that it is down"
            );
        }
        self.wait_for_all();
        self.link.close();
        self.settle();
        self.tell();
    }

    /// Tells the driver of another link status.
    fn tell(&self) {
        if let Some(active) = &self.active
            && active.features & feature::STATUS != 0
        {
            active.interrupt.config_changed();
        }
    }

    /// Tries to get a lost link back.
    pub(super) fn look_for_the_link(&mut self) {
        if self.link.can_return() && self.link.restore().is_ok() {
            self.up = true;
            self.errors_in_a_row = 0;
            log::info!("network device {}: its link is back", self.options.name);
            self.wait_for_all();
            self.tell();
        }
    }

    /// `progress`, or sooner: a lost link is looked for, and the metadata service may have something to send again.
    pub(super) fn and_what_takes_time(&mut self, progress: Progress) -> Progress {
        let look = !self.up && self.link.can_return();
        let mut progress = if look && progress == Progress::Done {
            Progress::Wait(RETRY)
        } else {
            progress
        };
        if let Some(active) = &self.active
            && matches!(active.rx.first(), Some(Some(_)))
            && let Some(mmds) = &mut self.mmds
            && let Some(time) = mmds.deadline(Instant::now())
        {
            progress = both(progress, Progress::Wait(time));
        }
        progress
    }
}
