//! Whether the cluster is as it should be, with the reasons.

use crate::connection::CallError;
use crate::gather::Gathered;
use crate::overview::{BLANK, Overview, SERVING};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use weft_wire::control::{ClusterStatus, DriveState, NodeState, Status};

/// Numbers of buckets that are spelled out in one line.
const BUCKETS_SHOWN: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    Healthy,
    Unhealthy,
    Unknown,
}

impl Health {
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Healthy => 0,
            Self::Unhealthy => 1,
            Self::Unknown => 2,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unhealthy => "UNHEALTHY",
            Self::Unknown => "unknown",
        }
    }
}

/// A known problem outweighs what could not be found out.
pub fn judge(overview: &mut Overview, gathered: &Gathered, cluster: Option<&ClusterStatus>) {
    if overview.cluster.is_none() {
        let first = &gathered.first;
        overview.unknown.push(match first.phase.as_str() {
            "unclaimed" => format!("{} is in no cluster: make one with `weft cluster create`", first.name),
            phase => format!("{} is {phase}{} and can't tell yet", first.name, waiting(first)),
        });
    } else {
        judge_nodes(overview, gathered);
        judge_managers(overview);
        judge_buckets(overview);
        judge_filesystems(overview);
        if let Some(cluster) = cluster {
            judge_map_drives(overview, cluster);
            judge_domains(overview, cluster);
            judge_journals(overview, cluster);
        }
    }
    judge_drives(overview);
    overview.health = match (overview.problems.is_empty(), overview.unknown.is_empty()) {
        (false, _) => Health::Unhealthy,
        (true, false) => Health::Unknown,
        (true, true) => Health::Healthy,
    };
}

fn waiting(status: &Status) -> String {
    status.waiting.as_ref().map(|waiting| format!(" ({waiting})")).unwrap_or_default()
}

fn judge_nodes(overview: &mut Overview, gathered: &Gathered) {
    let cluster = gathered.first.cluster.as_ref().map(|cluster| cluster.id);
    let mut versions = BTreeSet::new();
    for answered in &gathered.nodes {
        let Some(entry) = &answered.entry else { continue };
        let (name, place) = (&entry.name, &answered.endpoint);
        match &answered.status {
            Err(CallError::NotAsked(reason)) => overview.unknown.push(format!("{name} was not asked: {reason}")),
            Err(CallError::Refused(reason)) => {
                overview.unknown.push(format!("{name} at {place} refuses to tell: {reason}"));
            }
            Err(CallError::NoAnswer(reason)) => overview.problems.push(format!(
                "{name} does not answer: {reason}. Look whether the server and weftd run there, and at its log"
            )),
            Ok(status) => {
                versions.insert(status.version.as_str());
                let other = status.cluster.as_ref().filter(|own| Some(own.id) != cluster);
                if let Some(other) = other {
                    let text = format!("{place} should be {name} and is {} of cluster {}", status.name, other.name);
                    overview.problems.push(text + ": correct the address, or stop that node");
                } else if status.node.is_some_and(|node| node != entry.node) {
                    let text = format!("{place} should be {name} and is {}", status.name);
                    overview.problems.push(text + ": two nodes were given each other's address or drives");
                } else if status.phase != SERVING {
                    overview.problems.push(format!("{name} is {}{}", status.phase, waiting(status)));
                }
                judge_reach(overview, gathered, entry, status);
            }
        }
        judge_state(overview, entry, answered.status.is_ok());
    }
    if versions.len() > 1 {
        let versions: Vec<&str> = versions.into_iter().collect();
        overview.notes.push(format!("nodes run different versions: {}", versions.join(", ")));
    }
}

/// Nodes that the managers reach may not reach each other.
fn judge_reach(overview: &mut Overview, gathered: &Gathered, entry: &NodeState, status: &Status) {
    if status.unreached.is_empty() {
        return;
    }
    let nodes = gathered.first.cluster.as_ref().map(|cluster| cluster.nodes.as_slice()).unwrap_or_default();
    let others: Vec<String> = status.unreached.iter().map(|node| crate::gather::node_name(nodes, *node)).collect();
    overview.problems.push(format!(
        "{} does not reach {} though the managers do, so it gives its buckets away: look at the network between them",
        entry.name,
        others.join(", ")
    ));
}

