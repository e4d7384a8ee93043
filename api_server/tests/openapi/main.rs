//! The OpenAPI document says what the code does, in both directions: each field, its type, its limits, its default and
//! whether it is needed; each path and method.
//!
//! There is no second list of fields here. Values on both sides of every line that a schema draws are given to the code, and
//! what the code names in its errors ("expected one of ...") is looked for in the schema.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests are tests"
)]

mod answers;
mod routes;
mod schema;

use api_server::http;
use api_server::routes::{Call, find};
use schema::Document;
use serde_json::{Map, Value, json, to_value};
use vmm::config::MachineConfig;
use vmm::request::Request;

/// What reads a document of one schema: the document as it is understood, written again, or the error.
type Reader = Box<dyn Fn(&Value) -> Result<Value, String>>;

/// A configuration with this in it, so large that no value is beyond the others. In the path, `/0` is in a list.
fn section(path: &'static str) -> Reader {
    Box::new(move |value| {
        let inside = path
            .rsplit('/')
            .fold(value.clone(), |value, name| match name {
                "0" => json!([value]),
                "modifiers" => json!({"leaf": "0x1", "subleaf": "0x0", "flags": 0, name: value}),
                name => json!({ name: value }),
            });
        let mut document = json!({
            "boot-source": {"kernel_image_path": "k"},
            "machine-config": {"vcpu_count": 32, "mem_size_mib": 16 << 20},
            "network-interfaces": [{"iface_id": "eth0", "host_dev_name": "tap0"}],
        });
        for (name, section) in fields(&inside) {
            document[name] = section.clone();
        }
        let text = serde_json::to_vec(&document).unwrap();
        let config = api_server::config::parse(&text).map_err(|error| error.to_string())?;
        let written = serde_json::to_value(&config).unwrap();
        Ok(written
            .pointer(&format!("/{path}"))
            .cloned()
            .unwrap_or_default())
    })
}

/// A request with this as its body. What it changes is checked as a part of a whole configuration.
fn change(method: &'static str, path: &'static str) -> Reader {
    Box::new(move |value| {
        let body = value.to_string();
        // The name in the path is that of the body.
        let ids = ["drive_id", "iface_id"].map(|field| value[field].as_str());
        let path = format!("{path}{}", ids[0].or(ids[1]).unwrap_or_default());
        let call = find(&http::Request::new(method, &path, body.as_bytes()));
        let Call::Vm(request) = call.map_err(|fault| fault.0)? else {
            panic!("{path} is not the VM's");
        };
        Ok(match &request {
            Request::PatchMachineConfig(patch) => {
                let machine = patch.applied_to(&MachineConfig::default());
                section("machine-config")(&to_value(&machine).unwrap())?;
                to_value(patch).unwrap()
            }
            Request::PatchBalloon(patch) => {
                section("balloon")(
                    &json!({"amount_mib": patch.amount_mib, "deflate_on_oom": true}),
                )?;
                to_value(patch).unwrap()
            }
            Request::PatchBalloonStatistics(patch) => to_value(patch).unwrap(),
            Request::PatchDrive(patch) => to_value(patch).unwrap(),
            Request::PatchInterface(patch) => to_value(patch).unwrap(),
            _ => value.clone(),
        })
    })
}

/// Each schema of what can be sent, and what reads it.
fn readers() -> Vec<(&'static str, Reader)> {
    vec![
        ("BootSource", section("boot-source")),
        ("MachineConfiguration", section("machine-config")),
        ("CpuConfig", section("cpu-config")),
        ("CpuidModifier", section("cpu-config/cpuid_modifiers/0")),
        (
            "RegisterModifier",
            section("cpu-config/cpuid_modifiers/0/modifiers/0"),
        ),
        ("MsrModifier", section("cpu-config/msr_modifiers/0")),
        ("SerialDevice", section("serial")),
        ("Console", section("console")),
        ("Drive", section("drives/0")),
        ("NetworkInterface", section("network-interfaces/0")),
        ("Vsock", section("vsock")),
        ("MmdsConfig", section("mmds-config")),
        ("Balloon", section("balloon")),
        ("EntropyDevice", section("entropy")),
        ("Logger", section("logger")),
        ("Metrics", section("metrics")),
        ("RateLimiter", section("entropy/rate_limiter")),
        ("TokenBucket", section("entropy/rate_limiter/ops")),
        ("VmState", change("PATCH", "/vm")),
        ("Action", change("PUT", "/actions")),
        (
            "MachineConfigurationUpdate",
            change("PATCH", "/machine-config"),
        ),
        ("DriveUpdate", change("PATCH", "/drives/")),
        (
            "NetworkInterfaceUpdate",
            change("PATCH", "/network-interfaces/"),
        ),
        ("BalloonUpdate", change("PATCH", "/balloon")),
        (
            "BalloonStatisticsUpdate",
            change("PATCH", "/balloon/statistics"),
        ),
    ]
}

