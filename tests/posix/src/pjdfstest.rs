//! pjdfstest as root, all of it, beside an ext4 that is made for it: no test may fail, and none be skipped that ext4
//! is not skipped for too.
//!
//! Its tests share one process, and some leave files open for writing, so that later ones can't remount read-only, on
//! no filesystem. A test that failed counts by its repetition in a process of its own, on both.

use crate::ext4::Ext4;
use crate::process;
use crate::scene::Scene;
use crate::{Extent, Findings};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Making 65,000 links takes most of it.
const TIME: Duration = Duration::from_secs(1800);
/// Weft's `LINKS_MAX`, which is ext4's too.
const LINKS_MAX: &str = "65000";
/// What the C library says of filesystems that it does not know: the one test that makes links until no more are taken
/// is skipped, on both, when time is short.
const LINKS_UNKNOWN: &str = "127";

/// Names of tests begin so; the suite leaves it out in its report.
const CRATE: &str = "pjdfstest::tests::";

/// Every feature that Linux has. The users are on every Debian.
const CONFIGURATION: &str = r#"
[features]
secondary_fs = "/dev/shm"
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}

[settings]
naptime = 0.01
allow_remount = true
expected_failures = []

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    /// With what it said.
    Failed(String),
    Skipped(String),
}

type Report = BTreeMap<String, Verdict>;

pub fn run(scene: &Scene, extent: Extent) -> Result<Findings> {
    let suite = Suite::new(scene, if extent == Extent::Full { LINKS_MAX } else { LINKS_UNKNOWN })?;
    let ext4 = Ext4::mount(scene)?;
    let expected = suite.report("ext4", ext4.place())?;
    drop(ext4);
    let directory = scene.directory("pjdfstest")?;
    let started = Instant::now();
    let found = suite.report("weft", &directory)?;
    let took = started.elapsed();
    let mut findings = compare(&expected, &found);
    let skipped = found.values().filter(|verdict| matches!(verdict, Verdict::Skipped(_))).count();
    findings.note = format!("{skipped} skipped, {:.0} s of it on Weft", took.as_secs_f64());
    Ok(findings)
}

/// All of it in another thread, but for the test that makes links; any failure is the result.
pub fn start(scene: &Scene, directory: &Path) -> Result<JoinHandle<Result<()>>> {
    let suite = Suite::new(scene, LINKS_UNKNOWN)?;
    let directory = directory.to_path_buf();
    Ok(std::thread::spawn(move || {
        for (test, verdict) in suite.report("killed", &directory)? {
            if let Verdict::Failed(why) = verdict {
                bail!("{test}: {why}");
            }
        }
        Ok(())
    }))
}

struct Suite {
    program: PathBuf,
    shim: PathBuf,
    scratch: PathBuf,
    links: &'static str,
}

impl Suite {
    fn new(scene: &Scene, links: &'static str) -> Result<Suite> {
        ensure!(nix::unistd::geteuid().is_root(), "pjdfstest tests what root may do: run it as root");
        let program = scene.tools.program("pjdfstest");
        let suite = Suite { program, shim: scene.tools.shim(), scratch: scene.scratch.clone(), links };
        std::fs::write(suite.configuration(), CONFIGURATION)?;
        Ok(suite)
    }

    fn configuration(&self) -> PathBuf {
        self.scratch.join("pjdfstest.toml")
    }

    fn report(&self, name: &str, directory: &Path) -> Result<Report> {
        let mut report = self.start(name, directory, None)?;
        let failed = |(test, verdict): (&String, &Verdict)| matches!(verdict, Verdict::Failed(_)).then(|| test.clone());
        for test in report.iter().filter_map(failed).collect::<Vec<_>>() {
            let again = self.start(&format!("{name}-{}", test.replace("::", "-")), directory, Some(&test))?;
            let verdict = again.get(&test).with_context(|| format!("pjdfstest does not know its own test {test}"))?;
            report.insert(test, verdict.clone());
        }
        Ok(report)
    }

