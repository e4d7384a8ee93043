//! fctools 0.6.0: hyper 1 with a pool of connections, serial console by pipes, files moved into the VM's environment.

use std::path::{Path, PathBuf};
use std::process::Command;

use fctools::process_spawner::DirectProcessSpawner;
use fctools::runtime::tokio::TokioRuntime;
use fctools::vm::api::VmApi;
use fctools::vm::configuration::{InitMethod, VmConfiguration, VmConfigurationData};
use fctools::vm::models::{
    BalloonDevice, BootSource, Drive, MachineConfiguration, NetworkInterface, RateLimiter,
    TokenBucket, UpdateBalloonDevice, UpdateDrive, UpdateNetworkInterface,
};
use fctools::vm::shutdown::{VmShutdownAction, VmShutdownMethod};
use fctools::vm::{Vm, VmState};
use fctools::vmm::arguments::jailer::{JailerArguments, JailerCgroupVersion};
use fctools::vmm::arguments::{VmmApiSocket, VmmArguments};
use fctools::vmm::executor::VmmExecutor;
use fctools::vmm::executor::jailed::{FlatVirtualPathResolver, JailedVmmExecutor};
use fctools::vmm::executor::unrestricted::UnrestrictedVmmExecutor;
use fctools::vmm::id::VmmId;
use fctools::vmm::installation::VmmInstallation;
use fctools::vmm::ownership::VmmOwnershipModel;
use fctools::vmm::resource::system::ResourceSystem;
use fctools::vmm::resource::{MovedResourceType, ResourceType};
use tests::patience;
use tests::program::{tandem_jailer, tandem_vmm};

use crate::{FROM_GUEST, Tap, block_on, files};

type Resources = ResourceSystem<DirectProcessSpawner, TokioRuntime>;

/// A VM with everything that the client can ask for and Tandem has, and the paths of its drive.
fn configuration(
    resources: &mut Resources,
    directory: &Path,
    tap: &Tap,
    console: &str,
    copied: MovedResourceType,
) -> VmConfiguration {
    let files = files(directory, tap);
    let mut moved = |path: PathBuf| {
        resources
            .create_resource(path, ResourceType::Moved(copied))
            .expect("a resource")
    };
    let limit = TokenBucket {
        size: 1 << 30,
        one_time_burst: Some(1 << 20),
        refill_time: 1000,
    };
    VmConfiguration::New {
        init_method: InitMethod::ViaApiCalls,
        data: VmConfigurationData {
            boot_source: BootSource {
                kernel_image: moved(files.kernel),
                boot_args: Some(format!("console={console} {}", files.boot_args)),
                initrd: Some(moved(files.initrd)),
            },
            drives: vec![Drive {
                drive_id: "data".to_owned(),
                is_root_device: false,
                cache_type: None,
                partuuid: None,
                is_read_only: Some(false),
                block: Some(moved(files.drive)),
                rate_limiter: Some(RateLimiter {
                    bandwidth: limit.clone(),
                    ops: limit,
                }),
                io_engine: None,
                socket: None,
            }],
            machine_configuration: MachineConfiguration {
                vcpu_count: 1,
                mem_size_mib: 256,
                smt: None,
                track_dirty_pages: Some(true),
                huge_pages: None,
            },
            cpu_template: None,
            network_interfaces: vec![NetworkInterface {
                iface_id: "eth0".to_owned(),
                host_dev_name: tap.name.clone(),
                guest_mac: Some("06:00:0a:4e:00:02".to_owned()),
                rx_rate_limiter: None,
                tx_rate_limiter: None,
            }],
            balloon_device: Some(BalloonDevice {
                amount_mib: 8,
                deflate_on_oom: true,
                stats_polling_interval_s: Some(1),
            }),
            vsock_device: None,
            logger_system: None,
            metrics_system: None,
            mmds_configuration: None,
            entropy_device: None,
        },
    }
}

