//! Network interfaces.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use devices::virtio::net::passt::PATH_MOST;
use devices::virtio::net::tap::NAME_MOST;
use devices::virtio::rate_limiter::RateLimiterConfig;
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

use super::{ConfigError, null_is_default};

/// The kernel's names of threads have no more bytes.
const THREAD_NAME_MOST: usize = 15;
/// Smallest MTU of a virtio device (VIRTIO 1.2, 5.1.4.1).
const LEAST_MTU: u16 = 68;

/// A virtio network device. What Firecracker does not have is optional.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterface {
    /// Name, unique in the machine: letters, digits and `_`.
    pub iface_id: String,
    /// Name of the host's tap: one that is there, or one that is made and goes with the VM. Needed for all backends but
    /// [`Passt`](NetBackend::Passt).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_dev_name: Option<String>,
    /// Address of the guest's interface. Without it there is a random one that stays for this run of the VM; Firecracker
    /// leaves it to the guest then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<MacAddress>,
    /// MTU that the guest is told, in bytes: 68 to 65535. The tap's own is not changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Limits of what the guest receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiterConfig>,
    /// Limits of what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiterConfig>,
    /// Tandem's own: what the frames go to.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "NetBackend::is_default"
    )]
    pub backend: NetBackend,
    /// Tandem's own: the socket of a passt process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<PathBuf>,
    /// Tandem's own: pairs of queues, from 1 to the number of vCPUs; without it one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// Tandem's own: the thread that serves the device, of 1 to 15 bytes. Devices of the same name share one; without it
    /// the device is served by the machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_thread: Option<String>,
}

/// What an interface's frames go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetBackend {
    /// A tap of the host's kernel.
    #[default]
    Tap,
    /// The same, with queues that the host's kernel serves (`/dev/vhost-net`): fewer steps for each frame, and no limits.
    VhostNet,
    /// A passt process, which needs no privilege.
    Passt,
}

impl NetBackend {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// An Ethernet address: six bytes in hexadecimal with colons between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next()?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        parts.next().is_none().then_some(Self(bytes))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(formatter, "{first:02x}")?;
        rest.iter()
            .try_for_each(|byte| write!(formatter, ":{byte:02x}"))
    }
}

impl Serialize for MacAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            de::Error::custom(format_args!(
                "{text:?} is no Ethernet address; give six bytes as in 06:00:c0:a8:00:02"
            ))
        })
    }
}

impl NetworkInterface {
    /// An interface at a tap, with all else at its default.
    pub fn new(iface_id: impl Into<String>, host_dev_name: impl Into<String>) -> Self {
        Self {
            iface_id: iface_id.into(),
            host_dev_name: Some(host_dev_name.into()),
            guest_mac: None,
            mtu: None,
            rx_rate_limiter: None,
            tx_rate_limiter: None,
            backend: NetBackend::default(),
            socket_path: None,
            queues: None,
            io_thread: None,
        }
    }

    /// Pairs of queues.
    pub fn pairs(&self) -> u16 {
        self.queues.unwrap_or(1)
    }

