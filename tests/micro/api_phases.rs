//! Requests at random, held against a model of the phases: each status, and the state after it.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use tests::api::Api;

use crate::api_races::{START, waiting, without_connections};

/// Each of these is one VM after the other's life; `TANDEM_SEED` has one more in their place.
const SEEDS: std::ops::Range<u64> = 1..9;
const STEPS: usize = 120;

/// Numbers that look random (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Before,
    Running,
    Paused,
}

/// What the VM should be.
#[derive(Debug)]
struct Model {
    phase: Phase,
    kernel: PathBuf,
    has_kernel: bool,
    vcpus: usize,
    entropy: bool,
    drive: Option<PathBuf>,
    images: [PathBuf; 2],
    metadata: Value,
}

/// What is expected of a request: done, or refused with these words.
type Expected = Result<(), &'static str>;

const TOO_EARLY: Expected = Err("is not supported before starting the microVM");
const TOO_LATE: Expected = Err("is not supported after starting the microVM");

impl Model {
    fn is_before(&self) -> bool {
        self.phase == Phase::Before
    }

    /// A change that is made before the start.
    fn configure(&mut self, change: impl FnOnce(&mut Self)) -> Expected {
        if !self.is_before() {
            return TOO_LATE;
        }
        change(self);
        Ok(())
    }

    /// A request, and what is expected of it.
    fn step(&mut self, random: &mut Random) -> (&'static str, &'static str, Value, Expected) {
        let count = 1 + random.below(3);
        let image = random.below(3);
        let path = self.images.get(image).cloned();
        let shown = path.clone().unwrap_or_else(|| "/nowhere".into());
        match random.below(18) {
            0 => {
                let body = json!({ "vcpu_count": count, "mem_size_mib": 16 });
                let expected = self.configure(|model| model.vcpus = count);
                ("PUT", "/machine-config", body, expected)
            }
            1 => {
                let expected = self.configure(|model| model.vcpus = count);
                let body = json!({ "vcpu_count": count });
                ("PATCH", "/machine-config", body, expected)
            }
            2 => {
                let body = json!({ "kernel_image_path": self.kernel });
                let expected = self.configure(|model| model.has_kernel = true);
                ("PUT", "/boot-source", body, expected)
            }
            3 => {
                let body = json!({ "kernel_image_path": "/nowhere" });
                let expected = match self.phase {
                    Phase::Before => Err("boot-source.kernel_image_path: "),
                    _ => TOO_LATE,
                };
                ("PUT", "/boot-source", body, expected)
            }
            4 => {
                let expected = self.configure(|model| model.entropy = true);
                ("PUT", "/entropy", json!({}), expected)
            }
            5 | 6 if self.is_before() => {
                let body =
                    json!({ "drive_id": "a", "path_on_host": shown, "is_root_device": false });
                let expected = match path {
                    Some(path) => self.configure(|model| model.drive = Some(path)),
                    None => Err(".path_on_host: "),
                };
                ("PUT", "/drives/a", body, expected)
            }
            5..8 => {
                let body = json!({ "drive_id": "a", "path_on_host": shown });
                let expected = match (self.phase, &self.drive, path) {
                    (Phase::Before, ..) => TOO_EARLY,
                    (_, None, _) => Err("is not part of this microVM"),
                    (_, Some(_), None) => Err("/nowhere"),
                    (_, Some(_), path) => {
                        self.drive = path;
                        Ok(())
                    }
                };
                ("PATCH", "/drives/a", body, expected)
            }
            // A start ends what can be tried before it: it comes late.
            8 if !self.is_before() || random.below(3) == 0 => {
                let expected = match (self.phase, self.has_kernel) {
                    (Phase::Before, true) => {
                        self.phase = Phase::Running;
                        Ok(())
                    }
                    (Phase::Before, false) => Err("cannot start the microVM: boot-source"),
                    _ => TOO_LATE,
                };
                let body = serde_json::from_str(START).unwrap();
                ("PUT", "/actions", body, expected)
            }
            8..11 => {
                let body = json!({ "state": "Paused" });
                ("PATCH", "/vm", body, self.moved(Phase::Paused))
            }
            11 | 12 => {
                let body = json!({ "state": "Resumed" });
                ("PATCH", "/vm", body, self.moved(Phase::Running))
            }
            13 => {
                let expected = if self.is_before() { TOO_EARLY } else { Ok(()) };
                let body = json!({ "action_type": "FlushMetrics" });
                ("PUT", "/actions", body, expected)
            }
            14 => {
                let body = json!({ "amount_mib": 1 });
                let expected = match self.phase {
                    Phase::Before => TOO_EARLY,
                    _ => Err("is not part of this microVM"),
                };
                ("PATCH", "/balloon", body, expected)
            }
            15 => {
                self.metadata = json!({ "n": count });
                ("PUT", "/mmds", self.metadata.clone(), Ok(()))
            }
            16 => {
                let body = json!({ "vcpu_count": 1, "mem_size_mib": 16, "surprise": 1 });
                ("PUT", "/machine-config", body, Err("surprise"))
            }
            _ => {
                let body = json!({ "snapshot_path": "a", "mem_file_path": "b" });
                ("PUT", "/snapshot/create", body, Err("does not have"))
            }
        }
    }

