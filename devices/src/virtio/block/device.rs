//! The device as the transport and the loop know it.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use super::super::{
    Activation, Broken, Counters, DeviceState, DeviceType, Progress, QueueReset, Ring, Update,
    UpdateError, VirtioDevice, feature,
};
use super::request::Limits;
use super::{Active, Block, BlockState, CacheType, Queue, SEG_MAX, bit, config};

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn features(&self) -> u64 {
        let when = |there: bool, bits: u64| if there { bits } else { 0 };
        let writable = !self.options.disk.read_only;
        feature::COMMON
            | bit::SEG_MAX
            | bit::BLK_SIZE
            | when(self.geometry.physical > self.geometry.block, bit::TOPOLOGY)
            | when(!writable, bit::RO)
            | when(
                self.options.cache == CacheType::Writeback,
                bit::FLUSH | bit::CONFIG_WCE,
            )
            | when(self.sizes.len() > 1, bit::MQ)
            | when(self.geometry.discard, bit::DISCARD)
            | when(self.geometry.write_zeroes, bit::WRITE_ZEROES)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let fields = config::Fields {
            geometry: &self.geometry,
            seg_max: SEG_MAX,
            queues: self.sizes.len() as u16,
            writeback: self.writeback,
        };
        config::read(&fields, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // 5.2.5.2: the one field that may be written, where it is offered.
        if let (config::WRITEBACK, [value]) = (offset, data)
            && self.options.cache == CacheType::Writeback
        {
            self.writeback = *value != 0;
        }
    }

    fn activate(&mut self, mut activation: Activation) {
        let has = |bit: u64| activation.features & bit != 0;
        if !has(bit::CONFIG_WCE) {
            // 5.2.6.2: without flushes, each write is safe when it is given back.
            self.writeback = has(bit::FLUSH);
        }
        let limits = Limits {
            sectors: self.geometry.sectors(),
            read_only: self.options.disk.read_only,
            flush: has(bit::FLUSH),
            discard: has(bit::DISCARD),
            write_zeroes: has(bit::WRITE_ZEROES),
            range_sectors: self.geometry.clear_most,
        };
        let rings = std::mem::take(&mut activation.rings);
        let queues = rings.into_iter().map(|ring| ring.map(Queue::new));
        let queues = queues.collect();
        self.active = Some(Active {
            activation,
            queues,
            limits,
        });
    }

    fn process(&mut self, queue: u16) -> Result<Progress, Broken> {
        if let Some(broken) = self.broken.take() {
            return Err(broken);
        }
        match self.turn(queue)? {
            Progress::Done => self.serve_waiting(),
            progress => Ok(progress),
        }
    }

    fn host_event(&self) -> Option<BorrowedFd<'_>> {
        self.work.event()
    }

    fn process_host(&mut self) -> Result<Progress, Broken> {
        if let Some(broken) = self.broken.take() {
            return Err(broken);
        }
        self.work.submit();
        self.reap()?;
        self.give_back()?;
        self.serve_waiting()
    }

    fn queue_reset(&mut self) -> Option<&mut dyn QueueReset> {
        Some(self)
    }

    fn quiesce(&mut self) {
        if let Err(broken) = self.settle().and_then(|()| self.give_back()) {
            self.work.drain();
            self.broken = Some(broken);
        }
        self.remind();
    }

    fn update(&mut self, update: &Update) -> Result<(), UpdateError> {
        let Update::Block(update) = update else {
            return Err(UpdateError::Unsupported);
        };
        self.quiesce();
        let swapped = match &update.path {
            Some(path) => self.swap(path.clone(), update.reopen)?,
            None => false,
        };
        if let Err(error) = self.disk.measure() {
            return Err(UpdateError::Refused(format!(
                "cannot learn the size of {}: {error}",
                self.options.disk.path.display()
            )));
        }
        self.limiter.update(&update.limits, Instant::now());
        self.resized(swapped);
        Ok(())
    }

    fn counters(&self) -> Counters {
        let counts = &self.counts;
        vec![
            ("reads", counts.reads),
            ("read_bytes", counts.read_bytes),
            ("writes", counts.writes),
            ("written_bytes", counts.written_bytes),
            ("flushes", counts.flushes),
            ("discards", counts.discards),
            ("discarded_bytes", counts.discarded_bytes),
            ("write_zeroes", counts.write_zeroes),
            ("zeroed_bytes", counts.zeroed_bytes),
            ("errors", counts.errors),
            ("throttled", counts.throttled),
            ("in_flight_max", self.work.most_under_way()),
        ]
    }

    fn reset(&mut self) {
        self.work.drain();
        self.active = None;
        self.broken = None;
        self.writeback = true;
    }

    fn save(&self) -> DeviceState {
        let queues = self.active.iter().flat_map(|active| &active.queues);
        let position = |queue: &Option<Queue>| queue.as_ref().map(|queue| queue.ring.save());
        DeviceState::Block(BlockState {
            rings: queues.map(position).collect(),
            writeback: self.writeback,
        })
    }

    fn restore(&mut self, state: &DeviceState) {
        let DeviceState::Block(state) = state else {
            return;
        };
        self.writeback = state.writeback;
        let queues = self.active.iter_mut().flat_map(|active| &mut active.queues);
        for (queue, position) in queues.zip(&state.rings) {
            if let (Some(queue), Some(position)) = (queue, position) {
                queue.ring.restore(*position);
            }
        }
    }
}

impl QueueReset for Block {
    fn reset_queue(&mut self, queue: u16) {
        let active = self.active.as_mut();
        if let Some(queue) = active.and_then(|active| active.queues.get_mut(usize::from(queue))) {
            *queue = None;
        }
        // What is under way for it ends with nobody told; the other queues hear of theirs.
        self.quiesce();
    }

    fn start_queue(&mut self, queue: u16, ring: Ring) {
        let active = self.active.as_mut();
        if let Some(place) = active.and_then(|active| active.queues.get_mut(usize::from(queue))) {
            *place = Some(Queue::new(ring));
        }
    }
}
