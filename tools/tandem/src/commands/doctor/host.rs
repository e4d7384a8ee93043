//! Findings about the host's cgroups and huge pages.

use std::fs;

use serde::Serialize;
use serde_json::json;

use super::report::Finding;

/// All findings.
pub fn findings() -> Vec<Finding> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let read = |name: &str| {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}");
        fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    let thp = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok();
    vec![
        cgroups(&mounts),
        huge_pages(read("free_hugepages"), read("nr_hugepages")),
        transparent_huge_pages(thp.as_deref()),
    ]
}

/// How control groups are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Cgroups {
    /// Not at all.
    None,
    /// Version 1 hierarchies only.
    V1,
    /// Version 1 with controllers, and an empty version 2 tree beside it.
    Hybrid,
    /// Version 2 only.
    V2,
}

/// Reads a mounts file (proc(5)): device, directory, type, options.
fn cgroup_version(mounts: &str) -> Cgroups {
    let has = |wanted: &str| {
        mounts
            .lines()
            .any(|line| line.split(' ').nth(2).is_some_and(|kind| kind == wanted))
    };
    match (has("cgroup"), has("cgroup2")) {
        (false, false) => Cgroups::None,
        (true, false) => Cgroups::V1,
        (true, true) => Cgroups::Hybrid,
        (false, true) => Cgroups::V2,
    }
}

fn cgroups(mounts: &str) -> Finding {
    let (id, title) = ("cgroups", "cgroups");
    let remedy =
        "boot with systemd.unified_cgroup_hierarchy=1 (limits and accounting use version 2)";
    let version = cgroup_version(mounts);
    let finding = match version {
        Cgroups::V2 => Finding::ok(id, title, "version 2"),
        Cgroups::V1 => Finding::warning(id, title, "version 1 only", remedy),
        Cgroups::Hybrid => Finding::warning(
            id,
            title,
            "hybrid: version 1 with a version 2 tree beside it",
            remedy,
        ),
        Cgroups::None => Finding::warning(
            id,
            title,
            "not mounted",
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup (without it VMs have no resource limits)",
        ),
    };
    finding.with(json!({ "version": version }))
}

fn huge_pages(free: Option<u64>, total: Option<u64>) -> Finding {
    let (id, title) = ("huge_pages", "huge pages (2M)");
    let value = match (free, total) {
        (Some(_), Some(0)) => "none reserved (needed only for guests with huge_pages)".to_owned(),
        (Some(free), Some(total)) => format!("{free} of {total} free"),
        _ => "not supported by this kernel".to_owned(),
    };
    Finding::info(id, title, value).with(json!({ "free": free, "total": total }))
}

/// The word in brackets of `always [madvise] never`.
fn chosen(setting: &str) -> Option<&str> {
    setting
        .split_once('[')?
        .1
        .split_once(']')
        .map(|(word, _)| word)
}

fn transparent_huge_pages(setting: Option<&str>) -> Finding {
    let (id, title) = ("transparent_huge_pages", "transparent huge");
    let mode = setting.and_then(chosen);
    let finding = match mode {
        Some("never") => Finding::warning(
            id,
            title,
            "never",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (faster guest memory)",
        ),
        Some(mode) => Finding::ok(id, title, mode),
        None => Finding::info(id, title, "not supported by this kernel"),
    };
    finding.with(json!({ "mode": mode }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::report::Status;

    const V1: &str = "cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0\n";
    const V2: &str = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";

    #[test]
    fn cgroup_versions_are_told_from_mounts() {
        assert_eq!(cgroup_version(V1), Cgroups::V1);
        assert_eq!(cgroup_version(V2), Cgroups::V2);
        assert_eq!(cgroup_version(&format!("{V1}{V2}")), Cgroups::Hybrid);
        assert_eq!(
            cgroup_version("tmpfs /cgroup2 tmpfs rw 0 0\n"),
            Cgroups::None
        );
        assert_eq!(cgroups(V2).status, Status::Ok);
        assert_eq!(cgroups("").status, Status::Warning);
    }

    #[test]
    fn transparent_huge_page_mode_is_the_word_in_brackets() {
        assert_eq!(chosen("always [madvise] never\n"), Some("madvise"));
        assert_eq!(chosen("always madvise never"), None);
        assert_eq!(
            transparent_huge_pages(Some("always madvise [never]")).status,
            Status::Warning
        );
        assert_eq!(transparent_huge_pages(None).status, Status::Info);
    }

    #[test]
    fn huge_pages_are_counted() {
        assert_eq!(huge_pages(Some(3), Some(8)).value, "3 of 8 free");
        assert!(
            huge_pages(Some(0), Some(0))
                .value
                .starts_with("none reserved")
        );
        assert!(huge_pages(None, None).value.starts_with("not supported"));
    }
}
