//! Runs one program of the probe guest in a fresh vCPU, with a time limit.
//!
//! One VM serves all checks as long as they pass, because creating and destroying VMs is what takes
//! long where KVM is hardware. After a failure the next check gets a new VM, so that nothing of the
//! failed one can mask it. There is no in-kernel interrupt controller: its absence makes every vCPU
//! runnable from its creation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::VolatileMemory;
use vm_memory::mmap::MmapRegion;

use super::guest::{self, Program};
use super::signal;
use super::vcpu::Vcpu;
use super::{Check, Failure, Outcome};
use crate::{kick, kvm};

/// How often, and how many times, a vCPU that is out of time is told to stop.
const KICK_INTERVAL: Duration = Duration::from_millis(20);
const KICKS: u32 = 50;

/// Runs checks one after the other.
pub(super) struct Runner<'a> {
    kvm: &'a Kvm,
    pub(super) time_limit: Duration,
    cpuid: Result<CpuId, Failure>,
    /// The VM of the checks so far, as long as they all passed.
    vm: Option<Arc<Vm>>,
    vcpus: u64,
}

/// A VM and its memory; the file descriptor goes first when it is dropped.
pub(super) struct Vm {
    pub(super) fd: VmFd,
    memory: MmapRegion,
}

impl<'a> Runner<'a> {
    pub(super) fn new(kvm: &'a Kvm, time_limit: Duration) -> Self {
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| system("KVM_GET_SUPPORTED_CPUID", error));
        Self {
            kvm,
            time_limit,
            cpuid,
            vm: None,
            vcpus: 0,
        }
    }

    /// Runs one check.
    pub(super) fn check(&mut self, check: Check) -> Outcome {
        if let Ok(cpuid) = &self.cpuid
            && let Some(missing) = missing_feature(check, cpuid)
        {
            return Outcome::Skipped {
                missing: missing.to_owned(),
            };
        }
        match self.run(Program::Check(check)) {
            Ok(()) => Outcome::Passed,
            Err(failure) => Outcome::from_failure(failure),
        }
    }

    /// Runs one program to its verdict.
    pub(super) fn run(&mut self, program: Program) -> Result<(), Failure> {
        let cpuid = self.cpuid.clone()?;
        let vm = match self.vm.take() {
            Some(vm) => vm,
            None => {
                self.vcpus = 0;
                Arc::new(Vm::new(self.kvm)?)
            }
        };
        vm.reset_memory();
        let vcpu_id = self.vcpus;
        self.vcpus += 1;
        let limit_ms = millis(self.time_limit);
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = channel();
        let thread = {
            let (vm, stop) = (Arc::clone(&vm), Arc::clone(&stop));
            signal::spawn_with_kick_blocked("probe-vcpu", move || {
                let result = Vcpu::new(&vm, vcpu_id, program, &cpuid)
                    .and_then(|mut vcpu| vcpu.run(&vm, &stop, limit_ms));
                drop(vm);
                // The receiver is gone when we were given up.
                let _ = sender.send(result);
            })
            .map_err(|error| Failure::System {
                what: "starting the vCPU's thread".to_owned(),
                errno: error.raw_os_error().unwrap_or(0),
            })?
        };
        let result = wait(&thread, &receiver, &stop, self.time_limit);
        if result.is_ok() {
            self.vm = Some(vm);
        }
        result
    }
}

/// Waits for the vCPU's own result; out of time, it stops the vCPU.
fn wait(
    thread: &JoinHandle<()>,
    receiver: &Receiver<Result<(), Failure>>,
    stop: &AtomicBool,
    time_limit: Duration,
) -> Result<(), Failure> {
    let mut patience = time_limit;
    for _ in 0..KICKS {
        match receiver.recv_timeout(patience) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Timeout) => {
                stop.store(true, Ordering::Release);
                kick::send(thread);
                patience = KICK_INTERVAL;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    Err(Failure::Stuck {
        limit_ms: millis(time_limit),
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Vm {
    fn new(kvm: &Kvm) -> Result<Self, Failure> {
        let fd = kvm::create_vm(kvm).map_err(|error| system("KVM_CREATE_VM", error))?;
        let memory = MmapRegion::new(guest::MEMORY_SIZE).map_err(|_| Failure::System {
            what: "mapping the guest's memory".to_owned(),
            errno: libc::ENOMEM,
        })?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: guest::MEMORY_SIZE as u64,
            userspace_addr: memory.as_ptr() as u64,
        };
        // SAFETY: the mapping is as long as the region says, belongs to this value alone, and is
        // unmapped only after the VM's descriptor is closed (order of the fields).
        unsafe { fd.set_user_memory_region(region) }
            .map_err(|error| system("KVM_SET_USER_MEMORY_REGION", error))?;
        Ok(Self { fd, memory })
    }

    fn reset_memory(&self) {
        self.memory.as_volatile_slice().copy_from(&guest::image());
    }

    /// Up to eight bytes at guest address `address`, in hexadecimal; empty outside the memory.
    pub(super) fn hex_at(&self, address: u64) -> String {
        let room = (guest::MEMORY_SIZE as u64).saturating_sub(address).min(8) as usize;
        let mut bytes = [0_u8; 8];
        let bytes = &mut bytes[..room];
        if let Ok(slice) = self.memory.get_slice(address as usize, room) {
            slice.copy_to(bytes);
        }
        let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        hex.join(" ")
    }
}

/// The feature that a check uses beyond the x86-64 baseline, if guests are not offered it.
fn missing_feature(check: Check, cpuid: &CpuId) -> Option<&'static str> {
    let leaf_1_ecx = cpuid
        .as_slice()
        .iter()
        .find(|entry| entry.function == 1)
        .map_or(0, |entry| entry.ecx);
    let (bit, name) = match check {
        Check::Cmpxchg16b => (13, "CX16"),
        Check::Xsave => (26, "XSAVE"),
        _ => return None,
    };
    (leaf_1_ecx & (1 << bit) == 0).then_some(name)
}

/// A failed ioctl, by its name.
pub(super) fn system(what: &str, error: kvm_ioctls::Error) -> Failure {
    Failure::System {
        what: what.to_owned(),
        errno: error.errno(),
    }
}
