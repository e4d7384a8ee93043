//! Images that `qemu-img` makes, and finds whole after everything that can be done with them.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use tempfile::TempDir;

use super::super::{Backing, DiskOptions, Format, open, sync, testing};
use super::*;

/// Runs `qemu-img` (Debian's package qemu-utils). Returns its exit code.
fn qemu_img(args: &[&str]) -> i32 {
    let output = testing::run(Command::new("qemu-img").args(args));
    let code = output.status.code().unwrap();
    if code > 3 || (code != 0 && args[0] != "check") {
        panic!(
            "qemu-img {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    code
}

struct Fixture {
    dir: TempDir,
    path: PathBuf,
    backing: Option<Backing>,
}

impl Fixture {
    /// An image of so many bytes.
    fn new(bytes: u64, options: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("image");
        let size = bytes.to_string();
        let text = path.to_str().unwrap();
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, text, &size]);
        Self {
            dir,
            path,
            backing: None,
        }
    }

    /// An image over a backing file with these contents.
    fn over(bytes: u64, options: &str, contents: &[u8], format: Format) -> Self {
        let mut fixture = Self::new(bytes, options);
        let raw = fixture.dir.path().join("backing.raw");
        fs::write(&raw, contents).unwrap();
        let (path, name) = match format {
            Format::Raw => (raw, "raw"),
            Format::Qcow2 => {
                let image = fixture.dir.path().join("backing.qcow2");
                let (from, to) = (raw.to_str().unwrap(), image.to_str().unwrap());
                qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "-c", from, to]);
                (image, "qcow2")
            }
        };
        let options = format!("{options},backing_fmt={name}");
        let size = bytes.to_string();
        let (below, text) = (path.to_str().unwrap(), fixture.path.to_str().unwrap());
        qemu_img(&[
            "create", "-q", "-f", "qcow2", "-b", below, "-o", &options, text, &size,
        ]);
        fixture.backing = Some(Backing { path, format });
        fixture
    }

    fn options(&self, flushes: bool) -> DiskOptions {
        DiskOptions {
            path: self.path.clone(),
            read_only: false,
            direct: false,
            format: Format::Qcow2,
            backing: self.backing.clone(),
            flushes,
        }
    }

    fn open(&self, flushes: bool) -> Box<dyn Disk> {
        open(&self.options(flushes)).unwrap()
    }

    /// What `qemu-img` reads in an image. Nobody else has it open.
    fn contents(&self, path: &Path) -> Vec<u8> {
        let raw = self.dir.path().join("raw");
        let (from, to) = (path.to_str().unwrap(), raw.to_str().unwrap());
        qemu_img(&["convert", "-f", "qcow2", "-O", "raw", from, to]);
        fs::read(raw).unwrap()
    }

    /// What would be there if the process was killed now: no errors, and these contents.
    fn check_as_if_killed(&self, expected: Option<&[u8]>) {
        let copy = self.dir.path().join("copy");
        fs::copy(&self.path, &copy).unwrap();
        // 3: leaked clusters, and nothing else.
        let code = qemu_img(&["check", "-q", "-f", "qcow2", copy.to_str().unwrap()]);
        assert!(code == 0 || code == 3, "the image is damaged ({code})");
        if let Some(expected) = expected {
            assert!(self.contents(&copy) == expected, "contents differ");
            let text = copy.to_str().unwrap();
            qemu_img(&["check", "-q", "-f", "qcow2", "-r", "leaks", text]);
            assert_eq!(qemu_img(&["check", "-q", "-f", "qcow2", text]), 0);
            assert!(self.contents(&copy) == expected, "repaired");
        }
    }

    /// The image is closed: there is nothing to find fault with.
    fn check_closed(&self, expected: &[u8]) {
        let code = qemu_img(&["check", "-q", "-f", "qcow2", self.path.to_str().unwrap()]);
        assert_eq!(code, 0);
        assert!(self.contents(&self.path) == expected, "contents differ");
    }
}

