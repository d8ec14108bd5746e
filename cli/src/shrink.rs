//! `weft node drain|remove` and `weft drive drain|remove`.

use crate::arguments::DrainHow;
use crate::connection::Access;
use crate::output::{Output, progress};
use crate::room::{CHANGE_MAX, Room, Site};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::time::Duration;
use weft_placement::Holds;
use weft_wire::DriveId;
use weft_wire::control::Command;
use weft_wire::manager::Part;
use weft_wire::map::{Drive, Map, Node, Purpose};

/// Between two looks at what is drained.
const POLL: Duration = Duration::from_secs(1);

pub fn find_node<'a>(map: &'a Map, named: &str) -> Result<&'a Node> {
    let by_name = map.nodes.values().find(|node| node.name == named);
    by_name.or_else(|| map.nodes.values().find(|node| node.id.to_string() == named)).with_context(|| {
        let names: Vec<&str> = map.nodes.values().map(|node| node.name.as_str()).collect();
        format!("{} has no node {named}; it has {}", map.name, names.join(", "))
    })
}

fn find_drive<'a>(map: &'a Map, named: &str) -> Result<&'a Drive> {
    let number = named.strip_prefix("drive").unwrap_or(named);
    let id = number.parse().map(DriveId).with_context(|| format!("{named} is no drive: drives are named driveN"))?;
    map.drives.get(&id).with_context(|| format!("{} has no {id}; see `weft drive list`", map.name))
}

pub fn drain_node(access: &mut Access, output: Output, timeout: Duration, node: &str, how: DrainHow) -> Result<()> {
    let site = Site::look(access, timeout)?;
    let node = find_node(&site.map, node)?;
    let name = node.name.clone();
    drain(access, output, timeout, &site, Part::Node(node.id), &name, how)
}

pub fn drain_drive(access: &mut Access, output: Output, timeout: Duration, drive: &str, how: DrainHow) -> Result<()> {
    let site = Site::look(access, timeout)?;
    let drive = find_drive(&site.map, drive)?;
    drain(access, output, timeout, &site, Part::Drive(drive.id), &drive.id.to_string(), how)
}

#[derive(Serialize)]
struct Drained<'a> {
    name: &'a str,
    changed: bool,
    drained: bool,
    leads: u64,
    shards: u64,
    journals: u64,
    manager: bool,
    #[serde(flatten)]
    room: Room,
}

fn drain(
    access: &Access,
    output: Output,
    timeout: Duration,
    site: &Site,
    part: Part,
    name: &str,
    how: DrainHow,
) -> Result<()> {
    let purpose = if how.cancel { Purpose::Serve } else { Purpose::Leave };
    let delta = weft_placement::set_purpose(&site.map, part, purpose)
        .map_err(|refusal| anyhow::anyhow!("nothing was changed: {refusal}"))?;
    let mut after = site.map.clone();
    if let Some(delta) = &delta {
        after.apply(delta).context("the change does not fit the map")?;
    }
    let holds = Holds::of(&site.map, part);
    let room = Room::new(site.used_bytes(), &site.map, &after);
    if !how.cancel {
        progress(&format!("{name} {holds}"));
        progress(&room.line());
        room.check(&format!("draining {name}"))?;
    }
    let changed = delta.is_some() && !how.dry_run;
    if changed {
        access.call(&access.first, Command::SetPurpose { part, purpose }, CHANGE_MAX)?;
    }
    let drained = if how.wait { wait_drained(access, timeout, part, name)? } else { holds.is_nothing() };
    let Holds { leads, shards, journals, manager, .. } = holds;
    output.show(&Drained { name, changed, drained, leads, shards, journals, manager, room }, || {
        match (how.cancel, how.dry_run, drained) {
            (true, _, _) => format!("{name} stays; what moved away comes back as its share\n"),
            (_, true, _) => "nothing was changed\n".into(),
            (_, _, true) => format!("{name} holds nothing any more: it can be removed\n"),
            (_, _, false) => {
                format!("{name} is being drained; `weft status` shows how far it is, and then it can be removed\n")
            }
        }
    })
}

/// Until the map has nothing on it any more. As long as it takes: data are moved.
fn wait_drained(access: &Access, timeout: Duration, part: Part, name: &str) -> Result<bool> {
    let mut shown = String::new();
    loop {
        // A node that is asked may be away for a moment.
        if let Ok(map) = crate::room::fetch_map(access, timeout) {
            let holds = Holds::of(&map, part);
            if holds.is_nothing() {
                return Ok(true);
            }
            let leaves = match part {
                Part::Node(id) => map.nodes.get(&id).is_some_and(|node| node.purpose == Purpose::Leave),
                Part::Drive(id) => map.drives.get(&id).is_some_and(|drive| drive.purpose == Purpose::Leave),
            };
            if !leaves {
                bail!("{name} is no longer being drained");
            }
            let text = format!("{name} {holds}");
            if text != shown {
                progress(&text);
                shown = text;
            }
        }
        std::thread::sleep(POLL);
    }
}

pub fn remove_node(access: &mut Access, output: Output, timeout: Duration, node: &str, dry_run: bool) -> Result<()> {
    let site = Site::look(access, timeout)?;
    let node = find_node(&site.map, node)?;
    remove(access, output, &site, Part::Node(node.id), &node.name, dry_run)
}

pub fn remove_drive(access: &mut Access, output: Output, timeout: Duration, drive: &str, dry_run: bool) -> Result<()> {
    let site = Site::look(access, timeout)?;
    let drive = find_drive(&site.map, drive)?;
    remove(access, output, &site, Part::Drive(drive.id), &drive.id.to_string(), dry_run)
}

#[derive(Serialize)]
struct Removed<'a> {
    name: &'a str,
    changed: bool,
}

fn remove(access: &Access, output: Output, site: &Site, part: Part, name: &str, dry_run: bool) -> Result<()> {
    weft_placement::remove(&site.map, part).map_err(|refusal| anyhow::anyhow!("nothing was changed: {refusal}"))?;
    if !dry_run {
        access.call(&access.first, Command::Remove { part }, CHANGE_MAX)?;
    }
    output.show(&Removed { name, changed: !dry_run }, || match dry_run {
        true => format!("{name} holds nothing and can be removed; nothing was changed\n"),
        false => format!("{name} is no part of {} any more\n", site.map.name),
    })
}
