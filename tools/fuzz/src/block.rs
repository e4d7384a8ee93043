//! Block device: requests of all kinds over a file of 1 MiB, by both engines, with limits, another size, another file,
//! queue resets and migration.
//!
//! Whatever the driver asks for, a file that nobody else changes keeps its length, and what is behind the disk's end keeps its
//! contents: the half of a sector there is looked at after each move.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use devices::virtio::block::disk::{DiskOptions, Format};
use devices::virtio::block::{Block, BlockOptions, BlockUpdate, CacheType, Engine};
use devices::virtio::rate_limiter::RateLimiterConfig;
use devices::virtio::{Update, VirtioDevice};
use tempfile::TempDir;

use crate::entropy::limits;
use crate::script::{Chain, Move, Reader, Spoil};
use crate::seeds::{Reached, Seed, seed};
use crate::session::{self, Rig};

/// Bytes of each file at first: 2048 sectors and half a one.
const SIZE: u64 = (1 << 20) + 256;
/// What is in that half.
const MARK: [u8; 256] = [0x77; 256];

/// The files' directory: the same one in each run.
pub fn path(number: usize) -> PathBuf {
    thread_local! {
        static DIRECTORY: TempDir = TempDir::new().expect("a temporary directory");
    }
    DIRECTORY.with(|directory| directory.path().join(format!("disk{number}")))
}

/// Two files, and how a device uses one of them.
pub struct Disks {
    /// How the device is made.
    pub options: BlockOptions,
    /// The files.
    pub files: [File; 2],
    /// Whether nobody but the device has changed them.
    pub untouched: [bool; 2],
    asynchronous: bool,
}

impl Disks {
    /// Raw files.
    ///
    /// # Errors
    /// Of the host.
    pub fn new(choice: u8) -> io::Result<Self> {
        let files = [File::create(path(0))?, File::create(path(1))?];
        for file in &files {
            file.set_len(SIZE)?;
            file.write_all_at(&MARK, SIZE - MARK.len() as u64)?;
        }
        let files = [File::options(), File::options()]
            .map(|mut options| options.read(true).write(true).clone());
        let [first, second] = files;
        let files = [first.open(path(0))?, second.open(path(1))?];
        let asynchronous = choice & 1 != 0;
        let options = BlockOptions {
            id: "rootfs".into(),
            disk: DiskOptions {
                path: path(0),
                read_only: choice & 2 != 0,
                direct: choice & 0x70 == 0x70,
                format: Format::Raw,
                backing: None,
                flushes: choice & 4 == 0,
            },
            cache: match choice & 4 {
                0 => CacheType::Writeback,
                _ => CacheType::Unsafe,
            },
            engine: asynchronous.then_some(Engine::Async).or(Some(Engine::Sync)),
            queues: 1 + u16::from(choice >> 3 & 1),
            limits: RateLimiterConfig::default(),
        };
        Ok(Self {
            options,
            files,
            untouched: [true; 2],
            asynchronous,
        })
    }

    /// Looks whether what must stay as it is has stayed so.
    ///
    /// # Panics
    /// It has not.
    pub fn check(&self) {
        for (file, untouched) in self.files.iter().zip(self.untouched) {
            let length = file.metadata().expect("the file is there").len();
            if untouched {
                assert_eq!(length, SIZE, "the file's length");
                let mut mark = MARK.map(|_| 0);
                let read = file.read_exact_at(&mut mark, SIZE - MARK.len() as u64);
                read.expect("the file can be read");
                assert_eq!(mark, MARK, "what is behind the disk's end");
            }
        }
    }
}

impl Rig for Disks {
    fn device(&mut self) -> Box<dyn VirtioDevice> {
        // Not every file system has O_DIRECT, nor every host io_uring.
        let tries = [
            (self.options.disk.direct, self.options.engine),
            (false, self.options.engine),
            (false, Some(Engine::Sync)),
        ];
        for (direct, engine) in tries {
            self.options.disk.direct = direct;
            self.options.engine = engine;
            match Block::new(self.options.clone()) {
                Ok(device) => return Box::new(device),
                Err(error) => drop(error.to_string()),
            }
        }
        panic!("no block device");
    }

    fn host(&mut self, bytes: &[u8]) {
        self.check();
        let mut from = Reader::new(bytes);
        let which = usize::from(from.u8() & 1);
        let length = u64::from(from.u32()) % (2 * SIZE);
        self.untouched[which] = false;
        self.files[which].set_len(length).expect("another length");
    }

    fn update(&mut self, bytes: &[u8]) -> Option<Update> {
        let mut from = Reader::new(bytes);
        let path = match from.u8() % 4 {
            0 => Some(path(1)),
            1 => Some(path(0)),
            2 => None,
            _ => Some("/nowhere".into()),
        };
        Some(Update::Block(BlockUpdate {
            path,
            reopen: from.u8() % 2 == 1,
            limits: limits(&mut from),
        }))
    }

    fn patience(&self) -> i32 {
        // What a page cache has is there by then; the rest comes when it comes.
        if self.asynchronous { 2 } else { 0 }
    }

    fn look(&mut self) {
        self.check();
    }
}

/// Runs the target.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) -> Reached {
    let mut script = Reader::new(data);
    let choice = script.u8();
    let mut disks = Disks::new(choice).expect("files in a temporary directory");
    session::follow(&mut disks, &mut script)
}

/// A request's bytes: type, first sector, data.
pub fn request(kind: u32, sector: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes.extend(data);
    bytes
}

