//! Requests to a VM that runs, and those that look at it.

use serde::Deserialize;
use serde_json::{Map, Value};
use vmm::config::patch::{DrivePatch, InterfacePatch};
use vmm::request::Request;

use super::configure::same_id;
use super::{Call, Fault, Input};

/// `GET /`.
pub fn instance(_input: Input) -> Result<Call, Fault> {
    Ok(Request::Instance.into())
}

/// `GET /version`.
pub fn version(_input: Input) -> Result<Call, Fault> {
    Ok(Call::Version)
}

/// `GET /vm/config`.
pub fn config(_input: Input) -> Result<Call, Fault> {
    Ok(Request::Config.into())
}

/// `GET /machine-config`.
pub fn machine_config(_input: Input) -> Result<Call, Fault> {
    Ok(Request::MachineConfig.into())
}

/// `GET /balloon`.
pub fn balloon(_input: Input) -> Result<Call, Fault> {
    Ok(Request::Balloon.into())
}

/// `GET /balloon/statistics`.
pub fn statistics(_input: Input) -> Result<Call, Fault> {
    Ok(Request::BalloonStatistics.into())
}

/// `GET /boot-timeline`.
pub fn timeline(_input: Input) -> Result<Call, Fault> {
    Ok(Request::Timeline.into())
}

/// `GET /metrics`.
pub fn counters(_input: Input) -> Result<Call, Fault> {
    Ok(Call::Prometheus)
}

/// `GET /events`.
pub fn events(_input: Input) -> Result<Call, Fault> {
    Ok(Call::Events)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VmState {
    state: Motion,
}

#[derive(Deserialize)]
enum Motion {
    Paused,
    Resumed,
}

/// `PATCH /vm`.
pub fn vm_state(input: Input) -> Result<Call, Fault> {
    let VmState { state } = input.object()?;
    Ok(match state {
        Motion::Paused => Request::Pause.into(),
        Motion::Resumed => Request::Resume.into(),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Action {
    action_type: ActionType,
}

#[derive(Deserialize)]
enum ActionType {
    InstanceStart,
    FlushMetrics,
    SendCtrlAltDel,
    PowerButton,
    Reset,
    Stop,
}

/// `PUT /actions`.
pub fn action(input: Input) -> Result<Call, Fault> {
    let Action { action_type } = input.object()?;
    Ok(match action_type {
        ActionType::InstanceStart => Request::Start.into(),
        ActionType::FlushMetrics => Request::FlushMetrics.into(),
        ActionType::SendCtrlAltDel => Request::SendCtrlAltDel.into(),
        ActionType::PowerButton => Request::PowerButton.into(),
        ActionType::Reset => Request::Reset.into(),
        ActionType::Stop => Request::Stop.into(),
    })
}

/// `PATCH /drives/{drive_id}`.
pub fn drive(input: Input) -> Result<Call, Fault> {
    let patch: DrivePatch = input.object()?;
    same_id(input.id, "drive_id", &patch.drive_id)?;
    Ok(Request::PatchDrive(patch).into())
}

/// `PATCH /network-interfaces/{iface_id}`.
pub fn interface(input: Input) -> Result<Call, Fault> {
    let patch: InterfacePatch = input.object()?;
    same_id(input.id, "iface_id", &patch.iface_id)?;
    Ok(Request::PatchInterface(patch).into())
}

/// `GET /mmds`.
pub fn metadata(_input: Input) -> Result<Call, Fault> {
    Ok(Request::Mmds.into())
}

/// `PUT /mmds`.
pub fn put_metadata(input: Input) -> Result<Call, Fault> {
    let document: Map<String, Value> = input.object()?;
    Ok(Request::PutMmds(document.into()).into())
}

/// `PATCH /mmds`.
pub fn patch_metadata(input: Input) -> Result<Call, Fault> {
    let patch: Map<String, Value> = input.object()?;
    Ok(Request::PatchMmds(patch.into()).into())
}

/// `PATCH /balloon`.
pub fn balloon_patch(input: Input) -> Result<Call, Fault> {
    Ok(Request::PatchBalloon(input.object()?).into())
}

/// `PATCH /balloon/statistics`.
pub fn statistics_patch(input: Input) -> Result<Call, Fault> {
    Ok(Request::PatchBalloonStatistics(input.object()?).into())
}
