//! The whole way: a bzImage in, an open vmlinux out, from every compressor, from damaged files and in a race.

use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use proptest::prelude::*;

use super::testing::{VMLINUX_BYTES, bzimage, elf, gzip, lz4_legacy, put, streams, vmlinux};
use super::*;

fn contents(mut file: File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Decompresses without a cache: `dir` is a file.
fn decompress(image: &[u8]) -> Result<Vec<u8>, BzImageError> {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(image, 0).unwrap();
    let (out, outcome) = KernelCache::new("/dev/null/kernels").vmlinux_of(&file, Path::new("k"))?;
    assert_eq!(outcome, CacheOutcome::Uncached);
    Ok(contents(out))
}

fn entry(cache: &Path) -> PathBuf {
    let mut found = fs::read_dir(cache).unwrap().map(|e| e.unwrap().path());
    found
        .find(|p| p.extension().is_some_and(|e| e == "elf"))
        .unwrap()
}

#[test]
fn every_compressor_of_a_kernel_build() {
    let dir = tempfile::tempdir().unwrap();
    let cache = KernelCache::new(dir.path().join("a/b"));
    for (compression, stream) in streams() {
        assert_eq!(
            Compression::from_magic(*stream.first_chunk().unwrap()),
            Ok(compression)
        );
        let path = put(
            dir.path(),
            compression.name(),
            &bzimage(&stream, VMLINUX_BYTES),
        );
        assert!(is_bzimage(&File::open(&path).unwrap()).unwrap());
        for expected in [CacheOutcome::Miss, CacheOutcome::Hit, CacheOutcome::Hit] {
            let (file, outcome) = cache.vmlinux(&path).unwrap();
            assert_eq!(outcome, expected, "{}", compression.name());
            assert_eq!(
                file.metadata().unwrap().permissions().mode() & 0o7777,
                0o444
            );
            assert!(
                file.write_at(b"x", 0).is_err(),
                "the entry is open for reading only"
            );
            assert!(contents(file) == vmlinux(), "{}", compression.name());
        }
    }
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&dir.path().join("a")), mode(&dir.path().join("a/b"))),
        (0o700, 0o700)
    );
}

#[test]
fn lz4_blocks_and_frames_in_a_row() {
    let data = elf((16 << 20) + 12_345);
    let frame = lz4_legacy(&data, 8 << 20);
    assert!(decompress(&bzimage(&frame, data.len())).unwrap() == data);
    let (a, b) = data.split_at(8 << 20);
    let two = [lz4_legacy(a, 8 << 20), lz4_legacy(b, 8 << 20)].concat();
    assert!(decompress(&bzimage(&two, data.len())).unwrap() == data);
}

#[test]
fn a_stream_cut_anywhere_is_an_error() {
    for (compression, stream) in streams()
        .into_iter()
        .filter(|(c, _)| *c != Compression::None)
    {
        for cut in (16..600).chain((600..stream.len()).step_by(3)) {
            let mut image = bzimage(&stream[..cut], VMLINUX_BYTES);
            if compression == Compression::Gzip {
                let at = 1024 + 64 + cut - 4;
                image[at..at + 4].copy_from_slice(&(VMLINUX_BYTES as u32).to_le_bytes());
            }
            assert!(
                decompress(&image).is_err(),
                "{} cut at {cut}",
                compression.name()
            );
        }
    }
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    for (_, stream) in streams() {
        let image = bzimage(&stream, VMLINUX_BYTES);
        for cut in (0..image.len() - 100).step_by(7) {
            assert!(decompress(&image[..cut]).is_err(), "cut at {cut}");
        }
    }
}

#[test]
fn a_damaged_byte_anywhere_is_found_or_harmless() {
    for (compression, stream) in streams()
        .into_iter()
        .filter(|(c, _)| *c != Compression::None)
    {
        // These two carry no checksum: what can be promised is the declared length.
        let unchecked = matches!(compression, Compression::Lz4 | Compression::Lzma);
        // Every byte of the headers and tables, then every fifth.
        for at in (0..600).chain((600..stream.len()).step_by(5)) {
            let mut damaged = stream.clone();
            damaged[at] ^= 0x41;
            if let Ok(out) = decompress(&bzimage(&damaged, VMLINUX_BYTES)) {
                assert_eq!(out.len(), VMLINUX_BYTES);
                assert!(
                    unchecked || out == vmlinux(),
                    "{} damaged at {at}",
                    compression.name()
                );
            }
        }
    }
}

#[test]
fn the_declared_size_is_the_size() {
    for (compression, stream) in streams() {
        for wrong in [VMLINUX_BYTES - 1, VMLINUX_BYTES + 1, 64, 2 << 30] {
            let mut image = bzimage(&stream, wrong);
            if compression == Compression::None {
                continue;
            }
            let at = image.len() - 104;
            image[at..at + 4].copy_from_slice(&(wrong as u32).to_le_bytes());
            // gzip keeps the number in its own trailer and notices by itself, unless the output is cut short first.
            let error = decompress(&image).unwrap_err();
            let expected = matches!(error, BzImageError::WrongSize { .. })
                || (compression == Compression::Gzip
                    && matches!(error, BzImageError::Decompress { .. }));
            assert!(expected, "{}: {error:?}", compression.name());
        }
    }
}