    /// Checks what its type leaves open. `path` is where it is in the configuration.
    fn validate(&self, path: &str, vcpus: u8) -> Result<(), ConfigError> {
        let wrong = |field: &str, problem: String, remedy: &str| {
            Err(ConfigError::new(format!("{path}.{field}"), problem, remedy))
        };
        let id = &self.iface_id;
        let letters = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if id.is_empty() || !id.bytes().all(letters) {
            return wrong(
                "iface_id",
                format!("is {id:?}"),
                "give letters, digits and _, one at least",
            );
        }
        let tap = self.backend != NetBackend::Passt;
        match &self.host_dev_name {
            Some(name) if tap && !is_interface_name(name) => {
                return wrong(
                    "host_dev_name",
                    format!("is {name:?}"),
                    "give the name of a tap: 1 to 15 visible ASCII characters without / : %",
                );
            }
            // Firecracker's field is not optional, and a file may be meant for both.
            Some(_) => {}
            None if tap => {
                return wrong(
                    "host_dev_name",
                    "is missing".into(),
                    "give the name of a tap, or backend \"passt\"",
                );
            }
            None => {}
        }
        match &self.socket_path {
            Some(path) if tap => {
                return wrong(
                    "socket_path",
                    format!("is {}, and a tap has none", path.display()),
                    "remove it, or give backend \"passt\"",
                );
            }
            Some(path) if !(1..=PATH_MOST).contains(&path.as_os_str().len()) => {
                return wrong(
                    "socket_path",
                    format!("has {} bytes", path.as_os_str().len()),
                    "give a path of 1 to 107 bytes",
                );
            }
            Some(_) => {}
            None if tap => {}
            None => {
                return wrong(
                    "socket_path",
                    "is missing".into(),
                    "give the path of passt's socket (passt --socket PATH)",
                );
            }
        }
        if let Some(mac) = self.guest_mac
            && (mac.0[0] & 1 != 0 || mac.0 == [0; 6])
        {
            return wrong(
                "guest_mac",
                format!("is {mac}, which is not the address of one interface"),
                "give one whose first byte is even, such as 06:00:c0:a8:00:02",
            );
        }
        if self.backend == NetBackend::VhostNet {
            for (field, limits) in [
                ("rx_rate_limiter", self.rx_rate_limiter),
                ("tx_rate_limiter", self.tx_rate_limiter),
            ] {
                if limits.is_some() {
                    return wrong(
                        field,
                        "is given, and the host's kernel, which serves the queues, has none".into(),
                        "remove it, or give backend \"tap\"",
                    );
                }
            }
        }
        if let Some(mtu) = self.mtu.filter(|mtu| *mtu < LEAST_MTU) {
            return wrong("mtu", format!("is {mtu}"), "give 68 to 65535");
        }
        let most = if tap { u16::from(vcpus) } else { 1 };
        if let Some(queues) = self.queues.filter(|queues| !(1..=most).contains(queues)) {
            let remedy = if tap {
                format!("give 1 to {most} pairs, one for each vCPU at most")
            } else {
                "give 1: passt has no more".into()
            };
            return wrong("queues", format!("is {queues}"), &remedy);
        }
        if let Some(name) = &self.io_thread
            && (!(1..=THREAD_NAME_MOST).contains(&name.len()) || name.contains('\0'))
        {
            return wrong(
                "io_thread",
                format!("is {name:?}"),
                "give a name of 1 to 15 bytes",
            );
        }
        Ok(())
    }
}

/// What the kernel takes as an interface's name, less what it would fill in (`%d`) and what nobody can read.
fn is_interface_name(name: &str) -> bool {
    let visible = |byte: u8| byte.is_ascii_graphic() && !b"/:%".contains(&byte);
    (1..=NAME_MOST).contains(&name.len())
        && name.bytes().all(visible)
        && !matches!(name, "." | "..")
}

