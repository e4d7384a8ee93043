//! A custom CPU template: what the guest's CPUs are to show instead of what KVM offers.
//!
//! The document is Firecracker's (`docs/cpu_templates/schema.json`). [`crate::cpu`] applies it, and only there is known what
//! a host has: a leaf, an MSR or a capability that is missing is found when the machine is built.

use std::fmt;
use std::path::PathBuf;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::bitmap::Bitmap;
use super::{ConfigError, null_is_default};

/// Most entries in each list. More than KVM has CPUID leaves (`KVM_MAX_CPUID_ENTRIES`, 256 where it was least).
const MAX_ENTRIES: usize = 256;
/// `KVM_CPUID_FLAG_*`: significant index, stateful function, state read next.
const CPUID_FLAGS: u32 = 0b111;

/// What a configuration says of its CPUs: a template, or the file that has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum CpuSource {
    /// The template itself.
    Template(CpuConfig),
    /// Path of a file with the template, as Firecracker's configuration files have it. Whoever reads the configuration puts
    /// the template in its place.
    File(PathBuf),
}

/// A custom CPU template.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuConfig {
    /// Capabilities of KVM that are looked for, or not looked for.
    #[serde(default, deserialize_with = "null_is_default")]
    pub kvm_capabilities: Vec<KvmCapability>,
    /// Changes to CPUID, in this order.
    #[serde(default, deserialize_with = "null_is_default")]
    pub cpuid_modifiers: Vec<CpuidModifier>,
    /// Changes to MSRs, in this order.
    #[serde(default, deserialize_with = "null_is_default")]
    pub msr_modifiers: Vec<MsrModifier>,
    /// Firecracker's for ARM; empty here.
    #[serde(default, skip_serializing, deserialize_with = "for_arm_only")]
    vcpu_features: (),
    /// Firecracker's for ARM; empty here.
    #[serde(default, skip_serializing, deserialize_with = "for_arm_only")]
    reg_modifiers: (),
}

/// A capability of KVM by its number (`KVM_CAP_*`, linux/kvm.h): `"171"` is looked for, `"!56"` is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvmCapability {
    /// The machine is not built without it.
    Add(u32),
    /// The machine is built without it, though it would be looked for otherwise.
    Remove(u32),
}

/// Changes to one leaf of CPUID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuidModifier {
    /// EAX on input.
    #[serde(with = "number")]
    pub leaf: u32,
    /// ECX on input; 0 for a leaf that has no subleaves.
    #[serde(with = "number")]
    pub subleaf: u32,
    /// KVM's flags of the entry (`KVM_CPUID_FLAG_*`, linux/kvm.h): 1 where the subleaf counts.
    pub flags: u32,
    /// Changes to its registers, in this order.
    pub modifiers: Vec<RegisterModifier>,
}

/// A change to one register of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterModifier {
    /// The register.
    pub register: CpuidRegister,
    /// Its bits.
    pub bitmap: Bitmap<32>,
}

/// A register that CPUID returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the registers' own names")]
pub enum CpuidRegister {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A change to one MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsrModifier {
    /// Its number.
    #[serde(with = "number")]
    pub addr: u32,
    /// Its bits.
    pub bitmap: Bitmap<64>,
}

impl CpuConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        for (list, entries) in [
            ("kvm_capabilities", self.kvm_capabilities.len()),
            ("cpuid_modifiers", self.cpuid_modifiers.len()),
            ("msr_modifiers", self.msr_modifiers.len()),
        ] {
            if entries > MAX_ENTRIES {
                return Err(ConfigError::new(
                    format!("cpu-config.{list}"),
                    format!("has {entries} entries"),
                    format!("give {MAX_ENTRIES} at most"),
                ));
            }
        }
        for (index, leaf) in self.cpuid_modifiers.iter().enumerate() {
            if leaf.flags & !CPUID_FLAGS != 0 {
                return Err(ConfigError::new(
                    format!("cpu-config.cpuid_modifiers[{index}].flags"),
                    format!("is {}, which are no flags of KVM's", leaf.flags),
                    "give 0, or 1 where the subleaf counts",
                ));
            }
        }
        Ok(())
    }
}