/// Ranges of a discard or write-zeroes request.
pub fn ranges(list: &[(u64, u32, u32)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (sector, count, flags) in list {
        bytes.extend(sector.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    bytes
}

/// Its seeds.
pub fn seeds() -> Vec<Seed> {
    let write = |sector| Chain {
        padding: 511,
        cuts: vec![16],
        ..Chain::new(0, &request(1, sector, &[9]), &[1])
    };
    let read = |sector, lengths: &[u16]| Chain::new(0, &request(0, sector, &[]), lengths);
    let flush = || Chain::new(0, &request(4, 0, &[]), &[1]);
    let many = |chains: Vec<Chain>, after: &[Move]| {
        let mut moves = vec![Move::ReadConfig(0, 8)];
        for chain in chains {
            moves.push(chain.offer());
        }
        moves.push(Move::Kick(0));
        moves.extend_from_slice(after);
        moves
    };
    let usual = many(
        vec![
            write(0),
            read(0, &[512, 1]),
            flush(),
            Chain::new(0, &request(8, 0, &[]), &[20, 1]),
            read(2040, &[100, 412, 512, 0, 3072, 1]),
            Chain {
                indirect: true,
                ..write(2047)
            },
            Chain::new(0, &request(11, 0, &ranges(&[(8, 8, 0), (100, 0, 0)])), &[1]),
            Chain::new(0, &request(13, 0, &ranges(&[(0, 16, 1), (40, 3, 0)])), &[1]),
        ],
        &[
            Move::Migrate,
            read(0, &[512, 1]).offer(),
            Move::Kick(0),
            Move::Quiesce,
        ],
    );
    const DONE: &[&str] = &[
        "reads",
        "writes",
        "flushes",
        "discards",
        "write_zeroes",
        "completed",
        "migrations",
    ];
    let wrong = many(
        vec![
            read(2048, &[512, 1]),
            read(u64::MAX, &[512, 1]),
            read(0, &[511, 1]),
            read(0, &[1]),
            Chain::new(0, &[0; 15], &[1]),
            Chain::new(0, &request(99, 0, &[]), &[1]),
            Chain::new(0, &request(11, 0, &ranges(&[(2047, 2, 0)])), &[1]),
            Chain::new(0, &request(13, 0, &ranges(&[(0, 1, 2)])), &[1]),
            Chain::new(0, &request(11, 0, &[1; 17]), &[1]),
        ],
        &[],
    );
    let other = many(
        vec![write(3)],
        &[
            // A file that is shorter than the disk, then known to be.
            Move::Host(vec![0, 0, 2, 0, 0]),
            read(100, &[512, 1]).offer(),
            Move::Kick(0),
            Move::Update(vec![2, 0, 0]),
            read(100, &[512, 1]).offer(),
            Move::Kick(0),
            Move::Update(vec![0, 0, 0]),
            read(100, &[512, 1]).offer(),
            Move::Kick(0),
            Move::Update(vec![3, 0]),
            Move::WriteConfig(32, vec![0]),
            write(5).offer(),
            flush().offer(),
            Move::Kick(0),
            Move::RestartQueue(0, 16),
            read(5, &[512, 1]).offer(),
            Move::Kick(0),
            Move::Quiesce,
        ],
    );
    let limited = [
        // One request in a second.
        Move::Update(vec![2, 0, 2, 0, 0, 0, 0, 1, 0, 232, 3]),
        read(0, &[512, 1]).offer(),
        read(0, &[512, 1]).offer(),
        read(0, &[512, 1]).offer(),
        Move::Kick(0),
        Move::Quiesce,
    ];
    let second = [
        Chain {
            queue: 1,
            ..write(0)
        }
        .offer(),
        Chain {
            queue: 1,
            ..read(0, &[512, 1])
        }
        .offer(),
        Move::Kick(1),
        Move::Restart(1 << 9, 4, 1),
    ];
    let no_status = [
        Chain::new(0, &request(4, 0, &[]), &[]).offer(),
        Move::Kick(0),
    ];
    let spoil = Some(Spoil {
        descriptor: 1,
        field: 1,
        value: 0x20_0000,
    });
    let long = [
        Chain {
            spoil,
            ..read(0, &[512, 1])
        }
        .offer(),
        Move::Kick(0),
        Move::Quiesce,
    ];
    vec![
        seed("usual", Move::script(0, &usual), DONE),
        seed("usual-async", Move::script(1, &usual), DONE),
        seed(
            "usual-direct",
            Move::script(0x71, &usual),
            &["reads", "writes"],
        ),
        seed(
            "unsafe",
            Move::script(4, &usual),
            &["reads", "writes", "errors"],
        ),
        seed("read-only", Move::script(2, &usual), &["reads", "errors"]),
        seed("wrong", Move::script(0, &wrong), &["errors", "completed"]),
        seed(
            "other",
            Move::script(0, &other),
            &["reads", "writes", "errors", "config_changes"],
        ),
        seed(
            "other-async",
            Move::script(1, &other),
            &["reads", "writes", "errors"],
        ),
        seed(
            "limited",
            Move::script(0, &limited),
            &["throttled", "reads"],
        ),
        seed("second", Move::script(9, &second), &["reads", "writes"]),
        seed("no-status", Move::script(0, &no_status), &["broken"]),
        seed("long", Move::script(1, &long), &["errors"]),
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_reach_what_they_are_meant_to() {
        crate::seeds::check(super::run, super::seeds);
    }
}
