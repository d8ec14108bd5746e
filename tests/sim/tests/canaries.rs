//! Each checker sees what it is there for, and a run is a function of its seed.

use std::time::Duration;
use weft_sim::run::{Failure, Planted, Report, RunOptions, run};

fn planted(seed: u64, planted: Option<Planted>) -> Result<Report, Failure> {
    run(&RunOptions { time: Duration::from_secs(3), planted, ..RunOptions::new(seed) })
}

#[test]
fn the_same_seed_is_the_same_run() {
    let report = planted(5, None).expect("a clean run");
    assert_eq!(Ok(report.clone()), planted(5, None));
    let other = planted(6, None).expect("a clean run");
    assert_ne!(report.trace, other.trace);
}

#[test]
fn the_oracle_sees_that_acknowledged_data_is_lost() {
    // Where more shards of a stripe are lost than it survives, readers wait for ever instead: that is seen, too.
    let failures: Vec<_> = (5..9).map(|seed| planted(seed, Some(Planted::LyingDrives))).collect();
    assert!(failures.iter().all(Result::is_err), "{failures:?}");
    assert!(failures.iter().any(|failure| matches!(failure, Err(Failure::Wrong(_)))), "{failures:?}");
}

#[test]
fn the_stripe_checker_sees_damage() {
    let failure = planted(5, Some(Planted::Damage));
    assert!(matches!(failure, Err(Failure::Drives(_))), "{failure:?}");
}

#[test]
fn liveness_is_checked() {
    let failure = planted(5, Some(Planted::NodesGone));
    assert!(matches!(failure, Err(Failure::Stuck(_))), "{failure:?}");
}

#[test]
fn the_memory_budget_is_checked() {
    let failure = planted(5, Some(Planted::NoMemory));
    assert!(matches!(failure, Err(Failure::Memory(_))), "{failure:?}");
}
