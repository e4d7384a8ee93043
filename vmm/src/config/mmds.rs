//! The metadata service.

use std::net::Ipv4Addr;

use devices::mmds::{ADDRESS, Behaviour, Version};
use serde::{Deserialize, Serialize};

use super::{ConfigError, NetBackend, NetworkInterface, null_is_default};

/// Which interfaces reach the metadata service, and how it behaves. Its document is no part of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MmdsConfig {
    /// What the guest has to show: nothing, or a session token.
    #[serde(default, deserialize_with = "null_is_default")]
    pub version: Version,
    /// The interfaces, by their `iface_id`.
    pub network_interfaces: Vec<String>,
    /// Address of the service; without it 169.254.169.254.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4_address: Option<Ipv4Addr>,
    /// Plain text as of EC2's metadata service, whatever a request's `Accept` says.
    #[serde(default, deserialize_with = "null_is_default")]
    pub imds_compat: bool,
}

impl MmdsConfig {
    /// Address of the service.
    pub fn address(&self) -> Ipv4Addr {
        self.ipv4_address.unwrap_or(ADDRESS)
    }

    /// How it behaves.
    pub fn behaviour(&self) -> Behaviour {
        Behaviour {
            version: self.version,
            imds_compat: self.imds_compat,
        }
    }

    /// Checks what its type leaves open, beside the machine's interfaces.
    pub(super) fn validate(&self, interfaces: &[NetworkInterface]) -> Result<(), ConfigError> {
        if self.network_interfaces.is_empty() {
            return Err(ConfigError::new(
                "mmds-config.network_interfaces",
                "is empty",
                "give the iface_id of one interface at least",
            ));
        }
        for (index, id) in self.network_interfaces.iter().enumerate() {
            let wrong = |problem: String, remedy: &str| {
                let field = format!("mmds-config.network_interfaces[{index}]");
                Err(ConfigError::new(field, problem, remedy))
            };
            let Some(interface) = interfaces.iter().find(|known| known.iface_id == *id) else {
                return wrong(
                    format!("is {id:?}, and there is no such interface"),
                    "give the iface_id of one of network-interfaces",
                );
            };
            if interface.backend == NetBackend::VhostNet {
                return wrong(
                    format!("is {id:?}, whose frames the host's kernel takes (vhost-net)"),
                    "give that interface backend \"tap\", or name another",
                );
            }
        }
        // RFC 3927, 2.1: the first and the last 256 addresses are reserved.
        let address = self.address();
        let [first, second, third, _] = address.octets();
        if (first, second) != (169, 254) || !(1..=254).contains(&third) {
            return Err(ConfigError::new(
                "mmds-config.ipv4_address",
                format!("is {address}, which is not a link-local address"),
                "give one from 169.254.1.0 to 169.254.254.255",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<MmdsConfig, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn firecrackers_fields_have_its_defaults() {
        for json in [
            r#"{"network_interfaces": ["eth0"]}"#,
            r#"{"network_interfaces": ["eth0"], "version": null, "ipv4_address": null, "imds_compat": null}"#,
            r#"{"network_interfaces": ["eth0"], "version": "V1", "imds_compat": false}"#,
        ] {
            let config = parse(json).unwrap();
            assert_eq!(config.address(), Ipv4Addr::new(169, 254, 169, 254));
            assert_eq!(config.behaviour(), Behaviour::default());
        }
        let all = r#"{"network_interfaces": ["eth0"], "version": "V2", "ipv4_address": "169.254.170.2", "imds_compat": true}"#;
        let config = parse(all).unwrap();
        assert_eq!(config.behaviour().version, Version::V2);
        assert!(config.behaviour().imds_compat);
        assert_eq!(config.address(), Ipv4Addr::new(169, 254, 170, 2));
        let written = serde_json::to_string(&config).unwrap();
        assert_eq!(parse(&written).unwrap(), config);
        for bad in [
            "{}",
            r#"{"network_interfaces": "eth0"}"#,
            r#"{"network_interfaces": ["eth0"], "version": "V3"}"#,
            r#"{"network_interfaces": ["eth0"], "ipv4_address": ""}"#,
            r#"{"network_interfaces": ["eth0"], "ipv4_address": "::1"}"#,
            r#"{"network_interfaces": ["eth0"], "compat": true}"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut kernel = NetworkInterface::new("eth1", "tap1");
        kernel.backend = NetBackend::VhostNet;
        let interfaces = [NetworkInterface::new("eth0", "tap0"), kernel];
        let check = |ids: &[&str], address: Option<[u8; 4]>| {
            let config = MmdsConfig {
                version: Version::V1,
                network_interfaces: ids.iter().map(|id| (*id).into()).collect(),
                ipv4_address: address.map(Into::into),
                imds_compat: false,
            };
            let result = config.validate(&interfaces);
            result.err().map(|error| error.field)
        };
        assert_eq!(check(&["eth0"], None), None);
        assert_eq!(check(&["eth0", "eth0"], Some([169, 254, 1, 0])), None);
        assert_eq!(check(&["eth0"], Some([169, 254, 254, 255])), None);
        let none = check(&[], None);
        assert_eq!(none.as_deref(), Some("mmds-config.network_interfaces"));
        for second in ["eth1", "eth2"] {
            let field = check(&["eth0", second], None);
            assert_eq!(field.as_deref(), Some("mmds-config.network_interfaces[1]"));
        }
        for address in [[169, 254, 0, 1], [169, 254, 255, 1], [10, 0, 0, 1], [0; 4]] {
            let field = check(&["eth0"], Some(address));
            assert_eq!(
                field.as_deref(),
                Some("mmds-config.ipv4_address"),
                "{address:?}"
            );
        }
    }
}
