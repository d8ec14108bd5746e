//! Whether everything has room, now and after a change: the arithmetic that is shown before anything is changed.

use crate::connection::{Access, unexpected};
use crate::gather::{Gathered, gather, needs_cluster};
use crate::output::{Output, progress};
use crate::size;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use weft_wire::DriveId;
use weft_wire::control::{Answer, Command};
use weft_wire::map::Map;

/// Proposals are waited for as long as the node waits for the managers.
pub const CHANGE_MAX: Duration = Duration::from_secs(30);
/// Of the zones, what the cluster needs to go on cleaning: data beyond this share don't fit.
const USED_PERCENT_MAX: u64 = 85;

/// The cluster as it is: its map, and how full its drives are.
pub struct Site {
    pub map: Map,
    pub gathered: Gathered,
    /// Zones in use, in bytes, of the drives that told.
    pub used: BTreeMap<DriveId, u64>,
}

impl Site {
    pub fn look(access: &mut Access, timeout: Duration) -> Result<Site> {
        let gathered = gather(access, timeout)?;
        needs_cluster(&gathered.first, &access.first)?;
        let map = fetch_map(access, timeout)?;
        let mut used = BTreeMap::new();
        let told = gathered.nodes.iter().filter_map(|answered| answered.status.as_ref().ok());
        for state in told.flat_map(|status| &status.drives) {
            if let Some(drive) = state.id.and_then(|id| map.drives.get(&id)) {
                used.insert(drive.id, u64::from(state.zones.saturating_sub(state.zones_free)) * drive.zone_bytes);
            }
        }
        Ok(Site { map, gathered, used })
    }

    pub fn used_bytes(&self) -> u64 {
        self.used.values().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes))
    }
}

/// So many nodes.
pub fn nodes(count: u16) -> String {
    format!("{count} {}", if count == 1 { "node" } else { "nodes" })
}

/// The whole map of the cluster of the first node.
pub fn fetch_map(access: &Access, timeout: Duration) -> Result<Map> {
    match access.call(&access.first, Command::Map, timeout)? {
        Answer::Map(map) => Ok(*map),
        _ => Err(unexpected(&access.first).into()),
    }
}

/// What fits before and after a change. Bytes on drives: data and parity together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Room {
    pub used_bytes: u64,
    pub before_bytes: u64,
    pub after_bytes: u64,
}

impl Room {
    pub fn new(used_bytes: u64, before: &Map, after: &Map) -> Room {
        let usable = |map: &Map| {
            let spare = weft_placement::spare(map, map.hot_spare);
            spare.total_bytes - spare.reserved_bytes
        };
        Room { used_bytes, before_bytes: usable(before), after_bytes: usable(after) }
    }

    pub fn line(&self) -> String {
        let percent = |of: u64| (self.used_bytes * 100).checked_div(of).unwrap_or(100);
        format!(
            "capacity {} -> {} (data and parity), {} in use: {} % -> {} % full",
            size::show(self.before_bytes),
            size::show(self.after_bytes),
            size::show(self.used_bytes),
            percent(self.before_bytes),
            percent(self.after_bytes),
        )
    }

    /// Refused if what is there would not fit.
    pub fn check(&self, what: &str) -> Result<()> {
        let most = self.after_bytes / 100 * USED_PERCENT_MAX;
        if self.used_bytes <= most || self.after_bytes >= self.before_bytes {
            return Ok(());
        }
        bail!(
            "nothing was changed: {what} would leave {}, of which {USED_PERCENT_MAX} % = {} can be filled, and {} are in use. \
             Delete {}, or add nodes or drives first",
            size::show(self.after_bytes),
            size::show(most),
            size::show(self.used_bytes),
            size::show(self.used_bytes - most),
        )
    }
}

#[derive(Serialize)]
struct HotSpare {
    nodes: u16,
    before: u16,
    changed: bool,
    #[serde(flatten)]
    room: Room,
}

/// `weft cluster hot-spare`.
pub fn hot_spare(access: &mut Access, output: Output, timeout: Duration, nodes: u16, dry_run: bool) -> Result<()> {
    let site = Site::look(access, timeout)?;
    let before = site.map.hot_spare;
    let delta = weft_placement::hot_spare(&site.map, nodes).map_err(|refusal| anyhow::anyhow!("{refusal}"))?;
    let mut after = site.map.clone();
    if let Some(delta) = &delta {
        after.apply(delta).context("the change does not fit the map")?;
    }
    let room = Room::new(site.used_bytes(), &site.map, &after);
    progress(&room.line());
    room.check(&format!("a hot spare of {}", self::nodes(nodes)))?;
    let changed = delta.is_some() && !dry_run;
    if changed {
        access.call(&access.first, Command::HotSpare { nodes }, CHANGE_MAX)?;
    }
    output.show(&HotSpare { nodes, before, changed, room }, || match (changed, dry_run) {
        (true, _) => format!("the capacity of {} is kept free from now on\n", self::nodes(nodes)),
        (false, true) => format!("nothing was changed: the hot spare is of {}\n", self::nodes(before)),
        (false, false) => format!("the hot spare is of {} already\n", self::nodes(nodes)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_numbers() {
        let room = Room { used_bytes: 60 << 30, before_bytes: 100 << 30, after_bytes: 70 << 30 };
        assert_eq!(room.line(), "capacity 100 GiB -> 70 GiB (data and parity), 60 GiB in use: 60 % -> 85 % full");
        let text = room.check("draining node3").unwrap_err().to_string();
        assert!(text.contains("85 % = 59.4 GiB can be filled, and 60 GiB are in use"), "{text}");
        assert!(Room { used_bytes: 59 << 30, ..room }.check("x").is_ok());
        assert!(
            Room { after_bytes: 110 << 30, used_bytes: 105 << 30, ..room }.check("x").is_ok(),
            "more room is no harm"
        );
    }
}
