//! `cargo xtask test`: the stages that CI runs, in order, each with a time-box.
//!
//! All stages run even when one fails, so that one run tells everything. Only the build is a condition for what
//! comes after it. Everything is built in profile `ci`, once.

use crate::stage::{self, Ended};
use crate::tree;
use crate::{ledger, machine};
use anyhow::{Context, Result};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

#[derive(clap::Args)]
pub struct Test {
    /// Run only these stages
    #[arg(value_enum)]
    stages: Vec<Stage>,
    /// Run all of the public POSIX suites and the mutants, and give those tests that can use it more time
    #[arg(long)]
    long: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Stage {
    /// Sources are formatted
    Fmt,
    /// Everything compiles, in the profile that the tests use
    Build,
    /// No warning of the compiler or clippy
    Clippy,
    /// Bans, licences and sources of what we depend on, if cargo-deny is installed
    Deny,
    /// The tests of every crate
    Unit,
    /// The examples in documentation comments
    Doc,
    /// The rules of the repository itself
    House,
    /// Simulated clusters: the seeds that once failed
    Sim,
    /// Broken builds of the simulator, each caught by some seed
    Mutants,
    /// The programs that real clusters are made of
    Programs,
    /// Real clusters, killed and checked
    Cluster,
    /// Public test suites on a mounted cluster: those that find most in a few minutes
    Posix,
}

const STAGES: [Stage; 12] = [
    Stage::Fmt,
    Stage::Build,
    Stage::Clippy,
    Stage::Deny,
    Stage::Unit,
    Stage::Doc,
    Stage::House,
    Stage::Sim,
    Stage::Mutants,
    Stage::Programs,
    Stage::Cluster,
    Stage::Posix,
];
/// For known seeds and those behind the ledger's last.
const SIM_BUDGET: Duration = Duration::from_secs(90);
/// Set for tests that are to take their time.
const LONG_VARIABLE: &str = "WEFT_LONG";

/// What a stage found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
}

enum Verdict {
    Good(Count),
    Bad(Count, String),
    Skipped(String),
}

