//! `weft node add` and `weft drive add`.

use crate::arguments::AddNode;
use crate::connection::{Access, CallError};
use crate::create::{Candidate, FORM_MAX, POLL, SERVING, check_drives, describe, look_at, new_node};
use crate::gather::endpoints;
use crate::output::{Output, progress};
use crate::room::{CHANGE_MAX, Room, Site, fetch_map};
use crate::shrink::find_node;
use crate::size;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::time::{Duration, Instant};
use weft_wire::control::Command;
use weft_wire::map::{Map, State};
use weft_wire::{NodeId, Uuid};

#[derive(Serialize)]
struct Added {
    node: u16,
    name: String,
    changed: bool,
    /// Shards of buckets that move to it.
    moves: u64,
    #[serde(flatten)]
    room: Room,
}

/// `own` has the right to talk to the new node, `access` to those of the cluster.
pub fn add_node(
    access: &mut Access,
    own: &Access,
    output: Output,
    timeout: Duration,
    arguments: &AddNode,
) -> Result<()> {
    let site = Site::look(access, timeout)?;
    let candidate = look_at(own, timeout, &arguments.address)
        .or_else(|_| look_at(access, timeout, &arguments.address))
        .with_context(|| format!("the new node, {}, could not be asked", arguments.address))?;
    let name = candidate.description.name.clone();
    if let Some(cluster) = candidate.description.cluster {
        return stands(access, output, &site, &candidate, cluster, arguments.wait);
    }
    let candidates = [candidate];
    check_drives(&candidates)?;
    let [candidate] = candidates;
    let new = new_node(&candidate.description);
    let delta = weft_placement::add_node(&site.map, &new, arguments.replace)
        .map_err(|refusal| anyhow::anyhow!("nothing was changed: {refusal}"))?;
    let mut joined = site.map.clone();
    if let Some(delta) = &delta {
        joined.apply(delta).context("the change does not fit the map")?;
    }
    let id = joined.nodes.values().find(|node| node.name == name).map(|node| node.id).unwrap_or_default();
    let after = served(&joined, id);
    let room = Room::new(site.used_bytes(), &site.map, &after);
    let moves = weft_placement::moves(&after).waiting;
    let shards = site.map.buckets.len() * site.map.protection.shards();
    progress(&format!(
        "{name} brings {} drives, in domain {}; {moves} of {shards} shards move to it",
        new.drives.len(),
        new.domain.as_deref().unwrap_or("of its own"),
    ));
    progress(&room.line());
    if !arguments.dry_run {
        access.call(&access.first, Command::AddNode { new, replace: arguments.replace }, CHANGE_MAX)?;
        form(access, own, timeout, &candidate)?;
        wait_serving(access, timeout, &candidate, arguments.wait)?;
    }
    let changed = !arguments.dry_run;
    output.show(&Added { node: id.0, name: name.clone(), changed, moves, room }, || match changed {
        true => format!("{name} is {id} of {}; `weft status` shows how its share moves there\n", site.map.name),
        false => "nothing was changed\n".into(),
    })
}

/// The map as it is when the node takes part.
fn served(joined: &Map, id: NodeId) -> Map {
    let mut after = joined.clone();
    if let Some(node) = after.nodes.get_mut(&id) {
        node.state = State::Up;
    }
    after
}

/// It is in a cluster: in this one, an earlier run got so far.
fn stands(
    access: &Access,
    output: Output,
    site: &Site,
    candidate: &Candidate,
    cluster: Uuid,
    wait: Duration,
) -> Result<()> {
    let name = &candidate.description.name;
    if cluster != site.map.cluster {
        bail!(
            "nothing was changed: {name} ({}) is in cluster {cluster}; wipe its drives to use it here",
            candidate.endpoint
        );
    }
    wait_serving(access, POLL * 12, candidate, wait)?;
    let id = site.map.nodes.values().find(|node| node.name == *name).map(|node| node.id).unwrap_or_default();
    let room = Room::new(site.used_bytes(), &site.map, &site.map);
    output.show(&Added { node: id.0, name: name.clone(), changed: false, moves: 0, room }, || {
        format!("{name} is {id} of {} already\n", site.map.name)
    })
}

/// Gives the new node the map that names it.
fn form(access: &Access, own: &Access, timeout: Duration, candidate: &Candidate) -> Result<()> {
    let map = fetch_map(access, timeout)?;
    let cluster = map.cluster;
    let formed = own.call(&candidate.endpoint, Command::Form { map: Box::new(map) }, FORM_MAX).map(drop).or_else(
        |error: CallError| match describe(own, timeout, &candidate.endpoint) {
            Ok(description) if description.cluster == Some(cluster) => Ok(()),
            _ => Err(error),
        },
    );
    formed.with_context(|| {
        format!("{} is in the map and not in the cluster yet; run this again: it goes on", candidate.description.name)
    })?;
    progress(&format!("{}: drives formatted, in the cluster", candidate.description.name));
    Ok(())
}

fn wait_serving(access: &Access, timeout: Duration, candidate: &Candidate, wait: Duration) -> Result<()> {
    let deadline = Instant::now() + wait;
    loop {
        let status = access.status(&candidate.endpoint, timeout);
        let said = match &status {
            Ok(status) if status.phase == SERVING => return Ok(()),
            Ok(status) => format!("it is {}", status.phase),
            Err(error) => error.to_string(),
        };
        if Instant::now() >= deadline {
            bail!("{} does not serve after {} s: {said}. See its log", candidate.description.name, wait.as_secs());
        }
        std::thread::sleep(POLL);
    }
}

#[derive(Serialize)]
struct AddedDrive<'a> {
    node: &'a str,
    path: &'a str,
    capacity_bytes: u64,
    changed: bool,
}

/// `weft drive add`.
pub fn add_drive(
    access: &mut Access,
    output: Output,
    timeout: Duration,
    node: &str,
    path: &str,
    dry_run: bool,
) -> Result<()> {
    let site = Site::look(access, timeout)?;
    let node = find_node(&site.map, node)?;
    let all = endpoints(access, &site.gathered.first);
    let (_, endpoint) = all
        .into_iter()
        .find(|(name, _)| *name == node.name)
        .with_context(|| format!("{} has no address", node.name))?;
    let described = describe(access, timeout, &endpoint)?;
    let drive = described.drives.iter().find(|drive| drive.path == path);
    let drive = drive.with_context(|| {
        let paths: Vec<&str> = described.drives.iter().map(|drive| drive.path.as_str()).collect();
        format!(
            "{} has no drive {path}: name it in its configuration and start weftd again. It has {}",
            node.name,
            paths.join(", ")
        )
    })?;
    if let Some(problem) = &drive.problem {
        bail!("nothing was changed: {path} of {} can't be used: {problem}", node.name);
    }
    progress(&format!(
        "{path} brings {} to {}, which gets its share in data of others",
        size::show(drive.capacity_bytes),
        node.name
    ));
    if !dry_run {
        access.call(&endpoint, Command::AddDrive { path: path.into() }, FORM_MAX)?;
    }
    let added = AddedDrive { node: &node.name, path, capacity_bytes: drive.capacity_bytes, changed: !dry_run };
    output.show(&added, || match dry_run {
        true => "nothing was changed\n".into(),
        false => format!("{path} of {} is part of the cluster\n", node.name),
    })
}
