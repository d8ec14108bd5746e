//! What `weft status` says, for tests that wait for it.

use crate::scene::Scene;
use crate::wait;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

/// Each look starts a process and asks all daemons: often enough, it would be what a test measures.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// By the last node that runs. A note or a problem makes no difference here.
pub fn status(scene: &Scene) -> Option<Value> {
    let node = scene.cluster.nodes.iter().rfind(|node| node.supervisor().is_some())?;
    let mut weft = Command::new(&scene.cluster.programs.weft);
    let output = weft.arg("--socket").arg(node.socket()).args(["status", "--json"]).output().ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

/// Waits until the status is so, and answers it; panics with the last one.
pub fn until(scene: &Scene, what: &str, deadline: Duration, mut is_so: impl FnMut(&Value) -> bool) -> Value {
    wait::until_seen(what, LOOK_INTERVAL, deadline, || Ok(status(scene).filter(|status| is_so(status))))
        .unwrap_or_else(|error| panic!("{error:#}: {:#}", status(scene).unwrap_or_default()))
}

pub fn node<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status["nodes"].as_array()?.iter().find(|node| node["name"] == name)
}

pub fn shards(status: &Value, name: &str) -> u64 {
    node(status, name).and_then(|node| node["holds"]["shards"].as_u64()).unwrap_or_default()
}

/// Zones in use on each node's drives together.
pub fn used(status: &Value) -> BTreeMap<String, u64> {
    let mut used = BTreeMap::new();
    for drive in status["drives"].as_array().into_iter().flatten() {
        let zones = (drive["node"].as_str(), drive["zones"].as_u64(), drive["zones_free"].as_u64());
        if let (Some(node), Some(zones), Some(free)) = zones {
            *used.entry(node.to_owned()).or_default() += zones - free;
        }
    }
    used
}

/// The fullest node relative to the mean.
pub fn unevenness(used: &BTreeMap<String, u64>) -> f64 {
    let mean = used.values().sum::<u64>() as f64 / used.len().max(1) as f64;
    used.values().max().map_or(0.0, |most| *most as f64 / mean)
}

/// Those vote whom the map names: as many of them can be lost as of anything else.
pub fn managers_vote(status: &Value) -> bool {
    let managers = status["nodes"].as_array().into_iter().flatten().filter(|node| node["manager"] == true);
    let mut named: Vec<&Value> = managers.map(|node| &node["name"]).collect();
    let mut voters: Vec<&Value> = status["managers"]["voters"].as_array().into_iter().flatten().collect();
    let by_name = |name: &&Value| name.to_string();
    named.sort_by_key(by_name);
    voters.sort_by_key(by_name);
    !named.is_empty() && named == voters
}

/// Everything rests where it should be, and every stripe is whole.
pub fn is_whole(status: &Value) -> bool {
    let lacking = status["counters"]["stripes_by_missing"].as_array().cloned().unwrap_or_default();
    let nothing_left = status["counters"]["rebuild_bytes_left"] == 0;
    status["health"] == "healthy"
        && status["moves"].is_null()
        && managers_vote(status)
        && nothing_left
        && lacking.iter().skip(1).all(|stripes| *stripes == 0)
}

/// The node whose manager leads, by its place among the scene's.
pub fn managers_leader(scene: &Scene) -> Option<usize> {
    let status = status(scene)?;
    let leader = status["managers"]["leader"].as_str()?;
    scene.cluster.nodes.iter().position(|node| format!("node{}", node.number) == leader)
}

/// Bytes that were written because shards moved or were lacking: the counts of buckets begin anew with each epoch.
pub struct Rebuilt {
    by_epoch: BTreeMap<(u64, u64), u64>,
    before: u64,
}

impl Rebuilt {
    /// Counts from now on.
    pub fn since(status: &Value) -> Rebuilt {
        let mut rebuilt = Rebuilt { by_epoch: BTreeMap::new(), before: 0 };
        rebuilt.look(status);
        rebuilt.before = rebuilt.by_epoch.values().sum();
        rebuilt
    }

    pub fn look(&mut self, status: &Value) {
        for told in status["buckets"]["told"].as_array().into_iter().flatten() {
            let numbers = (told["bucket"].as_u64(), told["epoch"].as_u64(), told["stats"]["rebuilt_bytes"].as_u64());
            if let (Some(bucket), Some(epoch), Some(bytes)) = numbers {
                let known = self.by_epoch.entry((bucket, epoch)).or_default();
                *known = bytes.max(*known);
            }
        }
    }

    pub fn bytes(&self) -> u64 {
        self.by_epoch.values().sum::<u64>() - self.before
    }
}
