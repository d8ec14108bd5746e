//! `docs/ledger.md`: which seeds were run, on which commit, with what result, so that long runs add up.

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;

pub const PATH: &str = "docs/ledger.md";
/// Where seeds of the ledger begin.
const FIRST_SEED: u64 = 1_000_000;

/// What the simulator says of a range of seeds.
#[derive(Debug, PartialEq)]
pub struct Sum {
    pub first: u64,
    /// The first seed that was not run.
    pub next: u64,
    pub within: u64,
    pub beyond: u64,
    pub failed: u64,
    pub cpu: String,
}

impl Sum {
    /// Numbers separated by blanks, as `weft-sim --sum` writes them.
    pub fn parse(text: &str) -> Result<Self> {
        let mut words = text.split_whitespace();
        let mut word = || words.next().with_context(|| format!("the simulator's sum is no sum: {text:?}"));
        Ok(Self {
            first: word()?.parse()?,
            next: word()?.parse()?,
            within: word()?.parse()?,
            beyond: word()?.parse()?,
            failed: word()?.parse()?,
            cpu: word()?.into(),
        })
    }

    fn row(&self, commit: &str, shape: &str) -> String {
        let Self { first, next, within, beyond, failed, cpu } = self;
        format!("| {commit} | {shape} | {first}..{next} | {within} | {beyond} | {failed} | {cpu} |\n")
    }
}

/// Where the ledger goes on: behind all seeds that were run.
pub fn next_seed(ledger: &str) -> u64 {
    let ranges = ledger.lines().filter_map(|line| line.split('|').nth(3));
    let ends = ranges.filter_map(|range| range.trim().split_once("..")?.1.parse::<u64>().ok());
    ends.max().unwrap_or(FIRST_SEED)
}

/// What of the tree is the protocol: seeds that were run on different commits with the same of these add up.
const PROTOCOL: [&str; 2] = ["HEAD:appliance", "HEAD:crates"];

/// The commit that is about to be run, and in brackets the trees of [`PROTOCOL`]. Changes that aren't committed are refused: nobody could run them again.
pub fn commit(root: &Path) -> Result<String> {
    let git = |arguments: &[&str]| -> Result<String> {
        let output = Command::new("git").current_dir(root).args(arguments).output().context("can't start git")?;
        if !output.status.success() {
            bail!("git {} failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    if let Some(line) = changed.lines().find(|line| !line.ends_with(PATH)) {
        bail!("the ledger names commits, and this tree differs from its own ({}): commit first", line.trim());
    }
    let short = |what: &str, digits: &str| Ok(git(&["rev-parse", digits, what])?.trim().to_owned());
    let trees = PROTOCOL.map(|tree| short(tree, "--short=6")).into_iter().collect::<Result<Vec<_>>>()?;
    Ok(format!("{} ({})", short("HEAD", "--short=10")?, trees.join(" ")))
}

/// What the rows say that ran the same protocol as `commit`: passed within P, beyond it, and failed.
pub fn with_same_protocol(ledger: &str, commit: &str) -> [u64; 3] {
    let Some((_, protocol)) = commit.split_once(" (") else { return [0; 3] };
    let rows = ledger.lines().map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
    let same = rows.filter(|row| row.get(1).is_some_and(|cell| cell.ends_with(protocol)));
    same.fold([0; 3], |sum, row| {
        let count = |column: usize| row.get(column).and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
        [sum[0] + count(4), sum[1] + count(5), sum[2] + count(6)]
    })
}

/// Adds a row.
pub fn add(root: &Path, commit: &str, shape: &str, sum: &Sum) -> Result<()> {
    let path = root.join(PATH);
    let mut ledger = std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    ledger.push_str(&sum.row(commit, shape));
    std::fs::write(&path, ledger).with_context(|| format!("can't write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_on_behind_the_last_seed() {
        assert_eq!(next_seed("# Ledger\n\n| commit | shape | seeds |\n|---|---|---|\n"), FIRST_SEED);
        let sum = Sum::parse("1000000 1000250 210 40 0 0.41\n").expect("a sum");
        let ledger = format!("| commit | shape | seeds |\n{}", sum.row("abc", "6 nodes"));
        assert_eq!(next_seed(&ledger), 1_000_250);
        assert!(Sum::parse("1 2 3").is_err());
    }

    #[test]
    fn rows_of_the_same_protocol_add_up() {
        let sum = Sum::parse("1000000 1000250 210 40 0 0.41\n").expect("a sum");
        let rows = ["old", "a (1 2)", "b (1 2)", "c (1 3)"].map(|commit| sum.row(commit, "6 nodes"));
        assert_eq!(with_same_protocol(&rows.concat(), "d (1 2)"), [420, 80, 0]);
        assert_eq!(with_same_protocol(&rows.concat(), "d (2 2)"), [0; 3]);
    }
}
