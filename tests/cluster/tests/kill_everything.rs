//! kill -9 of all nodes in the middle of writing: what fsync acknowledged is there afterwards.

use std::path::Path;
use std::process::Command;
use std::time::Duration;
use weft_cluster_tests::fsync::survivor::Survivor;
use weft_cluster_tests::layout::Layout;
use weft_cluster_tests::scene::Scene;
use weft_cluster_tests::{mount, wait};

/// With `cargo xtask test --long` many more.
fn rounds() -> u64 {
    if std::env::var_os("WEFT_LONG").is_some() { 25 } else { 3 }
}
/// Enough that every round has large and small writes, renames and removals.
const ACKNOWLEDGED_MIN: usize = 200;
const PROGRESS_DEADLINE: Duration = Duration::from_secs(60);

fn scene() -> Scene {
    let mut layout = Layout::new("kill", 6, "4+2", 512 << 20).unwrap();
    // Unflushed writes die with the process, as they would with the power.
    layout.volatile_cache = true;
    Scene::formed("kill", layout).unwrap()
}

fn fsync(verb: &str, directory: &Path, seed: u64) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-fsync"));
    command.args([verb, "--seed", &seed.to_string(), "--directory"]).arg(directory);
    command
}

fn acknowledged(log: &Path) -> usize {
    std::fs::read_to_string(log).unwrap_or_default().lines().count()
}

#[test]
#[ignore = "starts a cluster: `cargo xtask test cluster`"]
fn what_fsync_acknowledged_survives() {
    let mut scene = scene();
    for round in 0..rounds() {
        scene.mount().unwrap();
        let directory = scene.mountpoint().join(format!("round{round}"));
        let log = scene.root.join(format!("round{round}.log"));
        std::fs::create_dir(&directory).unwrap();
        let mut survivor = Survivor::start(fsync("write", &directory, round), &log).unwrap();
        let what = format!("{ACKNOWLEDGED_MIN} acknowledged operations");
        let enough = || Ok((acknowledged(&log) >= ACKNOWLEDGED_MIN).then_some(()));
        wait::until(&what, PROGRESS_DEADLINE, enough).unwrap();
        scene.cluster.kill_all().unwrap();
        survivor.kill().unwrap();
        mount::unmount(&scene.mountpoint(), true).unwrap();
        survivor.wait().unwrap();

        scene.cluster.start().unwrap();
        scene.mount().unwrap();
        // Earlier rounds are checked again: a recovery must not damage what the one before brought back.
        for earlier in 0..=round {
            let directory = scene.mountpoint().join(format!("round{earlier}"));
            let log = scene.root.join(format!("round{earlier}.log"));
            let status = fsync("check", &directory, earlier).arg("--log").arg(log).status().unwrap();
            assert!(status.success(), "round {earlier}, looked at after round {round}");
        }
        mount::unmount(&scene.mountpoint(), false).unwrap();
    }
}