impl CpuSource {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        match self {
            Self::Template(template) => template.validate(),
            Self::File(_) => Err(ConfigError::new(
                "cpu-config",
                "is the path of a file where the template itself is needed",
                "give an object",
            )),
        }
    }
}

impl<'de> Deserialize<'de> for CpuSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PathOrTemplate;

        impl<'de> Visitor<'de> for PathOrTemplate {
            type Value = CpuSource;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a CPU template, or the path of a file that has one")
            }

            fn visit_str<E: de::Error>(self, path: &str) -> Result<CpuSource, E> {
                Ok(CpuSource::File(path.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<CpuSource, A::Error> {
                CpuConfig::deserialize(MapAccessDeserializer::new(map)).map(CpuSource::Template)
            }
        }

        deserializer.deserialize_any(PathOrTemplate)
    }
}

fn for_arm_only<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    match Option::<Vec<IgnoredAny>>::deserialize(deserializer)? {
        Some(entries) if !entries.is_empty() => Err(de::Error::custom(
            "is for ARM CPUs, and this is an x86_64; remove it",
        )),
        _ => Ok(()),
    }
}

impl Serialize for KvmCapability {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Add(number) => serializer.collect_str(number),
            Self::Remove(number) => serializer.collect_str(&format_args!("!{number}")),
        }
    }
}

impl<'de> Deserialize<'de> for KvmCapability {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (digits, make): (&str, fn(u32) -> Self) = match text.strip_prefix('!') {
            Some(digits) => (digits, Self::Remove),
            None => (&text, Self::Add),
        };
        digits_of(digits, 10).map(make).ok_or_else(|| {
            de::Error::custom(
                "is no capability; give the number of one of KVM's, such as \"56\", or \"!56\" to do without it",
            )
        })
    }
}

/// A number of 32 bits in `radix`, without a sign.
fn digits_of(text: &str, radix: u32) -> Option<u32> {
    let unsigned = text.chars().all(|digit| digit.is_digit(radix));
    u32::from_str_radix(text, radix).ok().filter(|_| unsigned)
}

/// Numbers of 32 bits as text, `0x` and hexadecimal or `0b` and binary.
mod number {
    use super::*;

