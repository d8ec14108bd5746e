//! What hurts a cluster in the middle of work, and what makes it whole again.

use crate::load::{Load, longest};
use crate::scene::Scene;
use crate::{process, wait};
use anyhow::{Context, Result, anyhow};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// A cluster that was hurt is well again within this.
pub const HEALTHY_DEADLINE: Duration = Duration::from_secs(120);
/// Load before a blow, and after it.
const BEFORE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(4);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// The daemon dies, its supervisor tells and starts it again.
    Daemon,
    /// Daemon and supervisor die.
    Node,
    /// The daemon hangs.
    Hang,
}

/// Hits all victims (nodes count from 1) at the same time.
fn strike(scene: &mut Scene, blow: Blow, victims: &[usize]) -> Result<()> {
    let nodes = scene.cluster.nodes.iter_mut().filter(|node| victims.contains(&node.number));
    std::thread::scope(|scope| {
        let blows: Vec<_> = nodes
            .map(|node| {
                scope.spawn(move || match blow {
                    Blow::Daemon => node.kill_daemon(),
                    Blow::Node => node.kill(),
                    Blow::Hang => process::signal(node.daemon().context("no daemon runs")?, Signal::SIGSTOP),
                })
            })
            .collect();
        blows.into_iter().try_for_each(|blow| blow.join().unwrap_or_else(|_| anyhow::bail!("a blow panicked")))
    })
}

/// Starts who was hit, and waits until `weft status` finds nothing wrong.
fn mend(scene: &mut Scene, blow: Blow, victims: &[usize]) -> Result<()> {
    if blow == Blow::Hang {
        for node in scene.cluster.nodes.iter().filter(|node| victims.contains(&node.number)) {
            process::signal(node.daemon().context("no daemon runs")?, Signal::SIGCONT)?;
        }
    }
    scene.cluster.start()?;
    wait::until_ok(HEALTHY_DEADLINE, || scene.cluster.weft(&["status"])).map(drop)
}

/// Lets programs write and read through each of the blows: an error or a wrong byte ends it. How long the longest step took
/// is printed, not judged: it is the machine's business, too. Bounds are checked in virtual time.
pub fn work_through(scene: &mut Scene, plan: Vec<(Blow, Vec<usize>)>) -> Result<()> {
    let mut stalls: Vec<Duration> = Vec::new();
    for (round, (blow, victims)) in plan.into_iter().enumerate() {
        let load = Load::start(&scene.mountpoint().join(format!("round{round}")));
        std::thread::sleep(BEFORE);
        let struck = Instant::now();
        strike(scene, blow, &victims)?;
        std::thread::sleep(AFTER);
        let steps = load.finish().map_err(|error| anyhow!("{blow:?} of {victims:?}: {error}"))?;
        let stall = longest(&steps, struck);
        println!("{blow:?} of {victims:?}: longest step {} ms, {} steps", stall.as_millis(), steps.len());
        stalls.push(stall);
        mend(scene, blow, &victims).with_context(|| format!("after {blow:?} of {victims:?}"))?;
    }
    stalls.sort_unstable();
    let median = stalls.get(stalls.len() / 2).copied().unwrap_or_default();
    let most = stalls.last().copied().unwrap_or_default();
    println!("{} rounds: median {} ms, longest {} ms", stalls.len(), median.as_millis(), most.as_millis());
    Ok(())
}