/// Which tests of whole clusters are run. What is left out is said, and counts as nothing.
fn cluster_tests(root: bool) -> String {
    let mut filter = String::from("package(weft-cluster-tests)");
    let mut leave_out = |binary: &str, why: &str| {
        println!("{binary} is left out: {why}");
        filter.push_str(&format!(" - binary({binary})"));
    };
    if !root {
        leave_out("cuts", "only root can drop packets");
        leave_out("failing_drives", "only root can make block devices");
        leave_out("full_host_disk", "only root can mount a small disk");
    }
    filter
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Stage::Fmt => "fmt",
            Stage::Build => "build",
            Stage::Clippy => "clippy",
            Stage::Deny => "deny",
            Stage::Unit => "unit",
            Stage::Doc => "doc",
            Stage::House => "house",
            Stage::Sim => "sim",
            Stage::Mutants => "mutants",
            Stage::Programs => "programs",
            Stage::Cluster => "cluster",
            Stage::Posix => "posix",
        }
    }

    /// Generous for two slow cores; a stage that needs longer is stuck.
    fn time_box(self) -> Duration {
        Duration::from_secs(match self {
            Stage::Fmt => 60,
            Stage::Build => 2400,
            Stage::Clippy => 1200,
            Stage::Deny => 120,
            Stage::Unit => 900,
            Stage::Doc => 300,
            Stage::House => 120,
            // Seeds that are under way when their time is over are finished, and `--long` multiplies this.
            Stage::Sim => 600,
            Stage::Mutants => 7200,
            Stage::Programs => 600,
            Stage::Cluster => 1800,
            // Installs the suites, too.
            Stage::Posix => 1200,
        })
    }

    /// Too long for every change.
    fn long(self) -> bool {
        self == Stage::Mutants
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Stage::Fmt => &["fmt", "--all", "--check"],
            Stage::Build => &["nextest", "run", "--workspace", "--cargo-profile", "ci", "--no-run"],
            Stage::Clippy => {
                &["clippy", "--workspace", "--all-targets", "--profile", "ci", "--quiet", "--", "-D", "warnings"]
            }
            Stage::Deny => &["deny", "check", "bans", "licenses", "sources"],
            Stage::Unit => &[
                "nextest",
                "run",
                "--workspace",
                "--cargo-profile",
                "ci",
                "--profile",
                "ci",
                "-E",
                "not package(weft-house)",
            ],
            Stage::Doc => &["test", "--doc", "--workspace", "--profile", "ci", "--quiet"],
            // The same packages as above, so that nothing is built again with other features.
            Stage::House => &[
                "nextest",
                "run",
                "--workspace",
                "--cargo-profile",
                "ci",
                "--profile",
                "ci",
                "-E",
                "package(weft-house)",
            ],
            Stage::Sim => {
                &["run", "--quiet", "--profile", "ci", "--package", "weft-sim", "--", "--seeds", "tests/sim/seeds.txt"]
            }
            Stage::Programs => {
                &["build", "--profile", "ci", "--package", "weftd", "--package", "weft-cli", "--package", "weft-fuse"]
            }
            Stage::Cluster => {
                &["nextest", "run", "--workspace", "--cargo-profile", "ci", "--profile", "ci", "--run-ignored", "only"]
            }
            Stage::Mutants => &["xtask", "mutants"],
            Stage::Posix => &["xtask", "posix"],
        }
    }

    fn run(self, root: &Path, long: bool) -> Result<(Verdict, Duration)> {
        if self == Stage::Deny && !installed("deny") {
            let why = "cargo-deny is not installed; stage house checks licences, bans and sources too";
            return Ok((Verdict::Skipped(why.into()), Duration::ZERO));
        }
        let junit = tree::target()?.join("nextest/ci/junit.xml");
        if junit.exists() {
            std::fs::remove_file(&junit).with_context(|| format!("can't remove {}", junit.display()))?;
        }
        let mut command = tree::cargo();
        command.current_dir(root).args(self.arguments());
        if long {
            command.env(LONG_VARIABLE, "1");
        }
        let posix = tree::target()?.join("posix.count");
        if self == Stage::Posix {
            // A count that an earlier run left says nothing about this one.
            let _ = std::fs::remove_file(&posix);
            command.arg("--count").arg(&posix).args((!long).then_some("--quick"));
        }
        if self == Stage::Sim {
            // The known ones first; then those that nobody has run, so that the same tree always gets the same.
            let ledger = std::fs::read_to_string(root.join(ledger::PATH)).unwrap_or_default();
            command.arg("--seed").arg(ledger::next_seed(&ledger).to_string());
            command.arg("--budget").arg((if long { SIM_BUDGET * 10 } else { SIM_BUDGET }).as_secs().to_string());
        }
        if self == Stage::Cluster {
            machine::prepare_tests()?;
            command.arg("-E").arg(cluster_tests(nix::unistd::geteuid().is_root()));
        }
        let documentation = tree::target()?.join("doc-tests.txt");
        if self == Stage::Doc {
            // A block of lines for each crate, most without an example: shown only when something failed.
            let create = std::fs::File::create(&documentation);
            command.stdout(create.with_context(|| format!("can't write {}", documentation.display()))?);
        }
        let time_box = if long { self.time_box() * 4 } else { self.time_box() };
        let outcome = stage::run(command, time_box)?;
        let count = match self {
            Stage::Unit | Stage::House | Stage::Cluster => match std::fs::read_to_string(&junit) {
                Ok(report) => junit_count(&report).with_context(|| format!("can't read {}", junit.display()))?,
                Err(_) => Count::default(),
            },
            Stage::Doc => {
                let output = std::fs::read_to_string(&documentation);
                let output = output.with_context(|| format!("can't read {}", documentation.display()))?;
                let count = doc_count(&output);
                if count.failed > 0 {
                    print!("{output}");
                }
                count
            }
            Stage::Posix => posix_count(&std::fs::read_to_string(&posix).unwrap_or_default()),
            _ => Count::default(),
        };
        let verdict = match outcome.ended {
            Ended::Exited(status) if status.success() => Verdict::Good(count),
            Ended::Exited(status) => Verdict::Bad(count, status.to_string()),
            Ended::TimedOut => Verdict::Bad(count, format!("killed after {} s", time_box.as_secs())),
        };
        Ok((verdict, outcome.took))
    }
}