/// Nodes that come or go by an operator's order are no problem.
fn judge_state(overview: &mut Overview, entry: &NodeState, answers: bool) {
    let (name, holds) = (&entry.name, &entry.holds);
    match entry.state.as_str() {
        "up" => {}
        "draining" => {
            let seat = if entry.manager { ", is a manager" } else { "" };
            overview.notes.push(format!(
                "{name} is being drained: {} shards to move, {} moving, {} journals, leads {} buckets{seat}",
                holds.shards, holds.former, holds.journals, entry.leads
            ));
        }
        "drained" => {
            overview.notes.push(format!("{name} holds nothing any more: `weft node remove {name}`"));
        }
        "joining" => overview.notes.push(format!("{name} joins: it has not taken part yet")),
        state if answers => overview.problems.push(format!("{name} is {state} in the map")),
        _ => {}
    }
}

fn judge_map_drives(overview: &mut Overview, cluster: &ClusterStatus) {
    for entry in &cluster.drives {
        let (drive, holds) = (entry.drive, &entry.holds);
        let node = crate::gather::node_name(&cluster.nodes, entry.node);
        let left = holds.shards + holds.former;
        match entry.state.as_str() {
            "failed" if left > 0 => overview.problems.push(format!(
                "{drive} of {node} is given up: {left} shards of it are to be made again, {} of them have no place yet",
                holds.shards
            )),
            "failed" => overview.notes.push(format!(
                "{drive} of {node} is given up and holds nothing any more: `weft drive remove {drive}`, or start weftd there \
                 again to try it once more"
            )),
            "draining" => overview.notes.push(format!(
                "{drive} of {node} is being drained: {} shards to move, {} moving, {} journals",
                holds.shards, holds.former, holds.journals
            )),
            "drained" => {
                overview.notes.push(format!("{drive} of {node} holds nothing any more: `weft drive remove {drive}`"));
            }
            "joining" => overview.notes.push(format!("{drive} of {node} joins: it is not formatted yet")),
            _ => {}
        }
    }
}

/// It goes on by itself when there are domains enough.
fn judge_domains(overview: &mut Overview, cluster: &ClusterStatus) {
    if cluster.folded > 0 {
        overview.problems.push(format!(
            "{} of {} buckets have two shards in one failure domain, as protection {} needs {} domains: bring nodes back or \
             add one in another domain, and they are spread again",
            cluster.folded,
            cluster.buckets,
            cluster.protection,
            cluster.protection.shards()
        ));
    }
}

/// Leaders give their journals other drives when one is away for a while.
fn judge_journals(overview: &mut Overview, cluster: &ClusterStatus) {
    if cluster.journals_lacking > 0 {
        overview.problems.push(format!(
            "the journals of {} of {} buckets have fewer than {} copies: they are copied to other drives as far as there are any",
            cluster.journals_lacking,
            cluster.buckets,
            usize::from(cluster.protection.parity) + 2
        ));
    }
}

fn judge_managers(overview: &mut Overview) {
    let Some(managers) = &overview.managers else { return };
    if managers.leader.is_none() {
        let (answered, voters) = match managers.voters.len() {
            0 => (managers.answered, managers.total),
            voters => (managers.voters_answered, voters),
        };
        overview.problems.push(format!(
            "the managers have no leader: {answered} of {voters} that vote answer, {} are needed to change anything",
            voters / 2 + 1
        ));
    }
    if managers.voters.is_empty() {
        return;
    }
    let named: Vec<&str> = overview.nodes.iter().filter(|node| node.manager).map(|node| node.name.as_str()).collect();
    let new = named.iter().filter(|name| !managers.voters.iter().any(|voter| voter == **name));
    let new = new.map(|name| format!("{name} has no vote yet"));
    let old = managers.voters.iter().filter(|voter| !named.contains(&voter.as_str()));
    let old = old.map(|name| format!("{name} still has one"));
    let parts: Vec<String> = new.chain(old).collect();
    if !parts.is_empty() {
        overview.notes.push(format!("managers are being replaced: {}", parts.join(", ")));
    }
}

