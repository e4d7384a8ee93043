//! What Firecracker has and Tandem does not have yet. It is refused whatever the body says.

use super::{Call, Fault, Input};

fn missing(what: &str) -> Result<Call, Fault> {
    Err(Fault(format!("{what}: Tandem does not have this yet")))
}

/// `/snapshot/*`.
pub fn snapshots(_input: Input) -> Result<Call, Fault> {
    missing("snapshots")
}

/// `/hotplug/memory`.
pub fn memory(_input: Input) -> Result<Call, Fault> {
    missing("memory hotplug; a balloon changes how much a guest has")
}

/// `/pmem/{id}`.
pub fn pmem(_input: Input) -> Result<Call, Fault> {
    missing("pmem devices; give a drive")
}

/// `/balloon/hinting/*`.
pub fn hinting(_input: Input) -> Result<Call, Fault> {
    missing("hints of free pages; free_page_reporting gives memory back without being asked")
}
