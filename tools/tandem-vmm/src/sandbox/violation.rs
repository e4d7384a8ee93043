//! A system call that a filter does not allow: SIGSYS tells which, and the process ends.
//!
//! The handler runs in place of the call, on the thread that made it, and may have come in the middle of anything:
//! it allocates nothing, takes no lock, and makes the calls write(2), what gives a terminal back, and exit_group(2) only.
//!
//! The C library lets no signal through where it makes a thread, ends one or signals one: there the kernel ends the process itself, by
//! SIGSYS and without a word. What the library calls in these places is listed in the policy: clone(2) for main, which alone makes
//! threads, and futex(2), munmap(2), rt_sigprocmask(2), exit(2) and tkill(2) for those that do it.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::io;
use std::mem;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use vmm::confine::Role;
use vmm::console::restore_terminal;
use vmm::exit;

/// `NUMBER NAME`, a line each.
const SYSCALLS: &str = include_str!(concat!(env!("OUT_DIR"), "/syscalls"));
/// `si_code` of a filter's SIGSYS (asm-generic/siginfo.h).
const SYS_SECCOMP: c_int = 1;

/// Name of a thread, as the kernel has it: 15 bytes and a zero.
type Name = [u8; 16];

thread_local! {
    static THREAD: Cell<Name> = const { Cell::new([0; 16]) };
}

/// Name of the machine.
static ID: OnceLock<String> = OnceLock::new();
/// The log file's descriptor; less than zero where the log is standard error.
static LOG: AtomicI32 = AtomicI32::new(-1);

/// Has violations told in the log file too, which stays open.
pub fn tell_in(log: RawFd) {
    LOG.store(log, Ordering::Relaxed);
}

/// Keeps the calling thread's name for the handler, which cannot ask for it.
pub fn name_thread(role: Role) {
    let mut name: Name = [0; 16];
    if role == Role::Main {
        name[..4].copy_from_slice(b"main");
    } else {
        // SAFETY: the kernel writes 16 bytes at most. Where it does not, the name is empty.
        unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    }
    THREAD.set(name);
}

/// Has SIGSYS end the process with a word on why. `id` is the machine's name in the log.
///
/// # Errors
/// The kernel refused.
pub fn install_handler(id: &str) -> io::Result<()> {
    // There is one machine.
    let _ = ID.set(id.to_owned());
    // SAFETY: all-zero values are valid; the handler makes async-signal-safe calls only. Whoever started this process may
    // have had the signal blocked, and then it would kill without a word.
    let result = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = on_sigsys as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO;
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigaddset(&mut set, libc::SIGSYS);
        libc::sigaction(libc::SIGSYS, &action, ptr::null_mut())
            | libc::sigprocmask(libc::SIG_UNBLOCK, &set, ptr::null_mut())
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the kernel tells with SIGSYS, after the three numbers that every signal has (asm-generic/siginfo.h).
#[repr(C)]
struct Sigsys {
    signal: c_int,
    errno: c_int,
    code: c_int,
    padding: c_int,
    call_address: *const c_void,
    call: c_int,
    arch: u32,
}

extern "C" fn on_sigsys(_: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the handler was installed with SA_SIGINFO, so both point to what the kernel has written; of a SIGSYS that
    // somebody has sent, only the code is looked at.
    let (code, call, arguments) = unsafe {
        let info = &*info.cast::<Sigsys>();
        let registers = &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let argument = |register: c_int| registers[register as usize] as u64;
        let arguments = [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX].map(argument);
        (info.code, info.call, arguments)
    };
    let mut line = Line::default();
    line.thread();
    if code == SYS_SECCOMP {
        line.text(b" made the system call ");
        line.text(name(call));
        line.text(b" (number ");
        line.decimal(call.unsigned_abs().into(), 1);
        for (index, argument) in arguments.into_iter().enumerate() {
            line.text(if index == 0 {
                b"; arguments 0x"
            } else {
                b", 0x"
            });
            line.hexadecimal(argument);
        }
        line.text(b"...), which its seccomp filter does not allow");
    } else {
        line.text(b" was sent SIGSYS");
    }
    line.text(b"\n");
    let id = ID.get().map_or("-", String::as_str).as_bytes();
    let log = LOG.load(Ordering::Relaxed);
    if log >= 0 {
        let mut head = Line::default();
        head.time();
        head.text(b" [");
        head.text(id);
        head.text(b":");
        head.thread_name();
        head.text(b"] ");
        head.text(line.bytes());
        head.write(log);
    }
    let mut head = Line::default();
    head.text(b"tandem-vmm: ");
    head.text(line.bytes());
    head.write(libc::STDERR_FILENO);
    restore_terminal();
    // SAFETY: it does not return, and runs nothing.
    unsafe { libc::_exit(exit::BAD_SYSCALL.into()) }
}

fn name(call: c_int) -> &'static [u8] {
    let named = SYSCALLS.lines().find_map(|line| {
        let (number, name) = line.split_once(' ')?;
        (number.parse() == Ok(call)).then_some(name)
    });
    named.unwrap_or("?").as_bytes()
}

