//! Tests of the whole probe. Those that run a guest pass over machines without a usable /dev/kvm.

use super::*;

fn result(check: Check, outcome: Outcome) -> CheckResult {
    CheckResult {
        check,
        outcome,
        micros: 1,
    }
}

fn report(outcome: impl Fn(Check) -> Outcome, value: i32) -> Report {
    let capability = |needed, value| Capability {
        name: "X",
        needed,
        purpose: "",
        value,
    };
    Report {
        device: Ok(Device {
            api_version: 12,
            capabilities: vec![capability(true, value), capability(false, 0)],
            checks: Check::ALL.map(|check| result(check, outcome(check))).into(),
        }),
        host: Host::detect(),
    }
}

fn failed() -> Outcome {
    Outcome::from_failure(Failure::WrongResult)
}

#[test]
fn verdict_follows_the_checks_and_needed_capabilities() {
    assert_eq!(
        report(|_| Outcome::Passed, 1).verdict(),
        Verdict::StockKernels
    );
    assert_eq!(report(|_| Outcome::Passed, 0).verdict(), Verdict::Unusable);
    assert_eq!(report(|_| failed(), 1).verdict(), Verdict::Unusable);
    let only = |bad| {
        move |check| {
            if check == bad {
                failed()
            } else {
                Outcome::Passed
            }
        }
    };
    assert_eq!(report(only(Check::Sse), 1).verdict(), Verdict::SimpleCode);
    assert_eq!(report(only(Check::Plain), 1).verdict(), Verdict::Unusable);
    let skip = |check| match check {
        Check::Xsave => Outcome::Skipped {
            missing: "XSAVE".into(),
        },
        _ => Outcome::Passed,
    };
    assert_eq!(report(skip, 1).verdict(), Verdict::StockKernels);
}

#[test]
fn devices_that_are_none_are_told_apart() {
    let device = |path: &str| {
        let options = Options {
            device: path.into(),
            ..Options::default()
        };
        run(&options).device.unwrap_err()
    };
    assert!(matches!(
        device("/nonexistent/kvm"),
        DeviceError::Missing { .. }
    ));
    assert!(matches!(device("/dev/null"), DeviceError::NotKvm { .. }));
    assert!(matches!(
        device("/proc"),
        DeviceError::Open {
            errno: libc::EISDIR,
            ..
        }
    ));
}

#[test]
fn plain_code_runs_on_any_kvm() {
    let Ok(device) = run(&Options::default()).device else {
        return;
    };
    assert_eq!(device.api_version, 12);
    assert_eq!(device.checks.len(), Check::ALL.len());
    assert_eq!(
        device.checks[0].outcome,
        Outcome::Passed,
        "{:?}",
        device.checks
    );
}

#[test]
fn a_guest_that_never_ends_is_stopped_and_masks_nothing() {
    let Ok(kvm) = open(Path::new("/dev/kvm")) else {
        return;
    };
    let mut runner = runner::Runner::new(&kvm, Duration::from_millis(50));
    let start = Instant::now();
    let failure = runner.run(guest::Program::Spin).unwrap_err();
    assert!(
        matches!(failure, Failure::TimedOut { limit_ms: 50, .. }),
        "{failure:?}"
    );
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    runner.time_limit = Duration::from_secs(2);
    assert_eq!(runner.check(Check::Plain), Outcome::Passed);
}
