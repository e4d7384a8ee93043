//! What is answered: documents as the code writes them, against their schemas.

use serde_json::{Value, json};
use vmm::events::Event;
use vmm::request::{Boot, Instance, State};
use vmm::timeline::{Mark, Phase};

use super::schema::Document;
use super::{expected, fields};

/// The documents are right, and between them have every field of the schema.
fn agree(name: &str, samples: &[Value]) {
    let document = Document::load();
    let schema = document.schema(name);
    for sample in samples {
        assert!(document.allows(schema, sample), "{name}: {sample}");
        let more = super::with(sample, "no such field", &json!(1));
        assert!(!document.allows(schema, &more), "{name} takes any field");
    }
    for field in fields(&schema["properties"]).keys() {
        let there = samples
            .iter()
            .filter(|sample| sample.get(field).is_some())
            .count();
        assert!(there > 0, "{name}.{field} is never there");
        let required = schema["required"]
            .as_array()
            .unwrap()
            .contains(&json!(field));
        assert_eq!(required, there == samples.len(), "{name}.{field}");
    }
}

fn written(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}

fn mark(device: Option<&str>) -> Mark {
    Mark {
        phase: Phase::DriverOk,
        device: device.map(str::to_owned),
        wall_us: u64::MAX,
        cpu_us: 0,
    }
}

#[test]
fn the_instance_is_described() {
    let samples = [State::NotStarted, State::Running, State::Paused].map(|state| {
        written(&Instance {
            app_name: "x",
            id: "y".into(),
            state,
            vmm_version: "1".into(),
        })
    });
    agree("InstanceInfo", &samples);
    let document = Document::load();
    let states = samples
        .iter()
        .map(|sample| sample["state"].clone())
        .collect();
    assert_eq!(document.schema("State")["enum"], Value::Array(states));
}

#[test]
fn the_timeline_is_described() {
    let marks = [mark(None), mark(Some("block_root"))];
    agree("Mark", &marks.each_ref().map(written));
    let boot = Boot {
        version: 1,
        id: "x".into(),
        marks: marks.into(),
    };
    agree("BootTimeline", &[written(&boot)]);
    let error = serde_json::from_str::<Phase>("\"x\"")
        .unwrap_err()
        .to_string();
    let document = Document::load();
    assert_eq!(document.schema("Phase")["enum"], json!(expected(&error)));
}

#[test]
fn events_are_described() {
    let wall_us = 5;
    let events = [
        Event::Mark(mark(None)),
        Event::Mark(mark(Some("block_root"))),
        Event::State {
            state: State::Paused,
            wall_us,
        },
        Event::Device {
            device: "net_eth0".into(),
            problem: "x".into(),
            wall_us,
        },
        Event::End {
            reason: "x".into(),
            exit_code: 255,
            wall_us,
        },
    ];
    // One of another kind has to be described too.
    let schema = |event: &Event| match event {
        Event::Mark(_) => "MarkEvent",
        Event::State { .. } => "StateEvent",
        Event::Device { .. } => "DeviceEvent",
        Event::End { .. } => "EndEvent",
    };
    let document = Document::load();
    for event in &events {
        assert!(
            document.allows(document.schema("Event"), &written(event)),
            "{event:?}"
        );
        let same = events.iter().filter(|other| schema(other) == schema(event));
        agree(schema(event), &same.map(written).collect::<Vec<_>>());
    }
}
