//! Stopping a vCPU from another thread without touching the process's signal handlers.
//!
//! The vCPU's thread has the kick signal blocked always; `KVM_SET_SIGNAL_MASK` lets it through
//! inside `KVM_RUN` only. There it ends `KVM_RUN` with EINTR and stays pending, so that no handler
//! runs and the signal vanishes with the thread.

use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::thread::JoinHandle;

use kvm_bindings::KVMIO;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::{errno, ioctl_iow_nr};

use crate::kick;

// linux/kvm.h: the size in the number is that of the structure without its flexible array.
ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, u32);

/// `struct kvm_signal_mask` with the kernel's 64-bit signal set.
#[repr(C)]
struct SignalMask {
    len: u32,
    set: [u8; 8],
}

fn kick_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the whole set; sigaddset gets that set and a valid number.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), kick::signal());
        set.assume_init()
    }
}

/// Spawns a thread in which the kick signal is blocked from its first instruction.
pub(super) fn spawn_with_kick_blocked<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<JoinHandle<T>> {
    let set = kick_set();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both pointers are to live signal sets; the second is written before it is read.
    let blocked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, before.as_mut_ptr()) };
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body);
    if blocked == 0 {
        // SAFETY: `before` was written by the call above, which succeeded.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
        }
    }
    thread
}

/// Lets the kick signal, and no other, through while this vCPU is in `KVM_RUN`.
///
/// # Errors
/// The error of `KVM_SET_SIGNAL_MASK`.
pub(super) fn let_kick_through(vcpu: &VcpuFd) -> Result<(), errno::Error> {
    let set = !(1_u64 << (kick::signal() - 1));
    let mask = SignalMask {
        len: 8,
        set: set.to_ne_bytes(),
    };
    // SAFETY: the descriptor is a vCPU's, and the kernel reads `len` and as many bytes after it.
    match unsafe { ioctl_with_ref(&vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK(), &mask) } {
        0 => Ok(()),
        _ => Err(errno::Error::last()),
    }
}
