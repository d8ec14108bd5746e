//! What is on a node or drive, as far as the map tells. As long as it is anything, it can't be taken out of the map.

use weft_wire::DriveId;
use weft_wire::manager::Part;
use weft_wire::map::Map;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holds {
    /// Buckets that a node leads.
    pub leads: u64,
    /// Buckets of which it is a member.
    pub shards: u64,
    /// Buckets of which it was a member, and which may still have shards there.
    pub former: u64,
    /// Buckets whose journal is there, or was and is not yet copied.
    pub journals: u64,
    /// Whether a node votes on the map.
    pub manager: bool,
}

impl Holds {
    pub fn of(map: &Map, part: Part) -> Self {
        let is_there = |id: &DriveId| match part {
            Part::Drive(drive) => *id == drive,
            Part::Node(node) => map.drives.get(id).is_some_and(|drive| drive.node == node),
        };
        let mut holds = Self::default();
        for bucket in &map.buckets {
            let mut journal = bucket.ensembles.iter().flat_map(|ensemble| &ensemble.drives);
            holds.leads += u64::from(matches!(part, Part::Node(node) if bucket.leader.node == node));
            holds.shards += u64::from(bucket.members.iter().any(is_there));
            holds.former += u64::from(bucket.former.iter().any(|former| is_there(&former.drive)));
            holds.journals += u64::from(journal.any(is_there));
        }
        holds.manager = matches!(part, Part::Node(node) if map.managers.contains(&node));
        holds
    }

    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl core::fmt::Display for Holds {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let counts = [
            (self.leads, "leads", "buckets"),
            (self.shards, "is a member of", "buckets"),
            (self.former, "still holds shards of", "buckets that move away"),
            (self.journals, "holds the journals of", "buckets"),
        ];
        let mut parts: Vec<String> = counts
            .iter()
            .filter(|(count, _, _)| *count > 0)
            .map(|(count, verb, what)| format!("{verb} {count} {what}"))
            .collect();
        if self.manager {
            parts.push("is a manager".into());
        }
        match parts.is_empty() {
            true => f.write_str("holds nothing"),
            false => f.write_str(&parts.join(", ")),
        }
    }
}
