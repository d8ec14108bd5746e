//! A network of a test's own, of which packets can be dropped.

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use std::io::Write;
use std::process::{Command, Stdio};

/// From here on this thread, and what it starts, has only a loopback that nobody else sees.
pub fn enter_own_network() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("can't make a network namespace: this test needs root")?;
    run(Command::new("ip").args(["link", "set", "lo", "up"]), "")?;
    heal()
}

/// Packets that match one of these conditions get lost from now on; whatever got lost before doesn't any more.
pub fn cut(conditions: &[String]) -> Result<()> {
    let rules: String = conditions.iter().map(|condition| format!("add rule inet cut in {condition} drop\n")).collect();
    let script = format!(
        "add table inet cut\ndelete table inet cut\nadd table inet cut\n\
         add chain inet cut in {{ type filter hook input priority 0; }}\n{rules}"
    );
    run(Command::new("nft").args(["-f", "-"]), &script)
}

/// Nothing gets lost any more.
pub fn heal() -> Result<()> {
    cut(&[])
}

fn run(command: &mut Command, input: &str) -> Result<()> {
    let started = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = started.with_context(|| format!("can't start {command:?}: is it installed?"))?;
    child.stdin.take().context("no standard input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