/// Moves bytes as an engine does: where the disk says, or by the disk.
fn transfer(disk: &mut dyn Disk, write: bool, at: u64, bytes: &mut [u8]) {
    let middle = bytes.len() / 3;
    let (first, second) = bytes.split_at_mut(middle);
    let mut pieces = [pieces::of(first), pieces::of(second)];
    match disk.place(write, at, &pieces) {
        Place::File { fd, at } => transfer_all(write, fd, at, &mut pieces).unwrap(),
        _ => disk.transfer(write, at, &pieces).unwrap(),
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    let byte = |index: usize| (index as u8).wrapping_mul(31).wrapping_add(seed) | 1;
    (0..len).map(byte).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, usize, u8),
    Clear(u64, usize, Clear),
    Read(u64, usize),
    Flush,
    /// Closed and opened again.
    Again,
}

/// Does all that, comparing with bytes in memory, and looks at the image again and again.
fn play(fixture: &Fixture, contents: &mut Vec<u8>, steps: &[Step], flushes: bool) {
    let mut disk = fixture.open(flushes);
    let size = contents.len() as u64;
    let clip = |at: u64, len: usize| {
        let at = at.min(size) as usize;
        (at as u64, at..at + len.min(size as usize - at))
    };
    for step in steps {
        match *step {
            Step::Write(at, len, seed) => {
                let (at, range) = clip(at, len);
                let mut bytes = pattern(range.len(), seed);
                contents[range].copy_from_slice(&bytes);
                transfer(&mut *disk, true, at, &mut bytes);
            }
            Step::Clear(at, len, how) => {
                let (at, range) = clip(at, len);
                if how == Clear::Discard && !disk.geometry().discard {
                    continue;
                }
                disk.clear(how, at, range.len() as u64).unwrap();
                if how == Clear::Discard {
                    // Anything may be there now; what is there stays.
                    let mut bytes = vec![0; range.len()];
                    transfer(&mut *disk, false, at, &mut bytes);
                    contents[range].copy_from_slice(&bytes);
                } else {
                    contents[range].fill(0);
                }
            }
            Step::Read(at, len) => {
                let (at, range) = clip(at, len);
                let mut bytes = vec![7; range.len()];
                transfer(&mut *disk, false, at, &mut bytes);
                assert!(bytes == contents[range], "read of {len} bytes at {at}");
            }
            Step::Flush => {
                sync(disk.before_sync().unwrap()).unwrap();
                fixture.check_as_if_killed(Some(contents));
            }
            Step::Again => {
                testing::close(disk);
                fixture.check_closed(contents);
                disk = fixture.open(flushes);
            }
        }
    }
    fixture.check_as_if_killed(None);
    let mut bytes = vec![7; contents.len()];
    transfer(&mut *disk, false, 0, &mut bytes);
    assert!(bytes == *contents, "all of it");
    testing::close(disk);
    fixture.check_closed(contents);
}

