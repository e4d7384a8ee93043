//! What every transport has: device status, feature negotiation and the setup of queues.

use std::sync::atomic::{AtomicU8, Ordering};

use serde::{Deserialize, Serialize};

use super::{Broken, Memory, Ring, feature};

/// The device status byte (2.1). Shared with the device's loop, which may set [`NEEDS_RESET`](Self::NEEDS_RESET).
#[derive(Debug, Default)]
pub struct Status(AtomicU8);

impl Status {
    /// The guest has found the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The guest knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Features are agreed on.
    pub const FEATURES_OK: u8 = 8;
    /// The device cannot go on without a reset.
    pub const NEEDS_RESET: u8 = 64;
    /// The guest has given up.
    pub const FAILED: u8 = 128;

    /// The byte.
    pub fn get(&self) -> u8 {
        self.0.load(Ordering::Acquire)
    }

    /// Whether all of `bits` are set.
    pub fn has(&self, bits: u8) -> bool {
        self.get() & bits == bits
    }

    /// Sets bits; returns those that were set before.
    pub fn set(&self, bits: u8) -> u8 {
        self.0.fetch_or(bits, Ordering::AcqRel)
    }

    fn clear(&self) {
        self.0.store(0, Ordering::Release);
    }
}

/// What a transport shall do after a status was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// Nothing.
    Stay,
    /// Start the device: the driver is ready.
    Start,
    /// Stop the device: the guest has given up.
    Stop,
    /// Stop the device, then call [`Negotiation::reset`].
    Reset,
}

/// One queue as the driver sets it up (4.1.4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSetup {
    /// Largest size.
    pub max: u16,
    /// Size.
    pub size: u16,
    /// Whether it is enabled; its setup is fixed from then on.
    pub enabled: bool,
    /// Addresses of descriptor table, driver area and device area.
    pub areas: [u64; 3],
}

impl QueueSetup {
    /// As before the driver sets it up.
    fn unused(max: u16) -> Self {
        Self {
            max,
            size: max,
            ..Self::default()
        }
    }
}

/// Features and queues on their way to `DRIVER_OK`.
#[derive(Debug)]
pub struct Negotiation {
    offered: u64,
    state: NegotiationState,
}

/// Saved [`Negotiation`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NegotiationState {
    /// Status byte.
    pub status: u8,
    /// Features that the driver has accepted.
    pub accepted: u64,
    /// Which half of the offered features is shown.
    pub offered_select: u32,
    /// Which half of the accepted features is written.
    pub accepted_select: u32,
    /// Which queue the queue registers mean.
    pub queue_select: u16,
    /// The queues.
    pub queues: Vec<QueueSetup>,
}

impl Negotiation {
    /// With these features and largest queue sizes.
    pub fn new(offered: u64, sizes: &[u16]) -> Self {
        let queues = sizes.iter().map(|max| QueueSetup::unused(*max));
        Self {
            offered,
            state: NegotiationState {
                queues: queues.collect(),
                ..NegotiationState::default()
            },
        }
    }

    /// Everything as before the first access.
    pub fn reset(&mut self, status: &Status) {
        let sizes: Vec<_> = self.state.queues.iter().map(|queue| queue.max).collect();
        *self = Self::new(self.offered, &sizes);
        status.clear();
    }

    /// The driver writes the status (2.1.1, 3.1.1). Bits are only ever added; what is out of order has no effect.
    pub fn write_status(&mut self, status: &Status, value: u8) -> Step {
        if value == 0 {
            return Step::Reset;
        }
        let old = status.get();
        if old & Status::FAILED != 0 {
            return Step::Stay;
        }
        let new = value & !old;
        if new & Status::FAILED != 0 {
            status.set(Status::FAILED);
            return Step::Stop;
        }
        let greeting = Status::ACKNOWLEDGE | Status::DRIVER;
        status.set(new & greeting);
        if new & Status::FEATURES_OK != 0 && status.has(greeting) && self.acceptable() {
            status.set(Status::FEATURES_OK);
        }
        let ready = new & Status::DRIVER_OK != 0 && status.has(Status::FEATURES_OK);
        if ready && !status.has(Status::NEEDS_RESET) {
            status.set(Status::DRIVER_OK);
            return Step::Start;
        }
        Step::Stay
    }

    /// Nothing that was not offered, and no legacy driver (2.2.2, 6.1).
    fn acceptable(&self) -> bool {
        let accepted = self.state.accepted;
        accepted & !self.offered == 0 && accepted & feature::VERSION_1 != 0
    }

    /// Features that the driver has accepted.
    pub fn accepted(&self) -> u64 {
        self.state.accepted
    }

