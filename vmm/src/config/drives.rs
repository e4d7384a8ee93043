//! Disks.

use std::path::PathBuf;

use devices::virtio::block::disk::{Backing, DiskOptions, Format};
use devices::virtio::block::{BlockOptions, CacheType, Engine};
use devices::virtio::rate_limiter::RateLimiterConfig;
use serde::{Deserialize, Serialize};

use super::{ConfigError, null_is_default};

/// Most bytes in the name of a thread (prctl(2), `PR_SET_NAME`).
const MAX_THREAD_NAME: usize = 15;

/// A virtio block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveConfig {
    /// Name of the drive, unique in its VM: letters, digits and `_`. The guest sees the first 20 bytes as serial number.
    pub drive_id: String,
    /// File or block device that has the disk's contents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<PathBuf>,
    /// Whether the kernel mounts its root from this drive, which is the first one then. The kernel's command line gets
    /// `root=` and `rw` or `ro`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub is_root_device: bool,
    /// The partition of the root device that is mounted, by its unique id; the whole disk where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// Whether nobody may write to it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub is_read_only: bool,
    /// When a write is safe: `Unsafe` for when the host gets to it, `Writeback` for when the guest has flushed.
    #[serde(default, deserialize_with = "null_is_default")]
    pub cache_type: CacheType,
    /// Limits of bytes and requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiterConfig>,
    /// How the host's disk is used: `Async` is io_uring, `Sync` one thing at a time. io_uring where it can be had, where
    /// this is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_engine: Option<Engine>,
    /// Socket of a vhost-user server, which Tandem does not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// How the disk's contents lie in the file: `raw` or `qcow2`. It is never guessed. Tandem's own field.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Format::is_default"
    )]
    pub format: Format,
    /// The backing file of a qcow2 image: an image that has one is refused without this. Tandem's own field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing_file: Option<PathBuf>,
    /// Format of the backing file; `raw` where it is left out. Tandem's own field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing_format: Option<Format>,
    /// Whether the host's page cache is left out (`O_DIRECT`). Tandem's own field.
    #[serde(default, deserialize_with = "null_is_default")]
    pub direct: bool,
    /// Number of queues, up to the number of vCPUs; one for each vCPU where it is left out. Tandem's own field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// The thread that serves the drive: those of the same name share one. Tandem's own field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_thread: Option<String>,
}

impl DriveConfig {
    /// A drive with everything at its default.
    pub fn new(drive_id: impl Into<String>, path_on_host: impl Into<PathBuf>) -> Self {
        Self {
            drive_id: drive_id.into(),
            path_on_host: Some(path_on_host.into()),
            is_root_device: false,
            partuuid: None,
            is_read_only: false,
            cache_type: CacheType::default(),
            rate_limiter: None,
            io_engine: None,
            socket: None,
            format: Format::default(),
            backing_file: None,
            backing_format: None,
            direct: false,
            queues: None,
            io_thread: None,
        }
    }

    /// What the kernel's command line gets, for the root device.
    pub(super) fn root_arguments(&self) -> Option<String> {
        let mode = if self.is_read_only { "ro" } else { "rw" };
        let root = match &self.partuuid {
            Some(id) => format!("root=PARTUUID={id} {mode}"),
            None => format!("root=/dev/vda {mode}"),
        };
        self.is_root_device.then_some(root)
    }

    /// The device that this asks for, in a VM of so many vCPUs.
    pub(crate) fn options(&self, vcpus: u8) -> BlockOptions {
        BlockOptions {
            id: self.drive_id.clone(),
            disk: DiskOptions {
                path: self.path_on_host.clone().unwrap_or_default(),
                read_only: self.is_read_only,
                direct: self.direct,
                format: self.format,
                backing: self.backing_file.as_ref().map(|path| Backing {
                    path: path.clone(),
                    format: self.backing_format.unwrap_or_default(),
                }),
                flushes: self.cache_type == CacheType::Writeback,
            },
            cache: self.cache_type,
            engine: self.io_engine,
            queues: self.queues.unwrap_or(vcpus.into()),
            limits: self.rate_limiter.unwrap_or_default(),
        }
    }

    /// Checks one drive; `at` is its path, as in `drives[0]`.
    fn validate(&self, at: &str, vcpus: u8) -> Result<(), ConfigError> {
        let error = |field: &str, problem: String, remedy: &str| {
            Err(ConfigError::new(format!("{at}.{field}"), problem, remedy))
        };
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if self.drive_id.is_empty() || !self.drive_id.bytes().all(letter) {
            let problem = format!("is {:?}", self.drive_id);
            return error(
                "drive_id",
                problem,
                "give a name of letters, digits and underscores",
            );
        }
        if self.socket.is_some() {
            return error(
                "socket",
                "asks for a vhost-user server, which Tandem does not use".into(),
                "give path_on_host instead",
            );
        }
        if self
            .path_on_host
            .as_ref()
            .is_none_or(|path| path.as_os_str().is_empty())
        {
            return error(
                "path_on_host",
                "is missing".into(),
                "give the path of a file or block device",
            );
        }
        if self.format == Format::Raw && self.backing_file.is_some() {
            return error(
                "backing_file",
                "is given for a raw disk".into(),
                "leave it out, or give the format qcow2",
            );
        }
        if self.backing_format.is_some() && self.backing_file.is_none() {
            return error(
                "backing_format",
                "is given without a backing file".into(),
                "give backing_file, or leave it out",
            );
        }
        if self.direct && self.format != Format::Raw {
            return error(
                "direct",
                "is true for a qcow2 image".into(),
                "set it to false: it is for raw disks",
            );
        }
        let id = self.partuuid.as_deref().unwrap_or("-");
        if id.is_empty()
            || !id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-/=_".contains(&byte))
        {
            return error(
                "partuuid",
                format!("is {id:?}"),
                "give the unique id of a partition, as blkid shows it",
            );
        }
        let queues = self.queues.unwrap_or(1);
        if queues == 0 || queues > vcpus.into() {
            return error(
                "queues",
                format!("is {queues}, and the VM has {vcpus} vCPUs"),
                "give 1 up to the number of vCPUs, or leave it out",
            );
        }
        if let Some(name) = &self.io_thread
            && (name.is_empty()
                || name.len() > MAX_THREAD_NAME
                || !name.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return error(
                "io_thread",
                format!("is {name:?}"),
                "give a name of 1 to 15 letters, digits and punctuation marks",
            );
        }
        Ok(())
    }
}