fn steps(size: u64) -> impl Strategy<Value = Vec<Step>> {
    let unit = size / 256;
    let place = move || {
        let near = (0..256_u64).prop_map(move |index| index * unit);
        let exact = (0..size / 512).prop_map(|sector| sector * 512);
        prop_oneof![near, exact]
    };
    let len = move || {
        let small = (1..9_usize).prop_map(|sectors| sectors * 512);
        let large = (1..40_usize).prop_map(move |units| units * unit as usize);
        prop_oneof![small, large]
    };
    let clear = prop_oneof![Just(Clear::Discard), Just(Clear::Unmap), Just(Clear::Zero)];
    let step = prop_oneof![
        6 => (place(), len(), any::<u8>()).prop_map(|(at, len, seed)| Step::Write(at, len, seed)),
        2 => (place(), len(), clear).prop_map(|(at, len, how)| Step::Clear(at, len, how)),
        2 => (place(), len()).prop_map(|(at, len)| Step::Read(at, len)),
        1 => Just(Step::Flush),
        1 => Just(Step::Again),
    ];
    prop::collection::vec(step, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 40, ..ProptestConfig::default() })]

    /// New images of all shapes.
    #[test]
    fn whatever_is_done_the_image_is_whole(
        steps in steps(1 << 20),
        shape in 0_usize..6,
        flushes: bool,
    ) {
        let shapes = [
            "cluster_size=64k",
            "cluster_size=512",
            "cluster_size=4k,refcount_bits=1",
            "cluster_size=1k,refcount_bits=64",
            "cluster_size=4k,compat=0.10",
            "cluster_size=2k,refcount_bits=8,lazy_refcounts=on",
        ];
        let fixture = Fixture::new(1 << 20, shapes[shape]);
        play(&fixture, &mut vec![0; 1 << 20], &steps, flushes);
    }

    /// Images over a backing file, raw or compressed, which is shorter than the disk.
    #[test]
    fn over_a_backing_file_too(
        steps in steps(1 << 20),
        compressed: bool,
        old: bool,
        flushes: bool,
    ) {
        let mut contents = pattern(700_000, 5);
        contents[100_000..200_000].fill(0);
        let format = if compressed { Format::Qcow2 } else { Format::Raw };
        let options = if old { "cluster_size=4k,compat=0.10" } else { "cluster_size=16k" };
        // qcow2 has whole sectors.
        contents.truncate(700_000 / 512 * 512);
        let fixture = Fixture::over(1 << 20, options, &contents, format);
        contents.resize(1 << 20, 0);
        let below = fs::read(&fixture.backing.as_ref().unwrap().path).unwrap();
        play(&fixture, &mut contents, &steps, flushes);
        prop_assert!(fs::read(&fixture.backing.as_ref().unwrap().path).unwrap() == below);
    }

    /// Images with compressed clusters of their own.
    #[test]
    fn over_compressed_clusters_too(steps in steps(1 << 20), flushes: bool) {
        let mut fixture = Fixture::over(1 << 20, "cluster_size=64k", &pattern(1 << 20, 9), Format::Qcow2);
        fixture.path = fixture.backing.take().unwrap().path;
        play(&fixture, &mut pattern(1 << 20, 9), &steps, flushes);
    }

    /// Images with a snapshot of QEMU's, which does not change.
    #[test]
    fn over_a_snapshot_too(steps in steps(1 << 20), flushes: bool) {
        let fixture = Fixture::new(1 << 20, "cluster_size=4k");
        let mut contents = vec![0; 1 << 20];
        let first = [Step::Write(0, 500_000, 3), Step::Clear(8192, 4096, Clear::Zero)];
        play(&fixture, &mut contents, &first, flushes);
        let before = contents.clone();
        let text = fixture.path.to_str().unwrap();
        qemu_img(&["snapshot", "-q", "-c", "one", text]);
        play(&fixture, &mut contents, &steps, flushes);
        qemu_img(&["snapshot", "-q", "-a", "one", text]);
        fixture.check_closed(&before);
    }
}

/// Refcount blocks and the refcount table are outgrown many times over.
#[test]
fn a_large_image_of_small_clusters() {
    let fixture = Fixture::new(24 << 20, "cluster_size=512");
    let mut contents = vec![0; 24 << 20];
    let mut steps = Vec::new();
    for number in 0..23_u64 {
        steps.push(Step::Write(number << 20, 1 << 20, number as u8));
    }
    steps.extend([
        Step::Flush,
        Step::Clear(0, 9 << 20, Clear::Discard),
        Step::Write(5 << 20, 3 << 20, 77),
        Step::Again,
        Step::Write(0, 2 << 20, 78),
    ]);
    play(&fixture, &mut contents, &steps, true);
}

#[test]
fn discards_give_space_back() {
    use std::os::unix::fs::MetadataExt;
    let fixture = Fixture::new(16 << 20, "cluster_size=64k");
    let mut disk = fixture.open(true);
    transfer(&mut *disk, true, 0, &mut pattern(8 << 20, 1));
    let space = || fs::metadata(&fixture.path).unwrap().blocks() * 512;
    let before = space();
    assert!(before > 8 << 20);
    disk.clear(Clear::Discard, 0, 8 << 20).unwrap();
    assert!(before - space() > 7 << 20, "{before} {}", space());
    // What was freed is used again.
    let len = fs::metadata(&fixture.path).unwrap().len();
    for _ in 0..4 {
        transfer(&mut *disk, true, 0, &mut pattern(4 << 20, 1));
        disk.clear(Clear::Unmap, 0, 4 << 20).unwrap();
    }
    assert!(fs::metadata(&fixture.path).unwrap().len() <= len + (16 << 20));
    testing::close(disk);
    fixture.check_closed(&vec![0; 16 << 20]);
}

