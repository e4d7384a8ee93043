//! Requests that put a VM together.

use vmm::config::patch::MachinePatch;
use vmm::config::{CpuConfig, DriveConfig, MachineConfig, NetworkInterface};
use vmm::request::Request;

use super::{Call, Fault, Input};
use crate::config;

/// `PUT /vm`: the whole configuration.
pub fn vm(input: Input) -> Result<Call, Fault> {
    let config = config::parse(input.body)?;
    Ok(Request::PutConfig(Box::new(config)).into())
}

/// `PUT /boot-source`.
pub fn boot_source(input: Input) -> Result<Call, Fault> {
    Ok(Request::PutBootSource(input.object()?).into())
}

/// `PUT /machine-config`.
pub fn machine(input: Input) -> Result<Call, Fault> {
    let machine: MachineConfig = input.object()?;
    Ok(Request::PutMachineConfig(machine).into())
}

/// `PATCH /machine-config`.
pub fn machine_patch(input: Input) -> Result<Call, Fault> {
    let patch: MachinePatch = input.object()?;
    if patch.is_empty() {
        return Err(Fault("Empty PATCH request; give at least one field".into()));
    }
    Ok(Request::PatchMachineConfig(patch).into())
}

/// `PUT /cpu-config`.
pub fn cpu(input: Input) -> Result<Call, Fault> {
    let template: CpuConfig = input.object()?;
    Ok(Request::PutCpuConfig(template).into())
}

/// `PUT /drives/{drive_id}`.
pub fn drive(input: Input) -> Result<Call, Fault> {
    let drive: DriveConfig = input.object()?;
    same_id(input.id, "drive_id", &drive.drive_id)?;
    Ok(Request::PutDrive(Box::new(drive)).into())
}

/// `PUT /network-interfaces/{iface_id}`.
pub fn interface(input: Input) -> Result<Call, Fault> {
    let interface: NetworkInterface = input.object()?;
    same_id(input.id, "iface_id", &interface.iface_id)?;
    Ok(Request::PutInterface(Box::new(interface)).into())
}

/// `PUT /vsock`.
pub fn vsock(input: Input) -> Result<Call, Fault> {
    Ok(Request::PutVsock(input.object()?).into())
}

/// `PUT /entropy`.
pub fn entropy(input: Input) -> Result<Call, Fault> {
    Ok(Request::PutEntropy(input.object()?).into())
}

/// `PUT /serial`.
pub fn serial(input: Input) -> Result<Call, Fault> {
    Ok(Request::PutSerial(input.object()?).into())
}

/// `PUT /balloon`.
pub fn balloon(input: Input) -> Result<Call, Fault> {
    Ok(Request::PutBalloon(input.object()?).into())
}

/// `PUT /mmds/config`.
pub fn mmds(input: Input) -> Result<Call, Fault> {
    Ok(Request::PutMmdsConfig(input.object()?).into())
}

/// `PUT /logger`.
pub fn logger(input: Input) -> Result<Call, Fault> {
    Ok(Request::PutLogger(input.object()?).into())
}

/// `PUT /metrics`.
pub fn metrics(input: Input) -> Result<Call, Fault> {
    Ok(Request::PutMetrics(input.object()?).into())
}

/// The name in the path is the one in the body.
///
/// # Errors
/// It is another.
pub fn same_id(path: &str, field: &str, body: &str) -> Result<(), Fault> {
    if path == body {
        return Ok(());
    }
    Err(Fault(format!(
        "{field}: is {body:?}; the id from the path, {path:?}, does not match it: give the same"
    )))
}
