//! A terminal is raw while the guest runs, and always given back as it was.

use tests::pty::{Pty, Session};
use tests::vm::VmBuilder;

use crate::guest::guest;

// Shows each key as a number; `q` powers off.
guest!(
    keys,
    r#"
    say "ready\n"
2:
    receive
    cmp al, 113
    je 3f
    movzx eax, al
    show32
    jmp 2b
3:
    power_off
    "#
);

fn start(pty: &Pty, builder: &VmBuilder) -> Session {
    let session = Session::start(pty, &builder.command());
    session.wait_for("ready");
    assert!(
        pty.is_raw(),
        "raw while the guest runs: {:?}",
        pty.settings()
    );
    session
}

fn kill(session: &Session, signal: libc::c_int) {
    // SAFETY: kill takes no pointer.
    let result = unsafe { libc::kill(session.pid(), signal) };
    assert_eq!(result, 0);
}

#[test]
fn keys_reach_the_guest_and_the_terminal_comes_back() {
    let pty = Pty::open();
    let before = pty.settings();
    assert!(!pty.is_raw());
    let mut session = start(&pty, &VmBuilder::with_code(keys()));
    // Ctrl-C, Ctrl-Z, Ctrl-D, Ctrl-\, carriage return: none of them is the terminal's own business now.
    for (key, shown) in [
        (3, "00000003"),
        (26, "0000001a"),
        (4, "00000004"),
        (28, "0000001c"),
        (13, "0000000d"),
    ] {
        session.press(&[key]);
        session.wait_for(shown);
    }
    session.press(b"q");
    assert_eq!(session.exit_code(), 0);
    assert_eq!(pty.settings(), before);
}

#[test]
fn the_terminal_comes_back_after_sigterm() {
    let pty = Pty::open();
    let before = pty.settings();
    let session = start(
        &pty,
        &VmBuilder::with_code(keys()).option("--stop-timeout", "0.2"),
    );
    kill(&session, libc::SIGTERM);
    assert_eq!(session.exit_code(), 143);
    assert_eq!(pty.settings(), before);
}

#[test]
fn the_terminal_comes_back_after_a_crash() {
    for signal in [libc::SIGABRT, libc::SIGSEGV, libc::SIGBUS] {
        let pty = Pty::open();
        let before = pty.settings();
        let session = start(&pty, &VmBuilder::with_code(keys()));
        kill(&session, signal);
        // Sent rather than caused, the first one only takes the handler away, unless the program sends it again.
        if !died(&session) {
            kill(&session, signal);
        }
        assert_eq!(session.exit_code(), 128 + signal);
        assert_eq!(pty.settings(), before);
    }
}

/// Whether the program is gone within a second.
fn died(session: &Session) -> bool {
    let pid = session.pid();
    (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        // SAFETY: kill takes no pointer; signal 0 only asks.
        unsafe { libc::kill(pid, 0) != 0 }
    })
}

guest!(
    crash,
    r#"
    say "ready\n"
    receive
    push 0
    push 0
    lidt [rsp]
    ud2
    "#
);

#[test]
fn the_terminal_comes_back_after_a_guests_crash() {
    let pty = Pty::open();
    let before = pty.settings();
    let mut session = start(&pty, &VmBuilder::with_code(crash()));
    session.press(b"x");
    assert_eq!(session.exit_code(), 66);
    assert_eq!(pty.settings(), before);
}