/// Checks all interfaces of a machine.
///
/// # Errors
/// [`ConfigError`], for the first that is wrong.
pub fn validate(interfaces: &[NetworkInterface], vcpus: u8) -> Result<(), ConfigError> {
    let mut ids = BTreeSet::new();
    let mut taps = BTreeSet::new();
    for (index, interface) in interfaces.iter().enumerate() {
        let path = format!("network-interfaces[{index}]");
        interface.validate(&path, vcpus)?;
        if !ids.insert(&interface.iface_id) {
            return Err(ConfigError::new(
                format!("{path}.iface_id"),
                format!("is {:?}, like another one's", interface.iface_id),
                "give each interface an id of its own",
            ));
        }
        let tap = interface.host_dev_name.as_ref();
        let tap = tap.filter(|_| interface.backend != NetBackend::Passt);
        if let Some(tap) = tap
            && !taps.insert(tap)
        {
            return Err(ConfigError::new(
                format!("{path}.host_dev_name"),
                format!("is {tap:?}, like another one's"),
                "give each interface a tap of its own",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<NetworkInterface, serde_json::Error> {
        serde_json::from_str(json)
    }

    fn checked(fields: &str) -> Result<(), String> {
        let json = format!(r#"{{"iface_id": "eth0", {fields}}}"#);
        let interface = parse(&json).map_err(|error| error.to_string())?;
        validate(&[interface], 4).map_err(|error| error.to_string())
    }

    #[test]
    fn what_firecracker_takes_works() {
        let interface = parse(
            r#"{"iface_id": "net1", "guest_mac": "06:00:AC:10:00:02", "host_dev_name": "vmtap0", "mtu": null,
                "rx_rate_limiter": {"bandwidth": {"size": 1, "one_time_burst": 0, "refill_time": 1}, "ops": null},
                "tx_rate_limiter": null}"#,
        )
        .unwrap();
        validate(std::slice::from_ref(&interface), 1).unwrap();
        assert_eq!(
            interface.guest_mac.unwrap().to_string(),
            "06:00:ac:10:00:02"
        );
        assert_eq!((interface.backend, interface.pairs()), (NetBackend::Tap, 1));
        let again = serde_json::to_string(&interface).unwrap();
        assert_eq!(parse(&again).unwrap(), interface);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (fields, expected) in [
            (r#""host_dev_name": """#, "host_dev_name: is \"\""),
            (r#""host_dev_name": "abcdefghijklmnop""#, "1 to 15"),
            (r#""host_dev_name": "tap%d""#, "host_dev_name"),
            (r#""host_dev_name": "a/b""#, "host_dev_name"),
            (r#""host_dev_name": "..""#, "host_dev_name"),
            (r#""host_dev_name": "t 0""#, "host_dev_name"),
            (r#""backend": "tap""#, "host_dev_name: is missing"),
            (r#""backend": "passt""#, "socket_path: is missing"),
            (r#""backend": "passt", "socket_path": """#, "107"),
            (
                r#""backend": "passt", "socket_path": "/s", "queues": 2"#,
                "give 1: passt",
            ),
            (
                r#""backend": "pasta", "host_dev_name": "t""#,
                "unknown variant",
            ),
            (
                r#""host_dev_name": "t", "socket_path": "/s""#,
                "socket_path: is /s",
            ),
            (
                r#""host_dev_name": "t", "guest_mac": "01:00:00:00:00:01""#,
                "guest_mac: is 01",
            ),
            (
                r#""host_dev_name": "t", "guest_mac": "00:00:00:00:00:00""#,
                "guest_mac: is 00",
            ),
            (
                r#""host_dev_name": "t", "guest_mac": "02:00:00:00:00""#,
                "no Ethernet address",
            ),
            (
                r#""host_dev_name": "t", "guest_mac": "02:00:00:00:00:01:02""#,
                "no Ethernet address",
            ),
            (
                r#""host_dev_name": "t", "guest_mac": "02:00:00:00:00:+1""#,
                "no Ethernet address",
            ),
            (r#""host_dev_name": "t", "mtu": 67"#, "mtu: is 67"),
            (r#""host_dev_name": "t", "mtu": 65536"#, "65536"),
            (
                r#""host_dev_name": "t", "queues": 0"#,
                "queues: is 0; give 1 to 4",
            ),
            (r#""host_dev_name": "t", "queues": 5"#, "queues: is 5"),
            (r#""host_dev_name": "t", "io_thread": """#, "io_thread"),
            (
                r#""host_dev_name": "t", "allow_mmds_requests": true"#,
                "unknown field",
            ),
        ] {
            let error = checked(fields).unwrap_err();
            assert!(error.contains(expected), "{fields}: {error}");
        }
        for fields in [
            r#""host_dev_name": "tap-0.1@x", "queues": 4, "mtu": 65535, "io_thread": "net""#,
            r#""backend": "passt", "socket_path": "/run/passt.socket", "host_dev_name": "ignored""#,
        ] {
            checked(fields).unwrap();
        }
    }

    #[test]
    fn interfaces_do_not_share_names() {
        let same_id = [
            NetworkInterface::new("a", "t0"),
            NetworkInterface::new("a", "t1"),
        ];
        let error = validate(&same_id, 1).unwrap_err().to_string();
        assert!(
            error.starts_with("network-interfaces[1].iface_id:"),
            "{error}"
        );
        let same_tap = [
            NetworkInterface::new("a", "t0"),
            NetworkInterface::new("b", "t0"),
        ];
        let error = validate(&same_tap, 1).unwrap_err().to_string();
        assert!(
            error.starts_with("network-interfaces[1].host_dev_name:"),
            "{error}"
        );
        for id in ["", "a-b", "ä", "a b"] {
            assert!(
                validate(&[NetworkInterface::new(id, "t")], 1).is_err(),
                "{id}"
            );
        }
    }
}
