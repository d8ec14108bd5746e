//! ACLs: a script makes, changes and uses them, on Weft and on an ext4, and must find the same on both.

use crate::Findings;
use crate::ext4::Ext4;
use crate::process;
use crate::scene::Scene;
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const TIME: Duration = Duration::from_secs(300);
const SCRIPT: &str = include_str!("acl.sh");

pub fn run(scene: &Scene) -> Result<Findings> {
    let ext4 = Ext4::mount(scene)?;
    let expected = report(scene, "ext4", ext4.place())?;
    drop(ext4);
    let found = report(scene, "weft", &scene.directory("acl")?)?;
    let mut findings = Findings::default();
    let sections = |text: &str| text.split("== ").map(str::to_string).collect::<Vec<_>>();
    let (expected, found) = (sections(&expected), sections(&found));
    findings.check("the number of answers", {
        let same = expected.len() == found.len();
        same.then_some(()).with_context(|| format!("{} instead of {}", found.len(), expected.len()))
    });
    for (expected, found) in expected.iter().zip(&found) {
        let same = || -> Result<()> {
            ensure!(expected == found, "on ext4:\n{expected}\non Weft:\n{found}");
            Ok(())
        };
        findings.check(expected.lines().next().unwrap_or_default(), same());
    }
    findings.note = "beside ext4".into();
    Ok(findings)
}

fn report(scene: &Scene, name: &str, directory: &Path) -> Result<String> {
    let mut command = Command::new("sh");
    command.arg("-c").arg(SCRIPT).current_dir(directory);
    let log = scene.log(&format!("acl-{name}"));
    process::run(command, &log, TIME)?;
    std::fs::read_to_string(&log).with_context(|| format!("can't read {}", log.display()))
}
