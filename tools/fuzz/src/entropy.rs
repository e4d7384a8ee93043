//! Entropy device: buffers of all shapes, limits that change, queue resets, migration.

use devices::virtio::rate_limiter::{BucketConfig, RateLimiterConfig};
use devices::virtio::rng::Entropy;
use devices::virtio::{Update, VirtioDevice};

use crate::script::{Chain, Move, Reader, Spoil};
use crate::seeds::{Reached, Seed, seed};
use crate::session::{self, Rig};

struct Source;

/// Limits as bytes say: those that are there, and small numbers.
pub fn limits(from: &mut Reader) -> RateLimiterConfig {
    let there = from.u8();
    let mut bucket = |bit: u8| {
        let bucket = BucketConfig {
            size: from.u16().into(),
            one_time_burst: (there & 4 != 0).then(|| from.u16().into()),
            refill_time: from.u16().into(),
        };
        (there & bit != 0).then_some(bucket)
    };
    RateLimiterConfig {
        bandwidth: bucket(1),
        ops: bucket(2),
    }
}

impl Rig for Source {
    fn device(&mut self) -> Box<dyn VirtioDevice> {
        Box::new(Entropy::default())
    }

    fn update(&mut self, bytes: &[u8]) -> Option<Update> {
        Some(Update::Entropy(limits(&mut Reader::new(bytes))))
    }
}

/// Runs the target.
pub fn run(data: &[u8]) -> Reached {
    let mut script = Reader::new(data);
    script.u8();
    session::follow(&mut Source, &mut script)
}

/// Its seeds.
pub fn seeds() -> Vec<Seed> {
    let fill = |writable: &[u16]| Chain::new(0, &[], writable);
    let good = [
        fill(&[64]).offer(),
        Chain {
            indirect: true,
            ..fill(&[0, 100, 5000])
        }
        .offer(),
        Move::Kick(0),
        Move::Events(0, 0, 1),
        fill(&[64; 20]).offer(),
        Move::Kick(0),
        Move::Kick(1),
    ];
    let limited = [
        Move::Update(vec![3, 200, 0, 232, 3, 2, 0, 232, 3]),
        fill(&[200]).offer(),
        fill(&[200]).offer(),
        fill(&[200]).offer(),
        Move::Kick(0),
        Move::Migrate,
        Move::RestartQueue(0, 8),
        fill(&[9]).offer(),
        Move::Kick(0),
    ];
    let odd = |descriptor, field, value| {
        let spoil = Some(Spoil {
            descriptor,
            field,
            value,
        });
        let spoilt = Chain {
            spoil,
            ..fill(&[16, 16])
        };
        let moves = [spoilt.offer(), Move::Kick(0), Move::Restart(1 << 29, 4, 0)];
        let after = [fill(&[1]).offer(), Move::Kick(0)];
        Move::script(0, &[&moves[..], &after].concat())
    };
    vec![
        seed(
            "good",
            Move::script(0, &good),
            &["completed", "written", "bytes"],
        ),
        seed(
            "limited",
            Move::script(0, &limited),
            &["throttled", "migrations", "completed"],
        ),
        seed("address", odd(0, 0, u64::MAX), &["broken", "completed"]),
        seed("hole", odd(1, 0, 0x40_0000), &["broken"]),
        seed("length", odd(0, 1, u64::MAX), &["broken"]),
        seed("loop", odd(1, 2, 3), &["broken"]),
        seed("readable", odd(0, 2, 1), &["broken"]),
        seed("nested", odd(0, 2, 4), &["broken"]),
        seed("next", odd(0, 3, 300), &["broken"]),
        seed("head", odd(0, 4, 9999), &["broken"]),
        seed("index", odd(0, 5, 9999), &["broken"]),
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_reach_what_they_are_meant_to() {
        crate::seeds::check(super::run, super::seeds);
    }
}