/// Checks all drives of a VM.
pub(super) fn validate(drives: &[DriveConfig], vcpus: u8) -> Result<(), ConfigError> {
    let mut root = None;
    for (index, drive) in drives.iter().enumerate() {
        let at = format!("drives[{index}]");
        drive.validate(&at, vcpus)?;
        let before = drives.iter().take(index);
        if before.clone().any(|other| other.drive_id == drive.drive_id) {
            return Err(ConfigError::new(
                format!("{at}.drive_id"),
                format!("is {:?}, like that of another drive", drive.drive_id),
                "give each drive a name of its own",
            ));
        }
        if drive.is_root_device
            && let Some(other) = root.replace(index)
        {
            return Err(ConfigError::new(
                format!("{at}.is_root_device"),
                format!("is true, as in drives[{other}]"),
                "there can be one root device",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(change: impl FnOnce(&mut DriveConfig)) -> Option<String> {
        let mut drive = DriveConfig::new("disk_1", "/disk");
        change(&mut drive);
        validate(&[drive], 2).err().map(|error| error.field)
    }

    #[test]
    fn each_field_is_checked() {
        assert_eq!(field(|_| ()), None);
        let id = Some("drives[0].drive_id".into());
        for bad in ["", "a-b", "a b", "ä", "a/b"] {
            assert_eq!(field(|d| d.drive_id = bad.into()), id, "{bad}");
        }
        let path = Some("drives[0].path_on_host".into());
        assert_eq!(field(|d| d.path_on_host = None), path);
        assert_eq!(field(|d| d.path_on_host = Some("".into())), path);
        let socket = Some("drives[0].socket".into());
        assert_eq!(field(|d| d.socket = Some("/s".into())), socket);
        let uuid = Some("drives[0].partuuid".into());
        assert_eq!(field(|d| d.partuuid = Some("x init=/bin/sh".into())), uuid);
        assert_eq!(field(|d| d.partuuid = Some("0eaa91a0-01".into())), None);
        let backing = Some("drives[0].backing_file".into());
        assert_eq!(field(|d| d.backing_file = Some("/b".into())), backing);
        let image = |d: &mut DriveConfig| {
            (d.format, d.backing_file) = (Format::Qcow2, Some("/b".into()));
        };
        assert_eq!(field(image), None);
        let format = Some("drives[0].backing_format".into());
        assert_eq!(field(|d| d.backing_format = Some(Format::Raw)), format);
        let direct = Some("drives[0].direct".into());
        assert_eq!(
            field(|d| (d.format, d.direct) = (Format::Qcow2, true)),
            direct
        );
        let queues = Some("drives[0].queues".into());
        assert_eq!(field(|d| d.queues = Some(0)), queues);
        assert_eq!(field(|d| d.queues = Some(2)), None);
        assert_eq!(field(|d| d.queues = Some(3)), queues);
        let thread = Some("drives[0].io_thread".into());
        assert_eq!(field(|d| d.io_thread = Some("disks".into())), None);
        assert_eq!(field(|d| d.io_thread = Some(String::new())), thread);
        assert_eq!(
            field(|d| d.io_thread = Some("0123456789abcdef".into())),
            thread
        );
    }

    #[test]
    fn names_are_unique_and_one_is_the_root() {
        let [a, b] = ["a", "b"].map(|id| DriveConfig::new(id, "/disk"));
        validate(&[a.clone(), b.clone()], 1).unwrap();
        let error = validate(&[a.clone(), b.clone(), a.clone()], 1).unwrap_err();
        assert_eq!(error.field, "drives[2].drive_id");
        let root = |drive: &DriveConfig| DriveConfig {
            is_root_device: true,
            ..drive.clone()
        };
        let error = validate(&[root(&a), root(&b)], 1).unwrap_err();
        assert_eq!(error.field, "drives[1].is_root_device");
    }

    #[test]
    fn a_drive_of_firecrackers_works() {
        let json = r#"{"drive_id": "rootfs", "partuuid": null, "is_root_device": true, "cache_type": "Unsafe",
            "is_read_only": false, "path_on_host": "rootfs.ext4", "io_engine": "Sync", "rate_limiter": null, "socket": null}"#;
        let drive: DriveConfig = serde_json::from_str(json).unwrap();
        let expected = DriveConfig {
            is_root_device: true,
            io_engine: Some(Engine::Sync),
            ..DriveConfig::new("rootfs", "rootfs.ext4")
        };
        assert_eq!(drive, expected);
        assert_eq!(drive.root_arguments().unwrap(), "root=/dev/vda rw");
    }
}