/// The words in backticks behind "expected".
fn expected(error: &str) -> Vec<String> {
    let Some((_, list)) = error.split_once("expected") else {
        return Vec::new();
    };
    list.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

fn fields(value: &Value) -> &Map<String, Value> {
    value.as_object().unwrap()
}

fn with(document: &Value, name: &str, value: &Value) -> Value {
    let mut document = document.clone();
    document[name] = value.clone();
    document
}

fn without(document: &Value, name: &str) -> Value {
    let mut document = document.clone();
    document.as_object_mut().unwrap().remove(name);
    document
}

#[test]
fn examples_are_valid() {
    let document = Document::load();
    for (name, read) in readers() {
        let schema = document.schema(name);
        for example in schema["examples"].as_array().unwrap() {
            assert!(document.allows(schema, example), "{name}: {example}");
            read(example).unwrap_or_else(|error| panic!("{name}: {example}: {error}"));
        }
    }
}

#[test]
fn fields_are_those_of_the_code() {
    let document = Document::load();
    for (name, read) in readers() {
        let schema = document.schema(name);
        assert_eq!(schema["additionalProperties"], json!(false), "{name}");
        let error = read(&with(&schema["examples"][0], "no such field", &json!(1))).unwrap_err();
        let mut known = expected(&error);
        known.sort();
        let listed: Vec<_> = fields(&schema["properties"]).keys().cloned().collect();
        assert_eq!(listed, known, "{name}: {error}");
    }
}

#[test]
fn needed_fields_are_those_of_the_code() {
    let document = Document::load();
    for (name, read) in readers() {
        let schema = document.schema(name);
        let examples = schema["examples"].as_array().unwrap();
        let required: Vec<_> = schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .collect();
        for field in fields(&schema["properties"]).keys() {
            let can_miss = examples
                .iter()
                .any(|example| read(&without(example, field)).is_ok());
            assert_eq!(
                required.contains(&&json!(field)),
                !can_miss,
                "{name}.{field}"
            );
        }
    }
}

#[test]
fn values_are_those_of_the_code() {
    let document = Document::load();
    let (mut tried, mut wrong) = (0, Vec::new());
    for (name, read) in readers() {
        let schema = document.schema(name);
        let examples = schema["examples"].as_array().unwrap();
        for (field, rule) in fields(&schema["properties"]) {
            // A value may be right beside some other values only: one example has those.
            let reads = |value: &Value| {
                let each = examples
                    .iter()
                    .map(|example| read(&with(example, field, value)));
                each.reduce(|one, other| one.or(other)).unwrap()
            };
            let mut probes = document.probes(rule);
            let error = reads(&json!("no such value")).err().unwrap_or_default();
            probes.extend(expected(&error).into_iter().map(Value::String));
            for value in probes {
                let read = reads(&value);
                let problem = read.as_ref().err().map_or("taken", String::as_str);
                if document.allows(rule, &value) != read.is_ok() {
                    wrong.push(format!("{name}.{field} = {value}: {problem}"));
                }
                tried += 1;
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "the document says otherwise:\n{}",
        wrong.join("\n")
    );
    assert!(tried > 1_000, "{tried} values were tried");
}

#[test]
fn defaults_are_those_of_the_code() {
    let document = Document::load();
    for (name, read) in readers() {
        let schema = document.schema(name);
        for (field, rule) in fields(&schema["properties"]) {
            for example in schema["examples"].as_array().unwrap() {
                let Ok(left_out) = read(&without(example, field)) else {
                    continue;
                };
                match rule.get("default") {
                    Some(default) => {
                        let given = read(&with(example, field, default));
                        assert_eq!(given.as_ref(), Ok(&left_out), "{name}.{field}");
                    }
                    None => {
                        let written = left_out.get(field).unwrap_or(&Value::Null);
                        assert!(
                            written.is_null(),
                            "{name}.{field} has the default {written}"
                        );
                    }
                }
            }
        }
    }
}

/// What has the default is not always written; the schema must name that default all the same.
#[test]
fn what_is_left_out_when_written_has_a_default() {
    let document = Document::load();
    for (name, read) in readers() {
        let schema = document.schema(name);
        for (field, rule) in fields(&schema["properties"]) {
            for value in document.probes(rule) {
                for example in schema["examples"].as_array().unwrap() {
                    let Ok(written) = read(&with(example, field, &value)) else {
                        continue;
                    };
                    let is_default = value.is_null() || rule.get("default") == Some(&value);
                    assert!(
                        is_default || written.get(field).is_some(),
                        "{name}.{field} = {value} is lost or is a default that is not told"
                    );
                }
            }
        }
    }
}
