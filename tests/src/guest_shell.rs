//! Shell commands in a guest, over its serial console.
//!
//! The guest is the test initramfs with `tandem.test=commands` (`resources/test-guest/init`, which describes the protocol). A
//! command travels as one line of base64 with a number that is new each time; its output comes back between two lines
//! with that number, so that nothing else on the console is taken for it. What the kernel says meanwhile stays in its log,
//! and [`power_off`](GuestShell::power_off) looks through that.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use crate::capture::tail;
use crate::kernel_log::{COMPLAINTS, complaints};
use crate::patience;
use crate::vm::{Ended, Vm, VmBuilder};

/// A guest that runs commands. Dropping it kills the VM.
#[derive(Debug)]
pub struct GuestShell {
    vm: Vm,
    /// No number can be foreseen by what a guest prints.
    random: RandomState,
    commands: u64,
    allowed: Vec<String>,
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The shell's: 128 plus a signal's number if one ended the command.
    pub status: i32,
    /// Standard output and standard error, as they came.
    pub text: String,
}

impl GuestShell {
    /// Starts the VM and waits for its guest to take commands.
    ///
    /// # Panics
    /// It does not get there.
    #[track_caller]
    pub fn boot(builder: VmBuilder) -> Self {
        Self::of(builder.start())
    }

    /// The guest of a VM that has been started.
    ///
    /// # Panics
    /// It does not get to where it takes commands.
    #[track_caller]
    pub fn of(vm: Vm) -> Self {
        vm.wait_for("TANDEM-READY commands\n");
        Self {
            vm,
            random: RandomState::new(),
            commands: 0,
            allowed: Vec::new(),
        }
    }

    /// The VM's process.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// What a command does, and with what status it ends. It is a script for `dash`, of a line or more; the shell is a new
    /// one each time, has no input, and its `PATH` begins with the toolbox.
    ///
    /// # Panics
    /// It does not end in [`patience`], or the VM does.
    #[track_caller]
    pub fn run(&mut self, command: &str) -> Output {
        self.run_at_most(patience(), command)
    }

    /// The same, with a limit of its own.
    ///
    /// # Panics
    /// It does not end in time, or the VM does.
    #[track_caller]
    pub fn run_at_most(&mut self, limit: Duration, command: &str) -> Output {
        let asked = self.send(command);
        self.answer(asked, limit)
    }

    /// Gives a command to the guest and goes on: the test has something to do meanwhile. Its output is to be asked for
    /// with [`answer`](Self::answer) before the next command.
    pub fn send(&mut self, command: &str) -> Asked {
        self.commands += 1;
        let mut hasher = self.random.build_hasher();
        hasher.write_u64(self.commands);
        let id = format!("{}-{:016x}", self.commands, hasher.finish());
        let seen = self.vm.output().so_far().len();
        let line = base64(command.as_bytes());
        self.vm
            .send(format!("{id} {} {line}\n", line.len()).as_bytes());
        Asked {
            id,
            seen,
            command: command.to_owned(),
        }
    }

    /// Waits for the end of a command, for `limit` at most.
    ///
    /// # Panics
    /// It does not end in time, or the VM does.
    #[track_caller]
    pub fn answer(&mut self, asked: Asked, limit: Duration) -> Output {
        let Asked { id, seen, command } = asked;
        let mut searched = 0;
        let found = |bytes: &[u8]| parse(&id, bytes.get(seen..)?, &mut searched);
        match self.vm.output().wait_until(limit, found) {
            Ok((Some(status), text)) => Output { status, text },
            Ok((None, _)) => self.fail(&format!("the command did not arrive whole: {command}")),
            Err(_) => self.fail(&format!("no end after {limit:?} at most of: {command}")),
        }
    }

    /// What a command prints, without the newlines at the end.
    ///
    /// # Panics
    /// It fails.
    #[track_caller]
    pub fn ok(&mut self, command: &str) -> String {
        self.ok_at_most(patience(), command)
    }

    /// The same, with a limit of its own.
    ///
    /// # Panics
    /// It fails, or does not end in time.
    #[track_caller]
    pub fn ok_at_most(&mut self, limit: Duration, command: &str) -> String {
        let output = self.run_at_most(limit, command);
        if output.status != 0 {
            let Output { status, text } = output;
            // The kernel may know why.
            let messages = self.run("dmesg | tail -n 30").text;
            self.fail(&format!(
                "status {status} of: {command}\nit printed:\n{text}\nthe kernel's last messages:\n{messages}"
            ));
        }
        output.text.trim_end_matches('\n').to_owned()
    }

    /// From now on, messages of the kernel's with `text` in them are no complaints: the test brings them about.
    pub fn allow(&mut self, text: &str) {
        self.allowed.push(text.to_owned());
    }