#[test]
fn a_bomb_stops_at_the_declared_size() {
    let stream = gzip(&vec![0; 64 << 20]);
    let mut image = bzimage(&stream, 0);
    let at = image.len() - 104;
    image[at..at + 4].copy_from_slice(&1000u32.to_le_bytes());
    assert!(matches!(
        decompress(&image),
        Err(BzImageError::WrongSize { .. })
    ));
}

#[test]
fn only_an_x86_64_elf_is_a_vmlinux() {
    let mut elf32 = vmlinux();
    elf32[4] = 1;
    for not in [elf32, vec![0x90; 4096], b"\x7fELF".to_vec()] {
        let result = decompress(&bzimage(&gzip(&not), not.len()));
        assert!(
            matches!(result, Err(BzImageError::NotVmlinux { .. })),
            "{result:?}"
        );
    }
    let lzo = bzimage(b"\x89LZO\0\r\n\x1a\n_______", 1);
    assert!(matches!(
        decompress(&lzo),
        Err(BzImageError::Header {
            source: HeaderError::Lzo,
            ..
        })
    ));
    assert!(!is_bzimage(&File::open("/dev/null").unwrap()).unwrap());
}

#[test]
fn an_entry_that_cannot_be_trusted_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let image = put(dir.path(), "k", &bzimage(&gzip(&vmlinux()), VMLINUX_BYTES));
    let (kernels, other) = (dir.path().join("c"), put(dir.path(), "other", &vmlinux()));
    let cache = KernelCache::new(&kernels);
    cache.vmlinux(&image).unwrap();
    let entry = entry(&kernels);
    let good = |expected| {
        let (file, outcome) = cache.vmlinux(&image).unwrap();
        assert_eq!(outcome, expected);
        assert!(contents(file) == vmlinux());
    };
    let replace = |bytes: &[u8], mode| {
        fs::remove_file(&entry).unwrap();
        fs::write(&entry, bytes).unwrap();
        fs::set_permissions(&entry, Permissions::from_mode(mode)).unwrap();
    };
    good(CacheOutcome::Hit);
    replace(&vmlinux()[..5000], 0o444); // Torn.
    good(CacheOutcome::Miss);
    replace(&vmlinux(), 0o464); // Writable.
    good(CacheOutcome::Miss);
    fs::remove_file(&entry).unwrap();
    fs::set_permissions(&other, Permissions::from_mode(0o444)).unwrap();
    symlink(&other, &entry).unwrap();
    good(CacheOutcome::Miss);
    fs::remove_file(&entry).unwrap();
    fs::create_dir(&entry).unwrap();
    good(CacheOutcome::Miss);
    fs::remove_file(&entry).unwrap();
    assert!(
        Command::new("mkfifo")
            .args(["-m", "444"])
            .arg(&entry)
            .status()
            .unwrap()
            .success()
    );
    good(CacheOutcome::Miss);
    // What a maker that died left behind.
    fs::remove_file(&entry).unwrap();
    fs::write(entry.with_extension("tmp"), "half").unwrap();
    good(CacheOutcome::Miss);
    good(CacheOutcome::Hit);
    assert!(!entry.with_extension("tmp").exists());
}

#[test]
fn a_directory_that_others_can_write_to_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let image = put(dir.path(), "k", &bzimage(&gzip(&vmlinux()), VMLINUX_BYTES));
    let kernels = dir.path().join("c");
    fs::create_dir(&kernels).unwrap();
    fs::set_permissions(&kernels, Permissions::from_mode(0o777)).unwrap();
    let (file, outcome) = KernelCache::new(&kernels).vmlinux(&image).unwrap();
    assert_eq!(outcome, CacheOutcome::Uncached);
    assert!(file.write_at(b"x", 0).is_err(), "sealed");
    assert!(file.set_len(1).is_err(), "sealed");
    assert!(contents(file) == vmlinux());
    assert_eq!(fs::read_dir(&kernels).unwrap().count(), 0);
}

#[test]
fn a_damaged_kernel_leaves_nothing_behind() {
    let mut stream = gzip(&vmlinux());
    stream[2000] ^= 1;
    let dir = tempfile::tempdir().unwrap();
    let image = put(dir.path(), "k", &bzimage(&stream, VMLINUX_BYTES));
    let kernels = dir.path().join("c");
    assert!(KernelCache::new(&kernels).vmlinux(&image).is_err());
    let left: Vec<_> = fs::read_dir(&kernels)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert!(
        left.iter()
            .all(|p| p.extension().is_some_and(|e| e == "lock")),
        "{left:?}"
    );
}

/// The names in `dir` that end in `.kind`.
fn names(dir: &Path, kind: &str) -> Vec<String> {
    let all = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap());
    all.filter(|n| n.ends_with(kind)).collect()
}