    fn start(&self, name: &str, directory: &Path, test: Option<&str>) -> Result<Report> {
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(self.configuration()).arg("-p").arg(directory);
        command.env("LD_PRELOAD", &self.shim).env("WEFT_LINK_MAX", self.links);
        if let Some(test) = test {
            command.arg("-e").arg(format!("{CRATE}{test}"));
        }
        let log = self.scratch.join(format!("pjdfstest-{name}.log"));
        // That tests failed makes the whole fail; what counts is the report, and that it is complete.
        let ended = process::run(command, &log, TIME);
        let text = std::fs::read_to_string(&log).with_context(|| format!("can't read {}", log.display()))?;
        match parse(&text) {
            Some(report) => Ok(report),
            None => Err(ended.err().unwrap_or_else(|| anyhow::anyhow!("no summary in {}", log.display()))),
        }
    }
}

/// None: the suite did not come to its end.
fn parse(text: &str) -> Option<Report> {
    let mut report = Report::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.starts_with("Summary:") {
            return Some(report);
        }
        let mut words = line.split_whitespace();
        let (Some(test), Some(verdict), None) = (words.next(), words.next(), words.next()) else { continue };
        let mut why = || lines.peek().map(|line| line.trim().to_string()).unwrap_or_default();
        let verdict = match verdict {
            "ok" => Verdict::Passed,
            "FAILED" => Verdict::Failed(why()),
            "skipped" => Verdict::Skipped(why()),
            _ => continue,
        };
        report.insert(test.into(), verdict);
    }
    None
}

fn compare(ext4: &Report, weft: &Report) -> Findings {
    let mut findings = Findings::default();
    let tests: BTreeSet<&String> = ext4.keys().chain(weft.keys()).collect();
    for test in tests {
        let result = match (ext4.get(test), weft.get(test)) {
            (Some(Verdict::Skipped(_)), Some(Verdict::Skipped(_))) => continue,
            (_, Some(Verdict::Passed)) => Ok(()),
            (Some(_), None) => Err(anyhow::anyhow!("did not run")),
            (None, _) => Err(anyhow::anyhow!("did not run on ext4")),
            (Some(Verdict::Failed(_)), Some(Verdict::Failed(why))) => Err(anyhow::anyhow!("{why} (on ext4 too)")),
            (_, Some(Verdict::Failed(why))) => Err(anyhow::anyhow!("{why}")),
            (_, Some(Verdict::Skipped(why))) => Err(anyhow::anyhow!("skipped, but not for ext4: {why}")),
        };
        findings.check(test, result);
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
chmod::changes_mode                                       ok
link::link_count_max                                      skipped
\tCannot get value for LINK_MAX: filesystem limit is unknown
symlink::erofs_new_file                                   FAILED
\tcalled `Result::unwrap()` on an `Err` value: busy
Backtrace:
   0: pjdfstest::main
";

    fn report(verdicts: &[(&str, Verdict)]) -> Report {
        verdicts.iter().map(|(test, verdict)| (test.to_string(), verdict.clone())).collect()
    }

    #[test]
    fn reads_what_the_suite_says() {
        let text = format!("{OUTPUT}\nSummary: 1 failed, 1 skipped, 1 passed\n");
        let report = parse(&text).unwrap();
        assert_eq!(report.len(), 3);
        assert_eq!(report["chmod::changes_mode"], Verdict::Passed);
        let Verdict::Failed(why) = &report["symlink::erofs_new_file"] else { panic!("it failed") };
        assert!(why.ends_with("busy"));
        assert!(matches!(report["link::link_count_max"], Verdict::Skipped(_)));
        assert_eq!(parse(OUTPUT), None, "a suite that died half-way has no report");
    }

    #[test]
    fn a_skip_needs_the_same_skip_on_ext4() {
        let skipped = Verdict::Skipped("why".into());
        let one = |verdict: &Verdict| report(&[("a", verdict.clone())]);
        let count = |findings: Findings| (findings.passed, findings.wrong.len());
        assert_eq!(count(compare(&one(&Verdict::Passed), &one(&Verdict::Passed))), (1, 0));
        assert_eq!(count(compare(&one(&skipped), &one(&skipped))), (0, 0));
        assert_eq!(count(compare(&one(&Verdict::Passed), &one(&skipped))), (0, 1));
        let failed = Verdict::Failed("why".into());
        assert_eq!(count(compare(&one(&failed), &one(&failed))), (0, 1));
        assert_eq!(count(compare(&one(&Verdict::Passed), &Report::new())), (0, 1));
    }
}