/// What the client does with a VM, from its start to its end.
async fn drive<E: VmmExecutor>(
    vm: &mut Vm<E, DirectProcessSpawner, TokioRuntime>,
    tap: &Tap,
    drive: &Path,
) {
    assert_eq!(vm.get_state(), VmState::NotStarted);
    vm.start(patience()).await.expect("started");
    assert_eq!(vm.get_state(), VmState::Running);
    tap.wait_until(true);
    crate::wait_for_guest(drive);

    let info = vm.get_info().await.expect("its state");
    assert!(!info.is_paused);
    let machine = vm.get_machine_configuration().await.expect("its size");
    assert_eq!((machine.vcpu_count, machine.mem_size_mib), (1, 256));
    vm.get_firecracker_version().await.expect("its version");

    vm.pause().await.expect("paused");
    assert!(vm.get_info().await.expect("its state").is_paused);
    tap.wait_until(false);
    vm.resume().await.expect("resumed");
    assert!(!vm.get_info().await.expect("its state").is_paused);
    tap.wait_until(true);

    let balloon = vm.get_balloon_device().await.expect("its balloon");
    assert_eq!(balloon.amount_mib, 8);
    let update = UpdateBalloonDevice { amount_mib: 16 };
    vm.update_balloon_device(update).await.expect("inflated");
    let statistics = vm.get_balloon_statistics().await.expect("statistics");
    assert_eq!(statistics.target_mib, 16);
    // The same path again: what is written from now on goes to the file that is there.
    let block = vm.get_configuration().get_data().drives[0].block.clone();
    vm.update_drive(UpdateDrive {
        drive_id: "data".to_owned(),
        block,
        rate_limiter: None,
    })
    .await
    .expect("another drive");
    let limit = TokenBucket {
        size: 1 << 20,
        one_time_burst: None,
        refill_time: 100,
    };
    vm.update_network_interface(UpdateNetworkInterface {
        iface_id: "eth0".to_owned(),
        rx_rate_limiter: Some(RateLimiter {
            bandwidth: limit.clone(),
            ops: limit,
        }),
        tx_rate_limiter: None,
    })
    .await
    .expect("other limits");
    tap.wait_until(true);

    let outcome = vm
        .shutdown([VmShutdownAction {
            method: VmShutdownMethod::CtrlAltDel,
            timeout: Some(patience()),
            graceful: true,
        }])
        .await
        .expect("stopped");
    assert!(outcome.is_fully_graceful(), "{outcome:?}");
    assert_eq!(vm.get_state(), VmState::Exited);
    vm.cleanup().await.expect("cleaned up");
}

#[test]
fn fctools_drives_a_vm_from_start_to_end() {
    let directory = tempfile::tempdir().expect("a directory");
    let tap = Tap::new(3);
    block_on(async {
        let mut resources = Resources::new(
            DirectProcessSpawner,
            TokioRuntime,
            VmmOwnershipModel::Shared,
        );
        // Where nothing is jailed, files stay where they are.
        let configuration = configuration(
            &mut resources,
            directory.path(),
            &tap,
            "ttyS0",
            MovedResourceType::Copied,
        );
        let socket = directory.path().join("api.sock");
        let executor =
            UnrestrictedVmmExecutor::new(VmmArguments::new(VmmApiSocket::Enabled(socket.clone())));
        let vmm = tandem_vmm().to_owned();
        let installation = VmmInstallation::new(vmm.clone(), vmm.clone(), vmm);
        let mut vm = Vm::prepare(executor, resources, installation, configuration)
            .await
            .expect("prepared");
        drive(&mut vm, &tap, &directory.path().join("drive")).await;
        assert!(!socket.exists());
    });
    let drive = std::fs::read(directory.path().join("drive")).expect("the drive");
    assert!(drive[512..].starts_with(FROM_GUEST.as_bytes()));
}

/// Who runs the machine in the jail: nobody that the lab knows.
const USER: u32 = 30_078;

/// Where jails can be made: a file system that takes device nodes, gone with the test.
struct JailBase(tempfile::TempDir);

impl JailBase {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "mode=755", "jails"])
            .arg(dir.path())
            .status();
        assert!(mounted.expect("mount").success());
        Self(dir)
    }
}

impl Drop for JailBase {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn drives_a_jailed_vm(net: u8, change: impl FnOnce(JailerArguments) -> JailerArguments) {
    let directory = tempfile::tempdir().expect("a directory");
    let base = JailBase::new();
    let tap = Tap::of(net, Some(USER));
    // The jailer takes no program that has a second name, as cargo gives those that it builds.
    let vmm = base.0.path().join("tandem-vmm");
    std::fs::copy(tandem_vmm(), &vmm).expect("a copy");
    let id = format!("client{net}");
    let jail = base.0.path().join("jails");
    let root = jail.join("tandem-vmm").join(&id).join("root");
    block_on(async {
        let ownership = VmmOwnershipModel::Downgraded {
            uid: USER,
            gid: USER,
        };
        let mut resources = Resources::new(DirectProcessSpawner, TokioRuntime, ownership);
        let configuration = configuration(
            &mut resources,
            directory.path(),
            &tap,
            "ttyS0",
            MovedResourceType::Copied,
        );
        let arguments = VmmArguments::new(VmmApiSocket::Enabled("/run/api.sock".into()));
        let jailer = JailerArguments::new(VmmId::new(id).expect("an id"))
            .cgroup_version(JailerCgroupVersion::V2)
            .chroot_base_dir(jail);
        let executor = JailedVmmExecutor::new(arguments, change(jailer), FlatVirtualPathResolver);
        let jailer = tandem_jailer().to_owned();
        let installation = VmmInstallation::new(vmm, jailer.clone(), jailer);
        let mut vm = Vm::prepare(executor, resources, installation, configuration)
            .await
            .expect("prepared");
        drive(&mut vm, &tap, &root.join("drive")).await;
    });
    assert!(!root.exists(), "the client removes the jail");
}

#[test]
fn fctools_drives_a_jailed_vm() {
    drives_a_jailed_vm(4, |jailer| jailer);
}

#[test]
fn fctools_drives_a_jailed_daemon_in_a_pid_namespace() {
    drives_a_jailed_vm(5, |jailer| jailer.daemonize().exec_in_new_pid_ns());
}