#[test]
fn the_entries_used_last_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let kernels = dir.path().join("c");
    let cache = KernelCache::new(&kernels);
    let run = |n: usize| {
        cache
            .vmlinux(&put(
                dir.path(),
                "k",
                &bzimage(&gzip(&elf(1000 + n)), 1000 + n),
            ))
            .unwrap()
    };
    let (mut first, _) = run(0);
    for n in 1..8 {
        run(n);
    }
    assert_eq!(run(1).1, CacheOutcome::Hit); // Used again: 0 and 2 are the oldest now.
    put(&kernels, "unrelated.elf", b"not ours");
    put(
        &kernels,
        &format!("{}-v1.tmp", "a".repeat(64)),
        b"of a dead maker",
    );
    run(8);
    run(9);
    assert_eq!(names(&kernels, ".elf").len(), 8 + 1);
    assert_eq!(
        (
            names(&kernels, ".lock").len(),
            names(&kernels, ".tmp").len()
        ),
        (8, 0)
    );
    assert_eq!(run(1).1, CacheOutcome::Hit);
    assert_eq!(run(0).1, CacheOutcome::Miss);
    let mut bytes = Vec::new();
    first.read_to_end(&mut bytes).unwrap();
    assert!(bytes == elf(1000), "an open entry outlives its name");
}

#[test]
fn a_settled_kernel_is_hashed_once() {
    let dir = tempfile::tempdir().unwrap();
    let kernels = dir.path().join("c");
    let cache = KernelCache::new(&kernels);
    let image = put(dir.path(), "k", &bzimage(&gzip(&vmlinux()), VMLINUX_BYTES));
    cache.vmlinux(&image).unwrap();
    assert_eq!(
        names(&kernels, ".key").len(),
        0,
        "just written: its identity says nothing yet"
    );
    thread::sleep(std::time::Duration::from_millis(4100));
    assert_eq!(cache.vmlinux(&image).unwrap().1, CacheOutcome::Hit);
    assert_eq!(names(&kernels, ".key").len(), 1);
    assert_eq!(cache.vmlinux(&image).unwrap().1, CacheOutcome::Hit);
    // Other contents in place: another identity, whatever its modification time is set to.
    let old = fs::metadata(&image).unwrap().modified().unwrap();
    let mut other = vmlinux();
    other[5000] ^= 1;
    put(dir.path(), "k", &bzimage(&gzip(&other), VMLINUX_BYTES));
    File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_modified(old)
        .unwrap();
    let (file, outcome) = cache.vmlinux(&image).unwrap();
    assert_eq!(outcome, CacheOutcome::Miss);
    assert!(contents(file) == other);
}

const RACE: &str = "TANDEM_TEST_BZIMAGE_RACE";

/// Not a test of its own: one process of the race below.
#[test]
fn race_child() {
    let Some(dir) = std::env::var_os(RACE).map(PathBuf::from) else {
        return;
    };
    println!("misses={};", race(&dir));
}

/// Four threads after one kernel: how many decompressed it.
fn race(dir: &Path) -> usize {
    let cache = KernelCache::new(dir.join("c"));
    let run = || {
        let (file, outcome) = cache.vmlinux(&dir.join("k")).unwrap();
        assert!(contents(file) == elf(3 << 20));
        usize::from(outcome == CacheOutcome::Miss)
    };
    thread::scope(|s| {
        let threads: Vec<_> = (0..4).map(|_| s.spawn(run)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    })
}

#[test]
fn of_many_threads_and_processes_one_decompresses() {
    let dir = tempfile::tempdir().unwrap();
    let data = elf(3 << 20);
    put(dir.path(), "k", &bzimage(&gzip(&data), data.len()));
    let child = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "bzimage::tests::race_child", "--nocapture"])
            .env(RACE, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children: Vec<_> = (0..6).map(|_| child()).collect();
    let mut misses = race(dir.path());
    for child in children {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        let count = text
            .split("misses=")
            .nth(1)
            .and_then(|t| t.split(';').next())
            .unwrap();
        misses += count.parse::<usize>().unwrap();
    }
    assert_eq!(misses, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_payload_bytes_are_an_error_or_a_vmlinux(which in 0usize..7, noise in proptest::collection::vec(any::<u8>(), 16..2000)) {
        let mut stream = streams()[which].1.clone();
        stream.truncate(14);
        stream.extend_from_slice(&noise);
        if let Ok(out) = decompress(&bzimage(&stream, VMLINUX_BYTES)) {
            prop_assert!(out.starts_with(b"\x7fELF"));
        }
    }

    #[test]
    fn what_goes_in_comes_out(len in 64usize..300_000, block in 1000usize..100_000) {
        let data = elf(len);
        prop_assert!(decompress(&bzimage(&gzip(&data), len)).unwrap() == data);
        prop_assert!(decompress(&bzimage(&lz4_legacy(&data, block), len)).unwrap() == data);
    }
}
