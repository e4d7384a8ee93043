//! Balloon: pages that are given and taken back by number, reports of free ranges, statistics, sizes that change.
//!
//! What was given is gone, so nothing is expected of memory's contents here; page numbers are kept away from the rings
//! themselves, as a driver's are.

use devices::virtio::balloon::{Balloon, Settings, Wanted};
use devices::virtio::{Update, VirtioDevice};

use crate::memory::TABLES;
use crate::script::{Chain, Move, Reader, Spoil};
use crate::seeds::{Reached, Seed, seed};
use crate::session::{self, Rig};

/// MiB of memory that the balloon is told there are: no more than that can be wanted.
const MEMORY: u64 = 5;

/// Settings by bits.
pub struct Pages(pub u8);

impl Rig for Pages {
    fn device(&mut self) -> Box<dyn VirtioDevice> {
        Box::new(Balloon::new(Settings {
            memory_mib: MEMORY,
            deflate_on_oom: self.0 & 1 == 0,
            free_page_reporting: self.0 & 2 == 0,
            wanted: Wanted {
                amount_mib: 1,
                stats_polling_interval_s: (self.0 >> 2 & 1).into(),
            },
        }))
    }

    fn update(&mut self, bytes: &[u8]) -> Option<Update> {
        let mut from = Reader::new(bytes);
        Some(Update::Balloon(Wanted {
            amount_mib: from.u32(),
            stats_polling_interval_s: from.u16(),
        }))
    }

    fn keeps_memory(&self) -> bool {
        false
    }

    fn polish(&mut self, queue: u8, bytes: &mut Vec<u8>) {
        if queue > 1 {
            return;
        }
        for number in bytes.chunks_exact_mut(4) {
            let page = u32::from_le_bytes([number[0], number[1], number[2], number[3]]);
            if u64::from(page) < TABLES.end / 4096 {
                number[1] |= 1;
            }
        }
    }
}

/// Runs the target.
pub fn run(data: &[u8]) -> Reached {
    let mut script = Reader::new(data);
    let choice = script.u8();
    session::follow(&mut Pages(choice), &mut script)
}

/// Its seeds.
pub fn seeds() -> Vec<Seed> {
    let numbers =
        |pages: &[u32]| -> Vec<u8> { pages.iter().flat_map(|n| n.to_le_bytes()).collect() };
    let pages = numbers(&[0x110, 0x111, 0x113, 0x112, 0xf_ffff, u32::MAX]);
    let inflate = [
        Move::ReadConfig(0, 4),
        Chain {
            cuts: vec![3, 4],
            ..Chain::new(0, &pages, &[])
        }
        .offer(),
        Move::Kick(0),
        Move::WriteConfig(4, vec![4, 0, 0, 0]),
        Move::Update(vec![2, 0, 0, 0, 0, 0]),
        Chain::new(1, &pages[..8], &[]).offer(),
        Move::Kick(1),
        Move::Update(vec![200, 0, 0, 0, 1, 0]),
        Move::Migrate,
        Chain::new(0, &pages[..3], &[5]).offer(),
        Move::Kick(0),
    ];
    let reports = [
        Chain::new(4, &[], &[4096, 60_000, 60_000, 1]).offer(),
        Move::Kick(4),
        // The other numbering.
        Move::Restart(0, 0, 4),
        Chain {
            indirect: true,
            ..Chain::new(3, &[], &[0, 50_000])
        }
        .offer(),
        Move::Kick(3),
        Move::RestartQueue(3, 8),
    ];
    let tell: Vec<u8> = (0..20_u16)
        .flat_map(|tag| [&tag.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat())
        .collect();
    let statistics = [
        Chain::new(2, &tell, &[]).offer(),
        Move::Kick(2),
        Chain::new(2, &tell[..25], &[]).offer(),
        Move::Kick(2),
        Move::Migrate,
        Move::Kick(2),
        Move::RestartQueue(2, 4),
        Chain::new(2, &tell[..10], &[7]).offer(),
        Move::Kick(2),
    ];
    let spoil = Some(Spoil {
        descriptor: 0,
        field: 1,
        value: 0x10_0000,
    });
    let huge = Chain {
        spoil,
        ..Chain::new(0, &pages, &[])
    };
    let all = Chain {
        spoil: Some(Spoil {
            descriptor: 0,
            field: 0,
            value: 0,
        }),
        ..Chain::new(4, &[], &[60_000])
    };
    vec![
        seed(
            "inflate",
            Move::script(0, &inflate),
            &[
                "inflate_count",
                "inflated_bytes",
                "deflate_count",
                "release_fails",
                "config_changes",
            ],
        ),
        seed(
            "reports",
            Move::script(0, &reports),
            &[
                "free_page_report_count",
                "free_page_report_freed",
                "completed",
            ],
        ),
        seed(
            "statistics",
            Move::script(4, &statistics),
            &["stats_updates_count", "completed", "swap_in"],
        ),
        seed(
            "huge",
            Move::script(0, &[huge.offer(), Move::Kick(0)]),
            &["inflate_count"],
        ),
        seed(
            "everything",
            Move::script(0, &[all.offer(), Move::Kick(4)]),
            &["free_page_report_freed"],
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