fn judge_buckets(overview: &mut Overview) {
    let mut reasons: BTreeMap<(String, String), Vec<u32>> = BTreeMap::new();
    for bucket in &overview.buckets.told {
        let trouble = bucket.state.stats.as_ref().and_then(|stats| stats.trouble.clone());
        let reason = match (bucket.state.serving, trouble) {
            (false, _) => bucket.state.state.clone(),
            (true, Some(trouble)) => format!("in trouble: {trouble}"),
            (true, None) => continue,
        };
        reasons.entry((bucket.node.clone(), reason)).or_default().push(bucket.state.bucket);
    }
    for ((node, reason), buckets) in reasons {
        overview.problems.push(format!("{} ({node}): {reason}", list(&buckets)));
    }
    judge_untold(overview);
}

/// Buckets of which nobody told: that is a problem if their leaders are away, and not known if they were not asked.
fn judge_untold(overview: &mut Overview) {
    let untold = &overview.buckets.untold;
    if untold.is_empty() {
        return;
    }
    let told = |name: &str| overview.buckets.told.iter().filter(|bucket| bucket.node == name).count();
    let silent = overview.nodes.iter().filter(|node| told(&node.name) < node.leads);
    let leaders: Vec<String> =
        silent.map(|node| format!("{} ({})", node.name, node.phase.as_deref().unwrap_or("no answer"))).collect();
    let text = match leaders.as_slice() {
        [] => format!("{}: no node leads them yet", list(untold)),
        leaders => format!("{}: led by {}", list(untold), leaders.join(", ")),
    };
    match overview.unknown.is_empty() {
        true => overview.problems.push(text),
        false => overview.unknown.push(text),
    }
}

fn list(buckets: &[u32]) -> String {
    let shown: Vec<String> = buckets.iter().take(BUCKETS_SHOWN).map(u32::to_string).collect();
    let more = match buckets.len().saturating_sub(BUCKETS_SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let noun = if buckets.len() == 1 { "bucket" } else { "buckets" };
    format!("{noun} {}{more}", shown.join(", "))
}

fn judge_filesystems(overview: &mut Overview) {
    for fs in overview.filesystems.iter().filter(|fs| fs.state != "ready") {
        overview.notes.push(format!("filesystem {} is {}", fs.name, fs.state));
    }
    let counters = &overview.counters;
    if let [_, .., beyond] = counters.stripes_by_missing[..]
        && beyond > 0
    {
        overview.problems.push(format!(
            "{beyond} stripes lack more shards than the protection survives: what is in them can be read again when \
             nodes or drives come back"
        ));
    }
    if counters.lost_stripes > 0 {
        let lost = counters.lost_stripes;
        overview.problems.push(format!("{lost} stripes are damaged beyond repair. See `weft events`"));
    }
    for drive in &counters.slow_drives {
        overview.notes.push(format!("{drive} answers much later than others do; reads go around it"));
    }
    if counters.checksum_errors > 0 {
        overview.notes.push(format!(
            "{} blocks did not match their checksum; {} stripes were repaired. See `weft events`",
            counters.checksum_errors, counters.repaired_stripes
        ));
    }
}

fn judge_drives(overview: &mut Overview) {
    for drive in &overview.drives {
        let (node, path, state) = (&drive.node, &drive.state.path, &drive.state.state);
        if state == BLANK {
            if overview.cluster.is_some() {
                overview
                    .notes
                    .push(format!("drive {path} of {node} is blank: `weft drive add {node} {path}` makes use of it"));
            }
        } else if state != DriveState::IN_USE {
            overview.problems.push(format!("drive {path} of {node}: {state}"));
        } else if let Some(trouble) = &drive.state.trouble {
            overview.problems.push(format!("drive {path} of {node} can't be written: {trouble}"));
        }
        if drive.state.errors > 0 {
            let errors = drive.state.errors;
            overview.notes.push(format!("drive {path} of {node}: {errors} errors since weftd was started there"));
        }
    }
}
