//! Which queue is for what (5.5.2).

use super::feature;
use crate::virtio::{Buffer, Ring, RingState};

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The driver gives pages.
    Inflate,
    /// The driver takes pages back.
    Deflate,
    /// The driver tells of its memory.
    Statistics,
    /// The driver tells of pages that are free until it uses them again.
    Reports,
}

/// Queues that there are at most.
pub const COUNT: usize = 5;

/// Those that are there only with their feature: the number that 5.5.2 gives it, feature, role.
const OPTIONAL: [(usize, u64, Role); 2] = [
    (2, feature::STATS_VQ, Role::Statistics),
    (4, feature::PAGE_REPORTING, Role::Reports),
];

/// The role of each queue, by its number.
///
/// 5.5.2 gives each queue a fixed number. Drivers number only those that they use instead, one after the other: Linux does, up
/// to now (`vp_find_vqs_msix()` in `drivers/virtio/virtio_pci_common.c`). With the same features the two set up different
/// queues, so `enabled` tells which way it is.
pub fn roles(features: u64, enabled: [bool; COUNT]) -> [Option<Role>; COUNT] {
    let used = || {
        let all = OPTIONAL.iter();
        all.filter(|(_, feature, _)| features & feature != 0)
    };
    let by_the_book = used().all(|(number, ..)| enabled.get(*number) == Some(&true));
    let mut roles = [None; COUNT];
    [roles[0], roles[1]] = [Some(Role::Inflate), Some(Role::Deflate)];
    for (next, (number, _, role)) in (2..).zip(used()) {
        let number = if by_the_book { *number } else { next };
        if let Some(slot) = roles.get_mut(number) {
            *slot = Some(*role);
        }
    }
    roles
}

/// A queue in use.
pub struct Queue {
    /// What it is for.
    pub role: Role,
    /// The ring.
    pub ring: Ring,
    /// The chain that is being worked on, if any.
    pub work: Option<Work>,
    /// Its buffers.
    pub buffers: Vec<Buffer>,
}

/// How far a chain has been worked on.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Its head.
    pub head: u16,
    /// Bytes that are done.
    pub done: u64,
}

impl Queue {
    /// Nothing of it is done yet.
    pub fn new(role: Role, ring: Ring) -> Self {
        Self {
            role,
            ring,
            work: None,
            buffers: Vec::new(),
        }
    }

    /// Its position; a chain that was not given back is still to come. Doing half of one again changes nothing.
    pub fn save(&self) -> RingState {
        let mut state = self.ring.save();
        if self.work.is_some() {
            state.next_avail = state.next_avail.wrapping_sub(1);
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_numbering_are_understood() {
        use Role::{Deflate, Inflate, Reports, Statistics};
        let (stats, reports) = (feature::STATS_VQ, feature::PAGE_REPORTING);
        for (features, enabled, expected) in [
            (0, vec![], vec![]),
            (stats, vec![2], vec![(2, Statistics)]),
            (reports, vec![4], vec![(4, Reports)]),
            (reports, vec![2], vec![(2, Reports)]),
            (
                stats | reports,
                vec![2, 4],
                vec![(2, Statistics), (4, Reports)],
            ),
            (
                stats | reports,
                vec![2, 3],
                vec![(2, Statistics), (3, Reports)],
            ),
            // A queue that was not set up has a role all the same; nothing comes of it.
            (
                stats | reports,
                vec![2],
                vec![(2, Statistics), (3, Reports)],
            ),
        ] {
            let mut flags = [true, true, false, false, false];
            for number in enabled {
                flags[number] = true;
            }
            let mut roles_expected = [Some(Inflate), Some(Deflate), None, None, None];
            for (number, role) in expected {
                roles_expected[number] = Some(role);
            }
            assert_eq!(
                roles(features, flags),
                roles_expected,
                "{features} {flags:?}"
            );
        }
    }
}