    /// What the kernel has complained of so far.
    #[track_caller]
    pub fn complaints(&mut self) -> Vec<String> {
        // All messages would take seconds to print: the guest picks those in question.
        let words: Vec<_> = COMPLAINTS
            .iter()
            .map(|word| format!("-e '{word}'"))
            .collect();
        let text = self
            .run(&format!("dmesg | grep -F {}", words.join(" ")))
            .text;
        complaints(&text)
            .into_iter()
            .filter(|line| !self.allowed.iter().any(|known| line.contains(known)))
            .map(str::to_owned)
            .collect()
    }

    /// Switches the guest off.
    ///
    /// # Panics
    /// Its kernel has complained of something, or the exit code is not 0.
    #[track_caller]
    pub fn power_off(mut self) -> Ended {
        let complaints = self.complaints();
        if !complaints.is_empty() {
            // What stands around them.
            let messages = self.run("dmesg").text;
            panic!("the guest's kernel complains: {complaints:#?}\nall its messages:\n{messages}");
        }
        // There is no answer to this one.
        let _ = self.send("sync; poweroff -f; while :; do sleep 1; done");
        let ended = self.vm.wait();
        assert_eq!(
            ended.code,
            0,
            "{}\nlast on the console:\n{}",
            ended.stderr,
            tail(&ended.stdout)
        );
        ended
    }

    /// Waits for the end of a VM whose guest does not go by [`power_off`](Self::power_off).
    #[track_caller]
    pub fn into_vm(self) -> Vm {
        self.vm
    }

    #[track_caller]
    fn fail(&self, what: &str) -> ! {
        panic!(
            "{what}\nstandard error of tandem-vmm:\n{}\nlast on the console:\n{}",
            self.vm.errors(),
            tail(&self.vm.output().so_far())
        )
    }
}

/// A command that the guest has been given.
#[derive(Debug)]
#[must_use = "the next command can be given when this one has been answered"]
pub struct Asked {
    id: String,
    /// Bytes on the console before.
    seen: usize,
    command: String,
}

/// Finds what the command `id` has printed, once all has come; the status is `None` if it was not understood. The end is
/// not before `searched`, which is set for the next time: a long output comes in many pieces.
fn parse(id: &str, console: &[u8], searched: &mut usize) -> Option<(Option<i32>, String)> {
    let find = |bytes: &[u8], text: &str| {
        let mut windows = bytes.windows(text.len());
        windows.position(|window| window == text.as_bytes())
    };
    let end = format!("\nTANDEM-END {id} ");
    let Some(stop) = find(console.get(*searched..)?, &end).map(|found| *searched + found) else {
        *searched = console.len().saturating_sub(end.len());
        return None;
    };
    let rest = &console[stop + end.len()..];
    let status = &rest[..rest.iter().position(|&byte| byte == b'\n')?];
    let begin = format!("TANDEM-BEGIN {id}\n");
    let start = find(console, &begin)? + begin.len();
    let text = console.get(start..stop)?;
    Some((
        std::str::from_utf8(status).ok()?.parse().ok(),
        String::from_utf8_lossy(text).into_owned(),
    ))
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk
            .iter()
            .chain(&[0; 2])
            .take(3)
            .fold(0_usize, |group, &byte| group << 8 | usize::from(byte));
        for place in 0..4 {
            let digit = DIGITS[group >> (18 - 6 * place) & 63];
            text.push(if place <= chunk.len() { digit } else { b'=' } as char);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_in_the_rfc() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
            ("\u{7f}\u{ff}>?", "f8O/Pj8="),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn output_is_what_stands_between_the_markers() {
        let parse = |console: &str| {
            let console = console.as_bytes();
            let whole = parse("7-a", console, &mut 0);
            // The same, if it comes byte by byte.
            let mut searched = 0;
            let mut pieces =
                (0..=console.len()).map(|n| parse("7-a", &console[..n], &mut searched));
            assert_eq!(pieces.find(Option::is_some).flatten(), whole);
            whole
        };
        let some = |status, text: &str| Some((status, text.to_owned()));
        assert_eq!(
            parse("x\n\nTANDEM-BEGIN 7-a\ntwo\nlines\n\nTANDEM-END 7-a 3\n"),
            some(Some(3), "two\nlines\n")
        );
        assert_eq!(
            parse("\nTANDEM-BEGIN 7-a\nno newline\nTANDEM-END 7-a 0\nlater"),
            some(Some(0), "no newline")
        );
        assert_eq!(
            parse("\nTANDEM-BEGIN 7-a\n\nTANDEM-END 7-a 0\n"),
            some(Some(0), "")
        );
        assert_eq!(
            parse("\nTANDEM-BEGIN 7-a\n\nTANDEM-END 7-a garbled\n"),
            some(None, "")
        );
        // Another's, or not yet whole.
        assert_eq!(
            parse("\nTANDEM-BEGIN 7-a\n\nTANDEM-END 6-a 0\n\nTANDEM-END 7-a 1"),
            None
        );
        let long = "z".repeat(1000);
        assert_eq!(
            parse(&format!(
                "\nTANDEM-BEGIN 7-a\n{long}\nTANDEM-END 7-a 0\n{long}"
            )),
            some(Some(0), &long)
        );
    }
}