    pub fn serialize<S: Serializer>(number: &u32, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{number:#x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = match (text.strip_prefix("0x"), text.strip_prefix("0b")) {
            (Some(digits), _) => digits_of(digits, 16),
            (_, Some(digits)) => digits_of(digits, 2),
            _ => None,
        };
        number.ok_or_else(|| {
            de::Error::custom(
                "is no number of 32 bits; give 0x and hexadecimal digits, or 0b and binary ones",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The example of Firecracker's documentation.
    const DOCUMENTED: &str = r#"{
        "kvm_capabilities": ["!56"],
        "cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "flags": 0,
            "modifiers": [{"register": "eax", "bitmap": "0bxxxx000000000011xx00011011110010"}]}],
        "msr_modifiers": [{"addr": "0x10a",
            "bitmap": "0b0000000000000000000000000000000000000000000000000000000000000000"}]
    }"#;

    #[test]
    fn firecrackers_example_reads_and_writes() {
        let config: CpuConfig = serde_json::from_str(DOCUMENTED).unwrap();
        config.validate().unwrap();
        assert_eq!(config.kvm_capabilities, [KvmCapability::Remove(56)]);
        assert_eq!(config.cpuid_modifiers[0].leaf, 1);
        let register = config.cpuid_modifiers[0].modifiers[0];
        assert_eq!(register.register, CpuidRegister::Eax);
        assert_eq!(register.bitmap.mask, 0x0fff_3fff);
        assert_eq!(config.msr_modifiers[0].addr, 0x10a);
        assert_eq!(config.msr_modifiers[0].bitmap.mask, u64::MAX);
        let text: serde_json::Value = serde_json::from_str(DOCUMENTED).unwrap();
        assert_eq!(serde_json::to_value(&config).unwrap(), text);
    }

    #[test]
    fn everything_is_optional_and_may_be_null() {
        for text in [
            "{}",
            r#"{"kvm_capabilities": null, "cpuid_modifiers": null, "msr_modifiers": null}"#,
            r#"{"vcpu_features": [], "reg_modifiers": null}"#,
        ] {
            let config: CpuConfig = serde_json::from_str(text).unwrap();
            assert_eq!(config, CpuConfig::default());
        }
    }

    #[test]
    fn numbers_have_their_base_in_front() {
        let addr = |text: &str| {
            let msr = json!({"addr": text, "bitmap": "0b1"});
            serde_json::from_value::<MsrModifier>(msr).ok()
        };
        for (text, number) in [("0x10A", 0x10a), ("0b101", 5), ("0xffffffff", u32::MAX)] {
            assert_eq!(addr(text).unwrap().addr, number);
        }
        for bad in ["266", "0x", "0x+1", "0b2", "0x100000000", "", "0X1", "-0x1"] {
            assert!(addr(bad).is_none(), "{bad}");
        }
        let capability = |text: &str| serde_json::from_value::<KvmCapability>(text.into()).ok();
        assert_eq!(capability("171"), Some(KvmCapability::Add(171)));
        assert_eq!(capability("!0"), Some(KvmCapability::Remove(0)));
        for bad in ["", "!", "!!1", "+1", "0x1", "4294967296", " 1"] {
            assert!(capability(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for (text, word) in [
            (
                r#"{"vcpu_features": [{"index": 0, "bitmap": "0b1"}]}"#,
                "for ARM CPUs",
            ),
            (
                r#"{"reg_modifiers": [{"addr": "0x1", "bitmap": "0b1"}]}"#,
                "for ARM CPUs",
            ),
            (r#"{"msrs": []}"#, "unknown field"),
            (r#"{"kvm_capabilities": [171]}"#, "invalid type"),
            (
                r#"{"msr_modifiers": [{"addr": "0x1"}]}"#,
                "missing field `bitmap`",
            ),
            (
                r#"{"cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "modifiers": []}]}"#,
                "missing field `flags`",
            ),
            (
                r#"{"cpuid_modifiers": [{"leaf": 1, "subleaf": "0x0", "flags": 0, "modifiers": []}]}"#,
                "invalid type",
            ),
            (
                r#"{"cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "flags": 0,
                "modifiers": [{"register": "ekx", "bitmap": "0b1"}]}]}"#,
                "unknown variant `ekx`",
            ),
        ] {
            let error = serde_json::from_str::<CpuConfig>(text)
                .unwrap_err()
                .to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        let leaf = |flags| CpuidModifier {
            leaf: 0,
            subleaf: 0,
            flags,
            modifiers: Vec::new(),
        };
        let mut config = CpuConfig {
            cpuid_modifiers: vec![leaf(7), leaf(8)],
            ..Default::default()
        };
        let field = |config: &CpuConfig| config.validate().unwrap_err().field;
        assert_eq!(field(&config), "cpu-config.cpuid_modifiers[1].flags");
        config.cpuid_modifiers = vec![leaf(0); MAX_ENTRIES + 1];
        assert_eq!(field(&config), "cpu-config.cpuid_modifiers");
    }

    #[test]
    fn a_document_may_name_a_file() {
        let source: CpuSource = serde_json::from_str(r#""t2.json""#).unwrap();
        assert_eq!(source, CpuSource::File("t2.json".into()));
        assert_eq!(source.validate().unwrap_err().field, "cpu-config");
        let source: CpuSource = serde_json::from_str(DOCUMENTED).unwrap();
        source.validate().unwrap();
        assert!(matches!(source, CpuSource::Template(_)));
        for bad in ["[]", "1", "true"] {
            assert!(serde_json::from_str::<CpuSource>(bad).is_err(), "{bad}");
        }
    }
}
