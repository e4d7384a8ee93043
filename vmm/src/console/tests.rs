use std::io::{Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::*;
use crate::confine::unconfined;
use crate::timeline::Start;

fn pipe() -> (File, File) {
    let (reader, writer) = io::pipe().unwrap();
    (OwnedFd::from(reader).into(), OwnedFd::from(writer).into())
}

fn started(file: File) -> Output {
    let mut output = Output::new(file);
    output.start(unconfined).unwrap();
    output
}

fn timeline() -> Arc<Timeline> {
    Arc::new(Timeline::new(Start::now(), Default::default()))
}

#[test]
fn output_arrives_whole_and_in_order() {
    let (mut reader, writer) = pipe();
    let mut output = started(writer);
    let mut guest = output.writer(timeline());
    let room = output.room();
    let expected: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
    let sent = expected.clone();
    let sender = thread::spawn(move || {
        for byte in sent {
            guest.write_all(&[byte]).unwrap();
            room.wait(|| false);
        }
    });
    let mut seen = vec![0; expected.len()];
    reader.read_exact(&mut seen).unwrap();
    sender.join().unwrap();
    output.finish(Duration::from_secs(10));
    assert!(seen == expected);
}

#[test]
fn what_was_written_before_the_end_is_not_lost() {
    let mut file = tempfile::tempfile().unwrap();
    let mut output = started(file.try_clone().unwrap());
    let mut guest = output.writer(timeline());
    guest.write_all(b"last words").unwrap();
    output.finish(Duration::from_secs(10));
    let mut seen = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "last words");
}

#[test]
fn a_stuck_reader_makes_the_guest_wait_and_not_the_end() {
    let (reader, writer) = pipe();
    let mut output = started(writer);
    let mut guest = output.writer(timeline());
    let room = output.room();
    let wanted = Arc::new(AtomicBool::new(false));
    let sender = {
        let wanted = wanted.clone();
        thread::spawn(move || {
            // More than pipe and buffer hold together.
            for _ in 0..1_000 {
                guest.write_all(&[b'x'; 1024]).unwrap();
                room.wait(|| wanted.load(Ordering::SeqCst));
            }
        })
    };
    thread::sleep(Duration::from_millis(50));
    assert!(!sender.is_finished());
    assert!(output.shared.lock().bytes.len() < CAPACITY + 1024);
    wanted.store(true, Ordering::SeqCst);
    sender.join().unwrap();

    let start = Instant::now();
    output.finish(Duration::from_millis(50));
    assert!(start.elapsed() < Duration::from_secs(5));
    drop(reader);
}

#[test]
fn a_slow_reader_gets_everything() {
    let (mut reader, writer) = pipe();
    let mut output = started(writer);
    output
        .writer(timeline())
        .write_all(&[b'x'; 200_000])
        .unwrap();
    let slow = thread::spawn(move || {
        let mut seen = 0;
        let mut buffer = [0; 8192];
        loop {
            thread::sleep(Duration::from_millis(10));
            match reader.read(&mut buffer).unwrap() {
                0 => return seen,
                count => seen += count,
            }
        }
    });
    // Less than the whole takes, and more than any one step.
    output.finish(Duration::from_millis(150));
    drop(output);
    assert_eq!(slow.join().unwrap(), 200_000);
}

#[test]
fn output_that_does_not_block_is_waited_for() {
    let (mut reader, writer) = pipe();
    // SAFETY: F_SETFL takes no pointer.
    unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    let mut output = started(writer);
    output
        .writer(timeline())
        .write_all(&[b'x'; 300_000])
        .unwrap();
    thread::sleep(Duration::from_millis(50));
    let mut seen = vec![0; 300_000];
    reader.read_exact(&mut seen).unwrap();
    output.finish(Duration::from_secs(10));
}

#[test]
fn a_reader_that_went_away_is_an_error_for_the_guest() {
    let (reader, writer) = pipe();
    drop(reader);
    let mut output = started(writer);
    let mut guest = output.writer(timeline());
    let deadline = Instant::now() + Duration::from_secs(10);
    while guest.write_all(b"x").is_ok() {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(1));
    }
    output.finish(Duration::from_secs(10));
}

#[test]
fn the_first_byte_is_marked() {
    let timeline = timeline();
    let mut output = started(tempfile::tempfile().unwrap());
    output.writer(timeline.clone()).write_all(b"x").unwrap();
    output.finish(Duration::from_secs(10));
    let phases: Vec<_> = timeline.marks().iter().map(|mark| mark.phase).collect();
    assert!(phases.contains(&Phase::FirstSerialByte));
}

#[test]
fn input_that_is_not_taken_stays() {
    let (reader, mut writer) = pipe();
    let mut input = Input::new(reader).unwrap();
    assert!(input.can_wait());
    writer.write_all(b"abcdef").unwrap();
    input.read().unwrap();
    assert_eq!(input.pending(), b"abcdef");
    input.take(4);
    // Nothing is read while something is pending: this pipe is empty and open, and would block.
    input.read().unwrap();
    assert_eq!(input.pending(), b"ef");
    assert!(!input.is_over());
    input.take(9);
    assert_eq!(input.pending(), b"");
    drop(writer);
    input.read().unwrap();
    assert!(input.is_over());
}

#[test]
fn input_that_is_always_there_needs_no_waiting() {
    let file = tempfile::tempfile().unwrap();
    assert!(!Input::new(file).unwrap().can_wait());
    let null = File::open("/dev/null").unwrap();
    assert!(!Input::new(null).unwrap().can_wait());
}

#[test]
fn an_output_file_is_private_and_appended_to() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    for text in ["one ", "two"] {
        Output::file(&path)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "one two");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(Output::file(dir.path()).is_err());
}

#[test]
fn a_virtio_console_is_woken_when_there_is_room() {
    use devices::legacy::serial::Output as _;
    let (mut reader, writer) = pipe();
    let mut output = started(writer);
    let wake = devices::virtio::console::wake_event().unwrap();
    let mut guest = output.waking_writer(wake.try_clone().unwrap());
    assert!(!guest.is_congested());
    let chunk = [b'x'; 4096];
    let mut written = 0;
    // The pipe, what the thread has taken, and the buffer; the thread may make room meanwhile.
    while !guest.is_congested() || written < 4 * CAPACITY {
        guest.write_all(&chunk).unwrap();
        written += chunk.len();
    }
    assert!(written < 6 * CAPACITY, "{written}");
    let mut seen = vec![0; written];
    reader.read_exact(&mut seen).unwrap();
    let mut poll = libc::pollfd {
        fd: wake.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry that is there.
    assert_eq!(unsafe { libc::poll(&mut poll, 1, 10_000) }, 1);
    assert!(!guest.is_congested());

    // Somebody who waits hears of the reader's end, too.
    while !guest.is_congested() {
        guest.write_all(&chunk).unwrap();
    }
    let _ = wake.read();
    drop(reader);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::poll(&mut poll, 1, 10_000) }, 1);
    output.finish(Duration::from_secs(10));
    assert!(!guest.is_congested());
    assert!(guest.write_all(&chunk).is_err());
}