    fn moved(&mut self, phase: Phase) -> Expected {
        if self.is_before() {
            return TOO_EARLY;
        }
        self.phase = phase;
        Ok(())
    }

    /// Holds what is shown against the model.
    fn check(&self, api: &Api) {
        let state = match self.phase {
            Phase::Before => "Not started",
            Phase::Running => "Running",
            Phase::Paused => "Paused",
        };
        assert_eq!(api.state(), state);
        let shown = api.get("/vm/config");
        assert_eq!(shown["machine-config"]["vcpu_count"], json!(self.vcpus));
        assert_eq!(api.get("/machine-config"), shown["machine-config"]);
        assert_eq!(shown["entropy"].is_null(), !self.entropy);
        let drive = shown["drives"].get(0).map(|drive| &drive["path_on_host"]);
        assert_eq!(drive.cloned(), self.drive.as_ref().map(|path| json!(path)));
        let kernel = &shown["boot-source"]["kernel_image_path"];
        assert_eq!(kernel == &json!(self.kernel), self.has_kernel);
        assert_eq!(api.get("/mmds"), self.metadata);
    }
}

/// A VM's life. Returns whether it was started.
fn live(seed: u64) -> bool {
    let (vm, config) = waiting(|builder| {
        for name in ["x", "y"] {
            fs::write(builder.path(name), [0; 4096]).unwrap();
        }
    });
    let api = vm.api();
    let kernel = config["boot-source"]["kernel_image_path"].as_str();
    let mut model = Model {
        phase: Phase::Before,
        kernel: kernel.unwrap().into(),
        has_kernel: false,
        vcpus: 1,
        entropy: false,
        drive: None,
        images: [vm.path("x"), vm.path("y")],
        metadata: json!({}),
    };
    api.put("/mmds", &model.metadata);
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for step in 0..STEPS {
        let (method, path, body, expected) = model.step(&mut random);
        let (status, answer) = api.send(method, path, &body.to_string());
        let as_expected = match expected {
            Ok(()) => status == 204,
            Err(words) => status == 400 && answer.contains(words),
        };
        assert!(
            as_expected,
            "seed {seed}, step {step}: {method} {path} {body}: {status} {answer}; expected {expected:?} of {model:?}"
        );
        model.check(&api);
    }
    without_connections(&vm);
    let code = if model.is_before() {
        vm.signal(libc::SIGTERM);
        143
    } else {
        api.action("Stop");
        70
    };
    assert_eq!(vm.wait().code, code, "seed {seed}");
    !model.is_before()
}

#[test]
fn every_answer_is_the_models() {
    if let Ok(seed) = std::env::var("TANDEM_SEED") {
        live(seed.parse().expect("TANDEM_SEED is a number"));
        return;
    }
    let started = SEEDS.filter(|seed| live(*seed)).count();
    assert!(started >= 5, "{started}");
}
