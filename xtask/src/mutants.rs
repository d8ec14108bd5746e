//! `cargo xtask mutants`: one rule broken at a time. Some seed of the simulator must catch each; where that takes more
//! coincidences than seeds can be run, a test must.

use crate::stage::{self, Ended};
use crate::tree;
use anyhow::{Context, Result, bail};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

/// What has to notice that a rule is broken.
#[derive(Clone, Copy)]
enum Catch {
    Seeds,
    /// Those that are made for it: `cargo xtask sim --aim`.
    Aimed(&'static str),
    Test {
        package: &'static str,
        name: &'static str,
    },
}

/// Values of `WEFT_MUTANT`; docs/design/simulator.md says what each breaks and what catches it.
const MUTANTS: [(&str, Catch); 9] = [
    ("no_flush", Catch::Seeds),
    ("acknowledge_at_p", Catch::Aimed("alone")),
    ("skip_seal", Catch::Seeds),
    ("forget_seal", Catch::Test { package: "weft-drive", name: "a_seal_stops_lower_epochs_for_ever" }),
    ("ignore_epochs", Catch::Aimed("halves")),
    ("reappend", Catch::Seeds),
    ("reuse_location", Catch::Aimed("zones")),
    ("two_planners", Catch::Seeds),
    ("abort_without_begin", Catch::Aimed("pairs")),
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
        let mut simulator = None;
        let mut escaped = Vec::new();
        for (name, catch) in MUTANTS.into_iter().filter(|(name, _)| chosen(name)) {
            println!("== {name}");
            let mut command = match catch {
                Catch::Seeds | Catch::Aimed(_) => {
                    let program = match &simulator {
                        Some(program) => program,
                        None => simulator.insert(broken.simulator()?),
                    };
                    let mut command = Command::new(program);
                    command.args(["--until-failure", "--budget"]).arg(self.budget.to_string());
                    command.arg("--seed").arg(self.seed.to_string());
                    if let Catch::Aimed(aim) = catch {
                        command.args(["--aim", aim]);
                    }
                    command
                }
                Catch::Test { package, name } => {
                    // What passes with the rule fails without it.
                    let test = ["test", "--quiet", "--profile", "ci", "--package", package, name];
                    broken.cargo(&test)?;
                    broken.command(&test)
                }
            };
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