    /// The selectors: offered features, accepted features, queue.
    pub fn selectors(&mut self) -> (&mut u32, &mut u32, &mut u16) {
        let state = &mut self.state;
        (
            &mut state.offered_select,
            &mut state.accepted_select,
            &mut state.queue_select,
        )
    }

    /// The selected half of the offered features.
    pub fn offered_half(&self) -> u32 {
        half(self.offered, self.state.offered_select)
    }

    /// The selected half of the accepted features.
    pub fn accepted_half(&self) -> u32 {
        half(self.state.accepted, self.state.accepted_select)
    }

    /// The driver accepts features; without effect once they are agreed on.
    pub fn accept_half(&mut self, status: &Status, value: u32) {
        let value = u64::from(value);
        if status.has(Status::FEATURES_OK) {
            return;
        }
        let accepted = &mut self.state.accepted;
        match self.state.accepted_select {
            0 => *accepted = (*accepted & !0xffff_ffff) | value,
            1 => *accepted = (*accepted & 0xffff_ffff) | (value << 32),
            // There are no features there to be accepted.
            _ => {}
        }
    }

    /// Number of queues.
    pub fn queues(&self) -> u16 {
        self.state.queues.len() as u16
    }

    /// The selected queue; `None` where there is none.
    pub fn queue(&self) -> Option<&QueueSetup> {
        self.state.queues.get(usize::from(self.state.queue_select))
    }

    /// Number and setup of the selected queue, while the driver may change it.
    pub fn queue_to_set_up(&mut self) -> Option<(u16, &mut QueueSetup)> {
        let index = self.state.queue_select;
        let queue = self.state.queues.get_mut(usize::from(index))?;
        (!queue.enabled).then_some((index, queue))
    }

    /// The driver writes half an area's address of the selected queue: the low halves have even numbers.
    pub fn write_area_half(&mut self, half: usize, value: u32) {
        let queue = self.queue_to_set_up();
        if let Some(area) = queue.and_then(|(_, queue)| queue.areas.get_mut(half / 2)) {
            let shift = 32 * (half % 2);
            *area = (*area & !(0xffff_ffff << shift)) | (u64::from(value) << shift);
        }
    }

    /// The driver enables the selected queue: its number and the queue itself, unless it is not there or enabled
    /// already. Not before features are agreed on (3.1.1, step 7).
    ///
    /// # Errors
    /// [`Broken`]: size or addresses are impossible.
    pub fn enable_queue(
        &mut self,
        status: &Status,
        memory: &Memory,
    ) -> Result<Option<(u16, Ring)>, Broken> {
        if !status.has(Status::FEATURES_OK) {
            return Err(Broken("a queue is enabled before features are agreed on"));
        }
        let features = self.state.accepted;
        let Some((index, queue)) = self.queue_to_set_up() else {
            return Ok(None);
        };
        let ring = Ring::new(queue, features, memory)?;
        queue.enabled = true;
        Ok(Some((index, ring)))
    }

    /// The driver disables the selected queue: its number, if it was enabled.
    pub fn disable_queue(&mut self) -> Option<u16> {
        let index = self.state.queue_select;
        let queue = self.state.queues.get_mut(usize::from(index))?;
        std::mem::take(&mut queue.enabled).then_some(index)
    }

    /// The selected queue is as before it was set up (2.6.1): its number, if it is there.
    pub fn reset_queue(&mut self) -> Option<u16> {
        let index = self.state.queue_select;
        let queue = self.state.queues.get_mut(usize::from(index))?;
        *queue = QueueSetup::unused(queue.max);
        Some(index)
    }

    /// The enabled queues, ready to be used.
    ///
    /// # Errors
    /// [`Broken`], where a restored state is not sound.
    pub fn rings(&self, memory: &Memory) -> Result<Vec<Option<Ring>>, Broken> {
        let ring = |queue: &QueueSetup| {
            queue
                .enabled
                .then(|| Ring::new(queue, self.state.accepted, memory))
                .transpose()
        };
        self.state.queues.iter().map(ring).collect()
    }

    /// The state to carry on from elsewhere.
    pub fn save(&self, status: &Status) -> NegotiationState {
        NegotiationState {
            status: status.get(),
            ..self.state.clone()
        }
    }

    /// Carries on from `state`.
    pub fn restore(&mut self, status: &Status, state: &NegotiationState) {
        let maxima: Vec<_> = self.state.queues.iter().map(|queue| queue.max).collect();
        self.state = state.clone();
        self.state
            .queues
            .resize(maxima.len(), QueueSetup::default());
        for (queue, max) in self.state.queues.iter_mut().zip(maxima) {
            queue.max = max;
        }
        status.clear();
        status.set(state.status);
    }
}

fn half(bits: u64, select: u32) -> u32 {
    match select {
        0 => bits as u32,
        1 => (bits >> 32) as u32,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
