//! Every method and path, with what reads its body.

use crate::http;

use super::{Call, Fault, Input, configure, missing, operate};

/// One method of one path.
pub struct Route {
    /// The method, in capitals.
    pub method: &'static str,
    /// The path, with a name in braces where each device has its own.
    pub path: &'static str,
    /// Makes what is asked for out of a request.
    read: fn(Input) -> Result<Call, Fault>,
}

const fn route(
    method: &'static str,
    path: &'static str,
    read: fn(Input) -> Result<Call, Fault>,
) -> Route {
    Route { method, path, read }
}

/// All there are. `resources/openapi.yaml` has the same.
pub const ROUTES: &[Route] = &[
    route("GET", "/", operate::instance),
    route("GET", "/version", operate::version),
    route("PUT", "/vm", configure::vm),
    route("PATCH", "/vm", operate::vm_state),
    route("GET", "/vm/config", operate::config),
    route("PUT", "/actions", operate::action),
    route("PUT", "/boot-source", configure::boot_source),
    route("GET", "/machine-config", operate::machine_config),
    route("PUT", "/machine-config", configure::machine),
    route("PATCH", "/machine-config", configure::machine_patch),
    route("PUT", "/cpu-config", configure::cpu),
    route("PUT", "/drives/{drive_id}", configure::drive),
    route("PATCH", "/drives/{drive_id}", operate::drive),
    route(
        "PUT",
        "/network-interfaces/{iface_id}",
        configure::interface,
    ),
    route(
        "PATCH",
        "/network-interfaces/{iface_id}",
        operate::interface,
    ),
    route("PUT", "/vsock", configure::vsock),
    route("PUT", "/entropy", configure::entropy),
    route("PUT", "/serial", configure::serial),
    route("GET", "/balloon", operate::balloon),
    route("PUT", "/balloon", configure::balloon),
    route("PATCH", "/balloon", operate::balloon_patch),
    route("GET", "/balloon/statistics", operate::statistics),
    route("PATCH", "/balloon/statistics", operate::statistics_patch),
    route("GET", "/mmds", operate::metadata),
    route("PUT", "/mmds", operate::put_metadata),
    route("PATCH", "/mmds", operate::patch_metadata),
    route("PUT", "/mmds/config", configure::mmds),
    route("PUT", "/logger", configure::logger),
    route("PUT", "/metrics", configure::metrics),
    route("GET", "/metrics", operate::counters),
    route("GET", "/boot-timeline", operate::timeline),
    route("GET", "/events", operate::events),
    route("PATCH", "/balloon/hinting/start", missing::hinting),
    route("GET", "/balloon/hinting/status", missing::hinting),
    route("PATCH", "/balloon/hinting/stop", missing::hinting),
    route("PUT", "/snapshot/create", missing::snapshots),
    route("PUT", "/snapshot/load", missing::snapshots),
    route("GET", "/hotplug/memory", missing::memory),
    route("PUT", "/hotplug/memory", missing::memory),
    route("PATCH", "/hotplug/memory", missing::memory),
    route("PUT", "/pmem/{id}", missing::pmem),
    route("PATCH", "/pmem/{id}", missing::pmem),
];

/// What a request asks for.
///
/// # Errors
/// There is no such route, or its body is not what it should be.
pub fn find(request: &http::Request<'_>) -> Result<Call, Fault> {
    // Firecracker takes a slash at the end, too.
    let path = match request.path.strip_suffix('/') {
        None | Some("") => request.path,
        Some(path) => path,
    };
    let route = ROUTES.iter().find_map(|route| {
        let id = matches(route.path, path)?;
        (route.method == request.method).then_some((route, id))
    });
    let Some((route, id)) = route else {
        return Err(unknown(request.method, path));
    };
    let body = request.body;
    if route.method == "GET" && !body.is_empty() {
        return Err(Fault("GET request cannot have a body; leave it out".into()));
    }
    if route.path.ends_with('}') {
        check_id(id)?;
    }
    (route.read)(Input { id, body })
}

/// The name in `path`, if that is one of `pattern`'s; empty where the pattern has none.
fn matches<'a>(pattern: &str, path: &'a str) -> Option<&'a str> {
    match pattern.split_once('{') {
        None => (pattern == path).then_some(""),
        // The name may be missing, with its slash.
        Some((before, _)) => match path.strip_prefix(before) {
            Some(id) => (!id.contains('/')).then_some(id),
            None => (before.strip_suffix('/') == Some(path)).then_some(""),
        },
    }
}

fn unknown(method: &str, path: &str) -> Fault {
    let others: Vec<_> = ROUTES
        .iter()
        .filter(|route| matches(route.path, path).is_some())
        .map(|route| route.method)
        .collect();
    let remedy = if others.is_empty() {
        "there is no such path; `tandem api --list` has all there are".into()
    } else {
        format!("it takes {}", others.join(" and "))
    };
    Fault(format!(
        "Invalid request method and/or path: {method} {path}; {remedy}"
    ))
}

fn check_id(id: &str) -> Result<(), Fault> {
    if id.is_empty() {
        return Err(Fault("The ID cannot be empty; give one in the path".into()));
    }
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if !id.bytes().all(letter) {
        let problem = "API resource IDs can only contain alphanumeric characters and underscores";
        return Err(Fault(format!("{problem}; {id:?} has others")));
    }
    Ok(())
}
