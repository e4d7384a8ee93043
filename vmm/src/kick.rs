//! Making a vCPU's thread leave `KVM_RUN`: a signal, sent to that thread alone.
//!
//! What the signal does there is the thread's own choice: [`machine`](crate::machine) has a handler that sets
//! `immediate_exit`, [`probe`](crate::probe) has it blocked outside `KVM_RUN`.

use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;

/// Number of the signal.
pub(crate) fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Sends it. Without effect on a thread that has ended.
pub(crate) fn send<T>(thread: &JoinHandle<T>) {
    #[allow(
        clippy::unnecessary_cast,
        reason = "with musl, libc's type is a pointer and std's is not"
    )]
    let id = thread.as_pthread_t() as libc::pthread_t;
    // SAFETY: the thread's handle exists, so it is not joined and the id is valid even if it has ended.
    unsafe { libc::pthread_kill(id, signal()) };
}
