//! `cargo xtask mutants`: the simulator with one rule broken at a time; some seed must catch each.

use crate::stage::{self, Ended};
use crate::tree;
use anyhow::{Context, Result, bail};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Values of `WEFT_MUTANT`; docs/design/simulator.md says what each breaks and what catches it.
const MUTANTS: [&str; 9] = [
    "no_flush",
    "acknowledge_at_p",
    "skip_seal",
    "forget_seal",
    "ignore_epochs",
    "reappend",
    "reuse_location",
    "two_planners",
    "abort_without_begin",
];
const BUILD_MAX: Duration = Duration::from_secs(2400);

#[derive(clap::Args)]
pub struct Mutants {
    /// Only these
    names: Vec<String>,
    /// How long each is looked for
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    budget: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Mutants {
    pub fn run(self) -> Result<ExitCode> {
        if let Some(name) = self.names.iter().find(|name| !MUTANTS.contains(&name.as_str())) {
            bail!("{name} is no mutant; there are {}", MUTANTS.join(", "));
        }
        let root = tree::root()?;
        let target = tree::target()?.join("mutants");
        let program = build(&root, &target)?;
        let mut escaped = Vec::new();
        for name in MUTANTS.into_iter().filter(|name| self.names.is_empty() || self.names.iter().any(|n| n == name)) {
            println!("== {name}");
            let mut command = std::process::Command::new(&program);
            command.env("WEFT_MUTANT", name);
            command.args(["--until-failure", "--budget"]).arg(self.budget.to_string());
            command.arg("--seed").arg(self.seed.to_string());
            // Seeds that are under way when the time is over are finished.
            let outcome = stage::run(command, Duration::from_secs(2 * self.budget + 120))?;
            let caught = matches!(outcome.ended, Ended::Exited(status) if !status.success());
            println!(
                "{name}: {} after {:.0} s",
                if caught { "caught" } else { "NOT CAUGHT" },
                outcome.took.as_secs_f64()
            );
            if !caught {
                escaped.push(name);
            }
        }
        match escaped.is_empty() {
            true => Ok(ExitCode::SUCCESS),
            false => bail!("no seed catches {}", escaped.join(", ")),
        }
    }
}

/// Builds the simulator so that it can be broken. What isn't ours is built once: the compiler is told by a wrapper that
/// cargo puts around it for the workspace alone.
fn build(root: &Path, target: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(target).with_context(|| format!("can't make {}", target.display()))?;
    let wrapper = target.join("rustc-mutants");
    std::fs::write(&wrapper, "#!/bin/sh\nexec \"$@\" --cfg weft_mutants\n")
        .with_context(|| format!("can't write {}", wrapper.display()))?;
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&wrapper, executable).with_context(|| format!("can't change {}", wrapper.display()))?;
    let mut command = tree::cargo();
    command.current_dir(root).args(["build", "--quiet", "--profile", "ci", "--package", "weft-sim"]);
    command.env("CARGO_TARGET_DIR", target).env("RUSTC_WORKSPACE_WRAPPER", &wrapper);
    match stage::run(command, BUILD_MAX)?.ended {
        Ended::Exited(status) if status.success() => Ok(target.join("ci/weft-sim")),
        _ => bail!("the simulator can't be built with its mutants"),
    }
}
