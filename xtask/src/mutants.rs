//! `cargo xtask mutants`: one rule broken at a time. Some seed of the simulator must catch each; where any seed seldom does, it is
//! looked for among those that are made for it.

use crate::stage::{self, Ended};
use crate::tree;
use anyhow::{Context, Result, bail};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Values of `WEFT_MUTANT`, each with what the seeds are made for that catch it (`cargo xtask sim --aim`), if any don't.
/// docs/design/simulator.md says what each breaks.
const MUTANTS: [(&str, Option<&str>); 9] = [
    ("no_flush", None),
    ("acknowledge_at_p", Some("alone")),
    ("skip_seal", None),
    ("forget_seal", Some("sealed")),
    ("ignore_epochs", Some("halves")),
    ("reappend", None),
    ("reuse_location", Some("zones")),
    ("two_planners", None),
    ("abort_without_begin", Some("pairs")),
];
/// Which rule is broken.
const CHOICE: &str = "WEFT_MUTANT";
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
        let all = MUTANTS.map(|(name, _)| name);
        if let Some(name) = self.names.iter().find(|name| !all.contains(&name.as_str())) {
            bail!("{name} is no mutant; there are {}", all.join(", "));
        }
        let broken = Broken::new()?;
        let chosen = |name: &str| self.names.is_empty() || self.names.iter().any(|chosen| chosen == name);
        let simulator = broken.simulator()?;
        let mut escaped = Vec::new();
        for (name, aim) in MUTANTS.into_iter().filter(|(name, _)| chosen(name)) {
            println!("== {name}");
            let mut command = Command::new(&simulator);
            command.args(["--until-failure", "--budget"]).arg(self.budget.to_string());
            command.arg("--seed").arg(self.seed.to_string());
            if let Some(aim) = aim {
                command.args(["--aim", aim]);
            }
            command.env(CHOICE, name);
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
            false => bail!("nothing catches {}", escaped.join(", ")),
        }
    }
}

/// Builds that can be broken. What isn't ours is built once: the compiler is told by a wrapper that cargo puts around it for
/// the workspace alone.
struct Broken {
    root: PathBuf,
    target: PathBuf,
    wrapper: PathBuf,
}

impl Broken {
    fn new() -> Result<Self> {
        let target = tree::target()?.join("mutants");
        std::fs::create_dir_all(&target).with_context(|| format!("can't make {}", target.display()))?;
        let wrapper = target.join("rustc-mutants");
        std::fs::write(&wrapper, "#!/bin/sh\nexec \"$@\" --cfg weft_mutants\n")
            .with_context(|| format!("can't write {}", wrapper.display()))?;
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&wrapper, executable)
            .with_context(|| format!("can't change {}", wrapper.display()))?;
        Ok(Self { root: tree::root()?, target, wrapper })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = tree::cargo();
        command.current_dir(&self.root).args(arguments);
        command.env("CARGO_TARGET_DIR", &self.target).env("RUSTC_WORKSPACE_WRAPPER", &self.wrapper);
        command
    }

    /// Must succeed while no rule is broken.
    fn cargo(&self, arguments: &[&str]) -> Result<()> {
        let mut command = self.command(arguments);
        command.env_remove(CHOICE);
        match stage::run(command, BUILD_MAX)?.ended {
            Ended::Exited(status) if status.success() => Ok(()),
            _ => bail!("cargo {} fails although nothing is broken", arguments.join(" ")),
        }
    }

    fn simulator(&self) -> Result<PathBuf> {
        self.cargo(&["build", "--quiet", "--profile", "ci", "--package", "weft-sim"])?;
        Ok(self.target.join("ci/weft-sim"))
    }
}
