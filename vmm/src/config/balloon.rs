//! The memory balloon.

use devices::virtio::balloon::{Settings, Wanted};
use serde::{Deserialize, Serialize};

use super::{ConfigError, HugePages, MachineConfig};

/// A virtio memory balloon: memory that the guest does without goes back to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonConfig {
    /// Memory in MiB that the guest shall do without, up to all that it has. Can be changed while it runs.
    pub amount_mib: u32,
    /// Whether the guest may take memory back by itself before it has to kill a process for want of it.
    pub deflate_on_oom: bool,
    /// Seconds between two times that the guest is asked for statistics of its memory; 0 for never. Can be changed while
    /// it runs.
    #[serde(default, deserialize_with = "super::null_is_default")]
    pub stats_polling_interval_s: u16,
    /// Whether the guest can be asked for hints of free pages. This version cannot; `free_page_reporting` does more, without
    /// being asked.
    #[serde(default, deserialize_with = "super::null_is_default")]
    pub free_page_hinting: bool,
    /// Whether the guest reports free pages by itself, so that their memory goes back to the host until it is used again.
    #[serde(default, deserialize_with = "super::null_is_default")]
    pub free_page_reporting: bool,
}

impl BalloonConfig {
    /// What can be changed while the guest runs.
    pub fn wanted(&self) -> Wanted {
        Wanted {
            amount_mib: self.amount_mib,
            stats_polling_interval_s: self.stats_polling_interval_s,
        }
    }

    /// What the device of that machine is made from.
    pub(crate) fn settings(&self, machine: &MachineConfig) -> Settings {
        Settings {
            memory_mib: machine.mem_size_mib,
            deflate_on_oom: self.deflate_on_oom,
            free_page_reporting: self.free_page_reporting,
            wanted: self.wanted(),
        }
    }

    pub(super) fn validate(&self, machine: &MachineConfig) -> Result<(), ConfigError> {
        if u64::from(self.amount_mib) > machine.mem_size_mib {
            return Err(ConfigError::new(
                "balloon.amount_mib",
                format!(
                    "is {}, more than machine-config.mem_size_mib",
                    self.amount_mib
                ),
                format!("give {} at most", machine.mem_size_mib),
            ));
        }
        if self.free_page_hinting {
            return Err(ConfigError::new(
                "balloon.free_page_hinting",
                "is true, which this version cannot do",
                "set it to false; free_page_reporting gives free memory back without being asked",
            ));
        }
        if machine.huge_pages != HugePages::None {
            // A balloon's pages are of 4 KiB, and less than a whole huge page cannot be given back. One that was given back is
            // no longer reserved, so that a guest could die for want of it.
            return Err(ConfigError::new(
                "balloon",
                "is there while machine-config.huge_pages is 2M, whose pages cannot be given back one by one",
                "remove the section, or set huge_pages to None",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut BalloonConfig, &mut MachineConfig)) -> Option<String> {
        let mut balloon = BalloonConfig::default();
        let mut machine = MachineConfig::default();
        change(&mut balloon, &mut machine);
        balloon.validate(&machine).err().map(|error| error.field)
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(check(|_, _| ()), None);
        assert_eq!(check(|b, _| b.amount_mib = 128), None);
        let amount = Some("balloon.amount_mib");
        assert_eq!(check(|b, _| b.amount_mib = 129).as_deref(), amount);
        assert_eq!(check(|b, _| b.amount_mib = u32::MAX).as_deref(), amount);
        let hinting = Some("balloon.free_page_hinting");
        assert_eq!(check(|b, _| b.free_page_hinting = true).as_deref(), hinting);
        let huge = check(|_, m| m.huge_pages = HugePages::Mib2);
        assert_eq!(huge.as_deref(), Some("balloon"));
    }
}