/// A line in the making, on the stack.
struct Line {
    bytes: [u8; 400],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; 400],
            length: 0,
        }
    }
}

impl Line {
    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// Adds as much of `text` as fits.
    fn text(&mut self, text: &[u8]) {
        for byte in text {
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = *byte;
                self.length += 1;
            }
        }
    }

    /// Adds a number of `digits` digits at least.
    fn decimal(&mut self, number: u64, digits: u32) {
        let mut power = 10_u64.pow(digits.saturating_sub(1));
        while number / power >= 10 {
            power *= 10;
        }
        while power > 0 {
            self.text(&[b'0' + (number / power % 10) as u8]);
            power /= 10;
        }
    }

    fn hexadecimal(&mut self, number: u64) {
        let digits = (u64::BITS - number.leading_zeros()).div_ceil(4).max(1);
        for digit in (0..digits).rev() {
            let digit = (number >> (4 * digit) & 0xf) as u8;
            self.text(&[match digit {
                0..=9 => b'0' + digit,
                _ => b'a' + digit - 10,
            }]);
        }
    }

    fn thread_name(&mut self) {
        let name = THREAD.get();
        if name[0] == 0 {
            return self.text(b"(new)");
        }
        let length = name.iter().position(|byte| *byte == 0);
        self.text(name.get(..length.unwrap_or(0)).unwrap_or_default());
    }

    fn thread(&mut self) {
        self.text(b"thread ");
        self.thread_name();
    }

    /// Adds the time as the log has it.
    fn time(&mut self) {
        let mut now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the call writes `now`.
        unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut now) };
        let seconds = now.tv_sec.unsigned_abs();
        let (year, month, day) = date(seconds / 86_400);
        let in_day = seconds % 86_400;
        let parts = [
            (&b""[..], year, 4),
            (b"-", month, 2),
            (b"-", day, 2),
            (b"T", in_day / 3600, 2),
            (b":", in_day / 60 % 60, 2),
            (b":", in_day % 60, 2),
            (b".", now.tv_nsec.unsigned_abs(), 9),
        ];
        for (before, number, digits) in parts {
            self.text(before);
            self.decimal(number, digits);
        }
    }

    fn write(&self, fd: RawFd) {
        let bytes = self.bytes();
        // SAFETY: the bytes are there. Nobody can be told if it fails.
        unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    }
}

/// Year, month and day of a day since 1970-01-01.
fn date(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use devices::utc::Utc;

    use super::*;

    #[test]
    fn dates_are_those_of_the_log() {
        for day in (0..60_000)
            .step_by(7)
            .chain([11_015, 11_016, 11_017, 20_512])
        {
            let utc = Utc::from(SystemTime::UNIX_EPOCH + Duration::from_secs(day * 86_400));
            let (year, month, of_month) = date(day);
            let text = |y: u64, m: u64, d: u64| format!("{y:04}-{m:02}-{d:02}");
            assert_eq!(
                text(year, month, of_month),
                format!("{:04}-{:02}-{:02}", utc.year, utc.month, utc.day),
                "day {day}"
            );
        }
    }

    #[test]
    fn numbers_are_written_as_format_does() {
        for number in [0, 1, 9, 10, 99, 100, 123_456, u64::MAX] {
            let mut line = Line::default();
            line.decimal(number, 1);
            line.text(b" ");
            line.decimal(number, 4);
            line.text(b" ");
            line.hexadecimal(number);
            let text = format!("{number} {number:04} {number:x}");
            assert_eq!(line.bytes(), text.as_bytes());
        }
    }

    #[test]
    fn a_line_takes_what_fits() {
        let mut line = Line::default();
        line.text(&[b'x'; 1000]);
        line.decimal(7, 1);
        assert_eq!(line.bytes().len(), 400);
    }

    #[test]
    fn calls_have_names() {
        assert_eq!(name(libc::SYS_execve as c_int), b"execve");
        assert_eq!(name(9999), b"?");
    }

    #[test]
    fn what_the_kernel_tells_is_where_it_is_looked_for() {
        assert_eq!(mem::offset_of!(Sigsys, call), 24);
        assert_eq!(mem::size_of::<Sigsys>(), 32);
    }
}