#[test]
fn what_is_written_again_goes_the_short_way() {
    let fixture = Fixture::new(16 << 20, "cluster_size=64k");
    let mut disk = fixture.open(true);
    let mut bytes = pattern(1 << 20, 1);
    let pieces = [pieces::of(&mut bytes)];
    // New clusters of zeros are next to each other, too.
    for _ in 0..2 {
        assert!(matches!(
            disk.place(true, 4096, &pieces),
            Place::File { .. }
        ));
    }
    assert!(matches!(
        disk.place(false, 8192, &pieces[..1]),
        Place::File { .. } | Place::Inside
    ));
    testing::close(disk);
    // Over a backing file, a new cluster is more than a place.
    let fixture = Fixture::over(
        1 << 20,
        "cluster_size=64k",
        &pattern(1 << 20, 2),
        Format::Raw,
    );
    let mut disk = fixture.open(true);
    assert_eq!(disk.place(true, 0, &pieces), Place::Inside);
    assert_eq!(disk.place(false, 0, &pieces), Place::Inside);
}

#[test]
fn a_backing_file_is_followed_only_where_it_is_named() {
    let fixture = Fixture::over(1 << 20, "cluster_size=64k", &pattern(1000, 1), Format::Raw);
    let mut options = fixture.options(true);
    options.backing = None;
    let refused = |options: &DiskOptions| {
        // What was opened before it was refused is let go here.
        let _none_starts = testing::none_starts();
        open(options).err().unwrap()
    };
    let error = refused(&options);
    assert_eq!(error.field(), "backing_file");
    assert!(error.to_string().contains("backing.raw"), "{error}");
    let plain = Fixture::new(1 << 20, "cluster_size=64k");
    let mut options = plain.options(true);
    options.backing = fixture.backing.clone();
    let error = refused(&options);
    assert!(error.to_string().contains("has no backing file"), "{error}");
    options.backing = Some(Backing {
        path: "/nothing".into(),
        format: Format::Raw,
    });
    assert_eq!(refused(&options).field(), "backing_file");
    // A raw disk is no image, and an image is not looked for in it.
    let mut options = plain.options(true);
    options.path = fixture.backing.as_ref().unwrap().path.clone();
    let error = refused(&options);
    assert!(
        error.to_string().contains("not in the format qcow2"),
        "{error}"
    );
    // Who reads it shares it; who writes to it does not come in.
    let _first = fixture.open(true);
    let mut below = fixture.options(true);
    below.path = fixture.backing.as_ref().unwrap().path.clone();
    (below.format, below.backing) = (Format::Raw, None);
    assert!(refused(&below).to_string().contains("in use"));
    below.read_only = true;
    assert!(open(&below).is_ok());
}

/// Readers of QEMU's and of ours share a file; writers of either are kept away by both.
#[test]
fn qemu_and_we_see_each_others_locks() {
    let fixture = Fixture::new(1 << 20, "cluster_size=64k");
    let text = fixture.path.to_str().unwrap();
    let reads = |text: &str| qemu_img(&["check", "-q", "-f", "qcow2", text]) == 0;
    let resizes = |text: &str| {
        let args = ["resize", "-q", "-f", "qcow2", text, "2M"];
        let output = testing::run(Command::new("qemu-img").args(args));
        output.status.success()
    };
    let mut options = fixture.options(true);
    options.read_only = true;
    let reader = open(&options).unwrap();
    assert!(reads(text) && !resizes(text));
    testing::close(reader);
    let writer = fixture.open(true);
    assert!(!reads(text) && !resizes(text));
    testing::close(writer);
    assert!(reads(text) && resizes(text));
}

/// An image whose tables are nonsense: errors, and nothing worse.
#[test]
fn damaged_tables_are_errors() {
    let fixture = Fixture::new(4 << 20, "cluster_size=4k");
    let mut contents = vec![0; 4 << 20];
    play(&fixture, &mut contents, &[Step::Write(0, 2 << 20, 1)], true);
    let good = fs::read(&fixture.path).unwrap();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for _ in 0..150 {
        let mut bad = good.clone();
        for _ in 0..1 + next() % 4 {
            // Mostly where the tables are.
            let reach = if next().is_multiple_of(4) {
                good.len()
            } else {
                8 * 4096
            };
            let at = (next() as usize % reach) & !7;
            let value = match next() % 4 {
                0 => next(),
                1 => u64::MAX,
                2 => next() % (8 << 20),
                _ => (next() % 2048) << 12 | 1 << 63,
            };
            bad[at..at + 8].copy_from_slice(&value.to_be_bytes());
        }
        fs::write(&fixture.path, &bad).unwrap();
        let opened = {
            let _none_starts = testing::none_starts();
            open(&fixture.options(true))
        };
        let Ok(mut disk) = opened else {
            continue;
        };
        let size = disk.geometry().bytes.min(4 << 20);
        for _ in 0..20 {
            let mut bytes = vec![1; 8192];
            let at = next() % (size + 1) / 512 * 512;
            let len = (size - at).min(8192) as usize;
            let pieces = [pieces::of(&mut bytes[..len])];
            let write = next().is_multiple_of(2);
            if disk.place(write, at, &pieces) == Place::Inside {
                let _ = disk.transfer(write, at, &pieces);
            }
            let _ = disk.clear(Clear::Unmap, at, len as u64);
        }
        let _ = disk.before_sync();
        testing::close(disk);
    }
}

