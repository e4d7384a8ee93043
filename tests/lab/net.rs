//! Network devices: taps and passt on one side, the kernels' own driver on the other.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};
use tests::guest_shell::GuestShell;
use tests::patience;
use tests::vm::VmBuilder;

use crate::kernels::{Kernel, commands};

/// An ordinary user, and a group of the same number.
pub const NOBODY: u32 = 65534;

/// Runs a program of the lab's.
#[track_caller]
pub fn run(program: &str, args: &str) -> String {
    let output = Command::new(program)
        .args(args.split_whitespace())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {args}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A tap of the lab's, with the address 10.77.N.1. It goes with the test.
pub struct Tap {
    pub name: String,
    net: u32,
}

impl Tap {
    pub fn new(options: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let net = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("net{net}");
        run("ip", &format!("tuntap add dev {name} mode tap {options}"));
        let tap = Self { name, net };
        run(
            "ip",
            &format!("address add {}/24 dev {}", tap.host(), tap.name),
        );
        run("ip", &format!("link set {} up", tap.name));
        tap
    }

    pub fn host(&self) -> String {
        format!("10.77.{}.1", self.net)
    }

    pub fn guest(&self) -> String {
        format!("10.77.{}.2", self.net)
    }

    /// Makes this the lab's way to the world, by a router that is not there. passt gives its guest the address of the interface
    /// that has the default route, and has the router stand for the host itself.
    pub fn uplink(&self) -> String {
        let router = format!("10.77.{}.254", self.net);
        run("ip", "link set lo up");
        run(
            "ip",
            &format!("route add default via {router} dev {}", self.name),
        );
        router
    }

    /// Boots a guest with an interface at this tap, and gives it its address.
    #[track_caller]
    pub fn boot(&self, builder: VmBuilder, fields: Value) -> GuestShell {
        let shell = boot(builder, &self.name, fields);
        self.up(shell)
    }

    #[track_caller]
    fn up(&self, mut shell: GuestShell) -> GuestShell {
        let address = self.guest();
        shell.ok(&format!(
            "ip address add {address}/24 dev eth0 && ip link set eth0 up"
        ));
        shell
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // It fails where the test has done it.
        let _ = Command::new("ip")
            .args(["link", "del", &self.name])
            .stderr(Stdio::null())
            .status();
    }
}

#[track_caller]
fn boot(mut builder: VmBuilder, tap: &str, fields: Value) -> GuestShell {
    let mut interface = json!({ "iface_id": "eth0", "host_dev_name": tap });
    for (name, value) in fields.as_object().expect("an object") {
        interface[name] = value.clone();
    }
    builder.config["network-interfaces"] = json!([interface]);
    let metrics = builder.path("metrics");
    builder.config["metrics"] = json!({ "metrics_path": metrics });
    GuestShell::boot(builder)
}

/// The device's counters at the end.
#[track_caller]
pub fn power_off(shell: GuestShell) -> Value {
    let ended = shell.power_off();
    let text = fs::read_to_string(ended.path("metrics")).expect("there are counters");
    let last = text.lines().last().expect("a line");
    let all: Value = serde_json::from_str(last).expect("JSON");
    let counters = all["net_eth0"].clone();
    assert!(counters.is_object(), "{all}");
    for bad in [
        "tx_errors",
        "rx_errors",
        "tx_dropped_header",
        "tx_dropped_short",
        "rx_dropped_no_fit",
    ] {
        assert_eq!(counters[bad], 0, "{counters}");
    }
    counters
}

fn at_least(counters: &Value, name: &str, least: u64) {
    let value = counters[name].as_u64().expect("a number");
    assert!(value >= least, "{name} is {value}\n{counters}");
}

/// An iperf3 server of the lab's, for one connection.
struct Iperf(Child);

impl Iperf {
    fn server(address: &str) -> Self {
        let child = Command::new("iperf3")
            .args(["-s", "-1", "--forceflush", "-B", address])
            .stdout(Stdio::null())
            .spawn()
            .expect("iperf3 is installed");
        let server = Self(child);
        let deadline = Instant::now() + patience();
        while !run("ss", "-ltnH").contains(&format!("{address}:5201")) {
            assert!(Instant::now() < deadline, "iperf3 does not listen");
        }
        server
    }
}

impl Drop for Iperf {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bits in a second that iperf3 saw arrive.
#[track_caller]
fn iperf(shell: &mut GuestShell, host: &str, options: &str) -> f64 {
    iperf_at(shell, host, host, options)
}

/// The same, with a server at an address that the guest sees as `host`.
#[track_caller]
fn iperf_at(shell: &mut GuestShell, server: &str, host: &str, options: &str) -> f64 {
    let _server = Iperf::server(server);
    let text = shell.ok(&format!("iperf3 -J -c {host} {options}"));
    let result: Value = serde_json::from_str(&text).expect("JSON");
    let end = &result["end"];
    let sum = ["sum_received", "sum"]
        .iter()
        .find_map(|name| end[name]["bits_per_second"].as_f64());
    sum.unwrap_or_else(|| panic!("no result: {text}"))
}

#[test]
fn a_thousand_pings() {
    let tap = Tap::new("");
    let mac = "06:00:0a:4d:00:02";
    let mut shell = tap.boot(commands(Kernel::GENERIC_6_12), json!({ "guest_mac": mac }));
    assert_eq!(shell.ok("cat /sys/class/net/eth0/address"), mac);
    let text = shell.ok(&format!("ping -q -c 1000 -i 0.002 {}", tap.host()));
    assert!(text.contains("1000 received"), "{text}");
    println!("{text}");
    let text = run("ping", &format!("-q -c 1000 -i 0.002 {}", tap.guest()));
    assert!(text.contains("1000 received"), "{text}");
    let offloads = shell.ok("ethtool -k eth0");
    for on in [
        "tx-checksumming: on",
        "rx-checksumming: on",
        "tcp-segmentation-offload: on",
        "tx-tcp6-segmentation: on",
        "tx-tcp-ecn-segmentation: on",
        "generic-receive-offload: on",
    ] {
        assert!(offloads.contains(on), "no {on}\n{offloads}");
    }
    // This one is for the asking.
    shell.ok("ethtool -K eth0 tx-udp-segmentation on");
    assert_eq!(shell.ok("cat /sys/class/net/eth0/mtu"), "1500");
    let counters = power_off(shell);
    at_least(&counters, "rx_packets", 2000);
    at_least(&counters, "tx_packets", 2000);
    at_least(&counters, "tx_bytes", 2000 * 98);
}

#[test]
fn tcp_both_ways() {
    let tap = Tap::new("");
    let mut shell = tap.boot(commands(Kernel::CLOUD_6_12), json!({}));
    let there = iperf(&mut shell, &tap.host(), "-n 100M");
    let back = iperf(&mut shell, &tap.host(), "-n 100M -R");
    println!(
        "tap: sends {:.0} Mbit/s, receives {:.0} Mbit/s",
        there / 1e6,
        back / 1e6
    );
    let counters = power_off(shell);
    println!("{counters}");
    // Segments far beyond the MTU went through in one piece.
    for direction in ["rx", "tx"] {
        let value = |name: &str| counters[format!("{direction}_{name}")].as_u64().unwrap();
        // At its end iperf3 leaves what is in the sender's socket.
        assert!(value("bytes") > 90 << 20, "{counters}");
        assert!(value("bytes") / value("packets") > 8000, "{counters}");
    }
}

#[test]
fn frames_of_all_sizes() {
    let tap = Tap::new("");
    run("ip", &format!("link set {} mtu 9000", tap.name));
    let mut shell = tap.boot(commands(Kernel::CLOUD_6_12), json!({ "mtu": 9000 }));
    assert_eq!(shell.ok("cat /sys/class/net/eth0/mtu"), "9000");
    let host = tap.host();
    for size in [0, 1, 17, 18, 19, 1472, 1473, 4000, 8971, 8972] {
        let text = shell.ok(&format!("ping -q -c 20 -i 0.005 -M do -s {size} {host}"));
        assert!(text.contains("20 received"), "{size}: {text}");
    }
    // Beyond the MTU: fragments.
    let text = shell.ok(&format!("ping -q -c 20 -i 0.01 -s 60000 {host}"));
    assert!(text.contains("20 received"), "{text}");
    // Without merged receive buffers or offloads it is the same.
    shell.ok("ethtool -K eth0 gro off tso off gso off tx off rx off 2>&1");
    let text = shell.ok(&format!("ping -q -c 20 -i 0.01 -s 8972 -M do {host}"));
    assert!(text.contains("20 received"), "{text}");
    let rate = iperf(&mut shell, &host, "-n 20M -R");
    println!("jumbo without offloads: {:.0} Mbit/s", rate / 1e6);
    power_off(shell);
}

#[test]
fn a_tap_that_is_removed() {
    let tap = Tap::new("");
    let mut shell = tap.boot(commands(Kernel::CLOUD_6_12), json!({}));
    let host = tap.host();
    shell.ok(&format!("ping -q -c 3 -i 0.01 {host}"));
    assert_eq!(shell.ok("cat /sys/class/net/eth0/carrier"), "1");
    run("ip", &format!("link del {}", tap.name));
    shell.ok("for i in $(seq 100); do [ $(cat /sys/class/net/eth0/carrier) = 0 ] && exit; sleep 0.05; done; exit 1");
    assert_ne!(shell.run(&format!("ping -q -c 2 -W 1 {host}")).status, 0);
    let errors = shell.vm().errors();
    assert_eq!(errors.matches("its link is lost").count(), 1, "{errors}");
    let ended = shell.power_off();
    assert_eq!(ended.stderr, errors);
}

#[test]
fn several_queues() {
    let tap = Tap::new("multi_queue");
    let builder = commands(Kernel::CLOUD_6_12).vcpus(2);
    let mut shell = tap.boot(builder, json!({ "queues": 2, "io_thread": "eth0" }));
    let channels = shell.ok("ethtool -l eth0");
    assert_eq!(channels.matches("Combined:\t2").count(), 2, "{channels}");
    let irqs = shell.ok("grep virtio /proc/interrupts");
    for name in ["input.0", "output.0", "input.1", "output.1"] {
        assert!(irqs.contains(name), "no {name}\n{irqs}");
    }
    let host = tap.host();
    let rate = iperf(&mut shell, &host, "-n 20M -P 4 -R");
    println!("two queues: {:.0} Mbit/s", rate / 1e6);
    shell.ok("ethtool -L eth0 combined 1");
    shell.ok(&format!("ping -q -c 50 -i 0.005 {host}"));
    shell.ok("ethtool -L eth0 combined 2");
    shell.ok(&format!("ping -q -c 50 -i 0.005 {host}"));
    // A queue of another size, which resets it.
    shell.ok("ethtool -G eth0 rx 128 tx 64");
    iperf(&mut shell, &host, "-n 5M -P 2");
    let counters = power_off(shell);
    at_least(&counters, "commands", 3);
    assert_eq!(counters["commands_refused"], 0, "{counters}");
}

/// One edge-triggered line for all queues: nothing that it tells is lost.
#[test]
fn over_mmio() {
    let tap = Tap::new("");
    let mut builder = commands(Kernel::CLOUD_6_12).vcpus(2);
    builder.config["machine-config"]["transport"] = json!("mmio");
    let mut shell = tap.boot(builder, json!({}));
    let host = tap.host();
    let text = shell.ok(&format!("ping -q -c 1000 -i 0.002 {host}"));
    assert!(text.contains("1000 received"), "{text}");
    for options in ["-n 20M -P 2", "-n 20M -P 2 -R"] {
        let rate = iperf(&mut shell, &host, options);
        println!("over MMIO, {options}: {:.0} Mbit/s", rate / 1e6);
    }
    let irqs = shell.ok("grep virtio /proc/interrupts");
    assert!(irqs.contains("IO-APIC"), "{irqs}");
    print!("{irqs}");
    power_off(shell);
}

#[test]
fn a_limit_holds_and_can_be_lifted() {
    let tap = Tap::new("");
    let bucket = json!({ "size": 20, "refill_time": 1000 });
    let limits = json!({ "tx_rate_limiter": { "ops": bucket } });
    let builder = commands(Kernel::CLOUD_6_12).option("--level", "Info");
    let mut shell = tap.boot(builder, limits);
    let ping = |shell: &mut GuestShell, count: u32| {
        let begin = Instant::now();
        let host = tap.host();
        let text = shell.ok(&format!("ping -q -c {count} -i 0.01 -W 60 {host}"));
        assert!(text.contains(&format!("{count} received")), "{text}");
        begin.elapsed()
    };
    // 120 frames at 20 a second, less the full bucket.
    let limited = ping(&mut shell, 120);
    assert!(limited.as_secs_f64() > 4.5, "{limited:?}");
    let vm = shell.vm();
    assert!(vm.metrics()["net_eth0"]["tx_throttled"].as_u64() > Some(0));
    let text = fs::read_to_string(vm.path("vm.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["network-interfaces"][0]["tx_rate_limiter"] = Value::Null;
    vm.reload(&config.to_string(), "net_eth0: changed");
    let before = vm.metrics()["net_eth0"]["tx_throttled"].clone();
    ping(&mut shell, 120);
    let counters = power_off(shell);
    assert_eq!(counters["tx_throttled"], before, "{counters}");
    assert_eq!(counters["rx_throttled"], 0);
}

/// An ordinary user's passt, in the lab's network. It goes with the test.
pub struct Passt {
    child: Child,
    socket: PathBuf,
}

impl Passt {
    fn start(socket: &Path) -> Self {
        Self::with(socket, &[])
    }

    /// With more options.
    pub fn with(socket: &Path, options: &[&str]) -> Self {
        let child = Command::new("passt")
            .args(["--foreground", "--stderr", "--socket"])
            .arg(socket)
            .args(options)
            .uid(NOBODY)
            .gid(NOBODY)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("passt is installed");
        let passt = Self {
            child,
            socket: socket.to_owned(),
        };
        let deadline = Instant::now() + patience();
        while !socket.exists() {
            assert!(Instant::now() < deadline, "passt does not listen");
            thread::yield_now();
        }
        passt
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The group that may use KVM.
pub fn kvm_group() -> u32 {
    if std::env::var_os("TANDEM_IN_LAB").is_some() {
        // There is no udev to give it a group, nor to open taps to their owners.
        for device in ["/dev/kvm", "/dev/net/tun"] {
            fs::set_permissions(device, fs::Permissions::from_mode(0o666)).unwrap();
        }
    }
    fs::metadata("/dev/kvm").expect("there is KVM").gid()
}

/// What busybox's DHCP client calls with what it has got.
const DHCP: &str = "cat >/tmp/dhcp <<'END'
#!/bin/sh
[ $1 = bound ] || exit 0
ip address add $ip/$mask dev $interface
ip route add default via $router
END
chmod 755 /tmp/dhcp
ip link set eth0 up
udhcpc -i eth0 -s /tmp/dhcp -n -q -f";

#[test]
fn passt_needs_no_privilege() {
    let tap = Tap::new("");
    let router = tap.uplink();
    let mut builder = commands(Kernel::CLOUD_6_12).as_user(NOBODY, kvm_group());
    let socket = builder.path("passt");
    let mut passt = Passt::start(&socket);
    let metrics = builder.path("metrics");
    builder.config["metrics"] = json!({ "metrics_path": metrics });
    builder.config["network-interfaces"] =
        json!([{ "iface_id": "eth0", "backend": "passt", "socket_path": socket, "mtu": 65520 }]);
    let mut shell = GuestShell::boot(builder);
    let status = fs::read_to_string(format!("/proc/{}/status", shell.vm().pid())).unwrap();
    assert!(status.contains("Uid:\t65534"), "{status}");
    let lease = shell.ok(DHCP);
    let addresses = shell.ok("ip -4 address show eth0");
    assert!(addresses.contains(&tap.host()), "{lease}\n{addresses}");

    let there = iperf_at(&mut shell, "127.0.0.1", &router, "-n 20M");
    let back = iperf_at(&mut shell, "127.0.0.1", &router, "-n 20M -R");
    println!(
        "passt: sends {:.0} Mbit/s, receives {:.0} Mbit/s",
        there / 1e6,
        back / 1e6
    );

    // It ends, and comes back.
    passt.stop();
    shell.ok("for i in $(seq 100); do [ $(cat /sys/class/net/eth0/carrier) = 0 ] && exit; sleep 0.05; done; exit 1");
    let _again = Passt::start(&socket);
    shell.ok("for i in $(seq 100); do [ $(cat /sys/class/net/eth0/carrier) = 1 ] && exit; sleep 0.1; done; exit 1");
    iperf_at(&mut shell, "127.0.0.1", &router, "-n 1M");
    let counters = power_off(shell);
    assert_eq!(counters["link_lost"], 1, "{counters}");
}

/// The guest's own view of how often its device has interrupted, by queue.
#[track_caller]
fn interrupts(shell: &mut GuestShell) -> u64 {
    let text = shell.ok("grep 'virtio.*-input' /proc/interrupts");
    let words = text.split_whitespace();
    words.filter_map(|word| word.parse::<u64>().ok()).sum()
}

#[test]
fn vhost_net_serves_the_queues() {
    let tap = Tap::new("multi_queue");
    let builder = commands(Kernel::CLOUD_6_12).vcpus(2);
    let fields = json!({ "queues": 2, "backend": "vhost-net" });
    let mut shell = tap.boot(builder, fields);
    let host = tap.host();
    let text = shell.ok(&format!("ping -q -c 1000 -i 0.002 {host}"));
    assert!(text.contains("1000 received"), "{text}");
    println!("{text}");
    // Masked and unmasked while frames come: nothing is lost, and nothing hangs.
    let before = interrupts(&mut shell);
    let text = shell.ok(&format!(
        "ping -q -c 300 -i 0.01 {host} & ping=$!
        while [ -d /proc/$ping ]; do
            for irq in $(sed -n 's/^ *\\([0-9]*\\):.*virtio.*put.*/\\1/p' /proc/interrupts); do
                for cpu in 1 2; do echo $cpu >/proc/irq/$irq/smp_affinity; done
            done
        done
        wait $ping"
    ));
    assert!(text.contains("300 received"), "{text}");
    assert!(interrupts(&mut shell) > before + 100, "it interrupts");
    let offloads = shell.ok("ethtool -k eth0");
    assert!(
        offloads.contains("tcp-segmentation-offload: on"),
        "{offloads}"
    );
    // Queues that go and come, and are of another size.
    shell.ok("ethtool -L eth0 combined 1");
    shell.ok(&format!("ping -q -c 50 -i 0.005 {host}"));
    shell.ok("ethtool -L eth0 combined 2 && ethtool -G eth0 rx 128 tx 128");
    shell.ok(&format!("ping -q -c 50 -i 0.005 {host}"));
    // The driver leaves and comes back.
    shell.ok("cd /sys/bus/virtio/drivers/virtio_net && d=$(ls -d virtio*) && echo $d >unbind && echo $d >bind");
    let mut shell = tap.up(shell);
    let text = shell.ok(&format!("ping -q -c 50 -i 0.005 {host}"));
    assert!(text.contains("50 received"), "{text}");
    let counters = power_off(shell);
    assert_eq!(counters["vhost"], 1);
    at_least(&counters, "rx_packets", 1400);
    at_least(&counters, "tx_packets", 1400);
}

#[test]
fn vhost_net_tcp_both_ways() {
    let tap = Tap::new("");
    let mut shell = tap.boot(
        commands(Kernel::CLOUD_6_12),
        json!({ "backend": "vhost-net" }),
    );
    let there = iperf(&mut shell, &tap.host(), "-n 100M");
    let back = iperf(&mut shell, &tap.host(), "-n 100M -R");
    println!(
        "vhost-net: sends {:.0} Mbit/s, receives {:.0} Mbit/s",
        there / 1e6,
        back / 1e6
    );
    run("ip", &format!("link del {}", tap.name));
    shell.ok("for i in $(seq 100); do [ $(cat /sys/class/net/eth0/carrier) = 0 ] && exit; sleep 0.05; done; exit 1");
    let errors = shell.vm().errors();
    assert_eq!(errors.matches("its link is lost").count(), 1, "{errors}");
    shell.power_off();
}

#[test]
fn vhost_net_over_mmio() {
    // The interrupt status is this process's to write there: the kernel's calls go by way of the device.
    let tap = Tap::new("");
    let mut builder = commands(Kernel::CLOUD_6_12);
    builder.config["machine-config"]["transport"] = json!("mmio");
    let mut shell = tap.boot(builder, json!({ "backend": "vhost-net" }));
    let text = shell.ok(&format!("ping -q -c 300 -i 0.002 {}", tap.host()));
    assert!(text.contains("300 received"), "{text}");
    iperf(&mut shell, &tap.host(), "-n 5M");
    iperf(&mut shell, &tap.host(), "-n 5M -R");
    let counters = power_off(shell);
    assert_eq!(counters["vhost"], 1);
}
