//! Making a VM with KVM, which a signal can interrupt.

use kvm_ioctls::{Kvm, VmFd};

/// `KVM_CREATE_VM`, as often as a signal gets in its way: registering for changes of the process's memory gives up with EINTR
/// when one is pending (`mm_take_all_locks`, mm/mmap.c).
pub(crate) fn create_vm(kvm: &Kvm) -> Result<VmFd, kvm_ioctls::Error> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result,
        }
    }
}