#[test]
fn read_only_images_are_left_alone() {
    let fixture = Fixture::new(1 << 20, "cluster_size=64k");
    play(
        &fixture,
        &mut vec![0; 1 << 20],
        &[Step::Write(0, 4096, 1)],
        true,
    );
    let before = fs::read(&fixture.path).unwrap();
    let mut options = fixture.options(true);
    options.read_only = true;
    let mut disk = open(&options).unwrap();
    let mut bytes = vec![0; 4096];
    transfer(&mut *disk, false, 0, &mut bytes);
    assert!(bytes == pattern(4096, 1));
    let pieces = [pieces::of(&mut bytes)];
    assert_eq!(disk.place(true, 1 << 19, &pieces), Place::Inside);
    assert!(disk.transfer(true, 1 << 19, &pieces).is_err());
    assert!(disk.file().as_raw_fd() > 0);
    testing::close(disk);
    assert!(fs::read(&fixture.path).unwrap() == before);
}

/// A failed writeback is told of once; the flush after it succeeds, and what was lost stays lost.
#[test]
fn a_failed_sync_is_the_last_that_is_written() {
    let fixture = Fixture::over(1 << 20, "cluster_size=64K", &[5; 1 << 20], Format::Raw);
    let options = fixture.options(true);
    let open = || {
        let file = super::super::open_file(&options.path, false, false).unwrap();
        let backing = options.backing.as_ref().map(|backing| {
            let below = DiskOptions {
                path: backing.path.clone(),
                read_only: true,
                format: backing.format,
                backing: None,
                ..options.clone()
            };
            super::super::open(&below).unwrap()
        });
        Qcow2::new(file, &options, backing).unwrap()
    };
    // By the image itself, before it names a copied cluster; and by the engine.
    for by_engine in [false, true] {
        let mut disk = open();
        transfer(&mut disk, true, 4096, &mut pattern(4096, 1));
        if by_engine {
            disk.sync_failed(&io::ErrorKind::Other.into());
        } else {
            // fdatasync(2) does not work on it.
            let bad = File::open("/dev/full").unwrap();
            let good = disk.map.safety().unwrap().own.replace(bad);
            disk.before_sync().unwrap_err();
            disk.map.safety().unwrap().own = good;
        }
        disk.before_sync().unwrap_err();
        let mut bytes = pattern(4096, 2);
        for at in [4096, 128 << 10] {
            let pieces = [pieces::of(&mut bytes)];
            assert_eq!(disk.place(true, at, &pieces), Place::Inside);
            disk.transfer(true, at, &pieces).unwrap_err();
            disk.clear(Clear::Zero, at, 4096).unwrap_err();
        }
        transfer(&mut disk, false, 128 << 10, &mut bytes);
        assert_eq!(bytes, [5; 4096], "it is still read");
        testing::close(disk);
        fixture.check_as_if_killed(Some(&[5; 1 << 20]));
    }
}

#[test]
fn what_is_cleared_at_once_is_bounded_in_clusters() {
    for (options, bytes) in [
        ("cluster_size=512", 512_u64 << 10),
        ("cluster_size=64K", 64 << 20),
        ("cluster_size=2M", 1 << 30),
    ] {
        let fixture = Fixture::new(1 << 20, options);
        let disk = fixture.open(true);
        let most = disk.geometry().clear_most;
        assert_eq!(u64::from(most) * 512, bytes, "{options}");
        testing::close(disk);
    }
}