impl Test {
    pub fn run(self) -> Result<ExitCode> {
        let root = tree::root()?;
        let mut lines = Vec::new();
        let mut total = Count::default();
        for stage in STAGES {
            let asked = if self.stages.is_empty() { self.long || !stage.long() } else { self.stages.contains(&stage) };
            if !asked {
                continue;
            }
            println!("== {}", stage.name());
            let (verdict, took) = stage.run(&root, self.long)?;
            let (count, said) = match &verdict {
                Verdict::Good(count) => (*count, "ok".to_string()),
                // A stage that fails without a failed test (a compile error, a time-box) is a failure itself.
                Verdict::Bad(count, why) => {
                    let failed = count.failed.max(1);
                    (Count { failed, ..*count }, format!("FAILED: {why}"))
                }
                Verdict::Skipped(why) => (Count::default(), format!("skipped: {why}")),
            };
            total.passed += count.passed;
            total.failed += count.failed;
            lines.push(format!(
                "{:<8}{:>7.1} s {:>6} passed {:>4} failed  {said}",
                stage.name(),
                took.as_secs_f64(),
                count.passed,
                count.failed
            ));
            if stage == Stage::Build && count.failed > 0 {
                lines.push("the rest was not run, because the build failed".into());
                break;
            }
        }
        println!();
        for line in lines {
            println!("{line}");
        }
        println!("{} passed, {} failed", total.passed, total.failed);
        Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn installed(subcommand: &str) -> bool {
    Command::new(format!("cargo-{subcommand}"))
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The totals of a JUnit report: attributes of its outermost element.
fn junit_count(report: &str) -> Result<Count> {
    let start = report.find("<testsuites").context("it has no <testsuites>")?;
    let rest = report.get(start..).unwrap_or_default();
    let element = rest.split('>').next().unwrap_or_default();
    let number = |name: &str| -> Result<u64> {
        let marker = format!(" {name}=\"");
        let (_, after) = element.split_once(&marker).with_context(|| format!("it has no {name}"))?;
        let (value, _) = after.split_once('"').with_context(|| format!("{name} has no end"))?;
        value.parse().with_context(|| format!("{name} is no number: {value}"))
    };
    let failed = number("failures")? + number("errors")?;
    let passed = number("tests")?.saturating_sub(failed);
    Ok(Count { passed, failed })
}

/// Two numbers, of what passed and failed; nothing if the suites did not come to their end.
fn posix_count(text: &str) -> Count {
    let numbers = text.split_once(' ').and_then(|(passed, failed)| Some((passed.parse().ok()?, failed.parse().ok()?)));
    numbers.map(|(passed, failed)| Count { passed, failed }).unwrap_or_default()
}

/// The sum of all lines like `test result: ok. 2 passed; 0 failed; ...`.
fn doc_count(output: &str) -> Count {
    let mut count = Count::default();
    for result in output.lines().filter_map(|line| line.strip_prefix("test result: ")) {
        let number = |word: &str| -> u64 {
            let before = result.split([';', '.']).find_map(|part| part.trim().strip_suffix(word));
            before.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
        };
        count.passed += number("passed");
        count.failed += number("failed");
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_up_examples_of_all_crates() {
        let output = "running 3 tests\n\ntest result: ok. 3 passed; 0 failed; 1 ignored; finished in 0.00s\n\
            test result: FAILED. 1 passed; 2 failed; 0 ignored; finished in 0.00s\n";
        assert_eq!(doc_count(output), Count { passed: 4, failed: 2 });
    }

    #[test]
    fn reads_the_totals_of_a_report() {
        let report = r#"<?xml version="1.0"?><testsuites name="nextest-run" tests="7" failures="2" errors="1" uuid="x">
            <testsuite name="a" tests="7" failures="9" errors="9"></testsuite></testsuites>"#;
        assert_eq!(junit_count(report).unwrap(), Count { passed: 4, failed: 3 });
    }

    #[test]
    fn reads_the_count_of_the_suites() {
        assert_eq!(posix_count("12 3"), Count { passed: 12, failed: 3 });
        assert_eq!(posix_count(""), Count::default());
    }

    #[test]
    fn refuses_a_report_without_totals() {
        assert!(junit_count("").is_err());
        assert!(junit_count("<testsuites tests=\"1\">").is_err());
        assert!(junit_count("<testsuites tests=\"x\" failures=\"0\" errors=\"0\">").is_err());
    }
}
