//! What a proposal does to the map: pure, and only the leader asks. The others get the outcome.

use crate::tunables::{CLIENTS_MAX, DELTA_BYTES_MAX, FILESYSTEMS_MAX, HOST_BYTES_MAX};
use weft_placement::MAP_BYTES_MAX;
use weft_wire::hash::directory_position;
use weft_wire::limits::NAME_BYTES_MAX;
use weft_wire::manager::{HandOverReason, Proposal};
use weft_wire::map::{Bucket, Change, Client, Delta, Drive, Filesystem, FilesystemState, Map, Node, State};
use weft_wire::{BucketId, ClientId, CoreId, DriveId, Epoch, FsId, Incarnation, InodeId, MapVersion, NodeId, encode};

/// Serial of every filesystem's root directory: the last one, which no bucket comes to hand out.
pub const ROOT_SERIAL: u64 = (1 << InodeId::SERIAL_BITS) - 1;

/// What the caller learns once the change is committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub incarnation: Incarnation,
    pub fs: FsId,
    pub client: ClientId,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Change(Delta, Outcome),
    /// The map says so already.
    Nothing(Outcome),
    Refused(String),
}

/// The next version of `map`, if `proposal` is accepted.
pub fn decide(map: &Map, proposal: &Proposal) -> Decision {
    let decision = match proposal {
        Proposal::NodeStarted { node, cores, control } => node_started(map, *node, cores, *control),
        Proposal::NewEpochs { node, incarnation, buckets } => new_epochs(map, *node, *incarnation, buckets),
        Proposal::HandOver { node, incarnation, bucket, epoch, to, reason } => {
            led(map, *node, *incarnation, *bucket, *epoch)
                .map_or_else(refused, |old| hand_over(map, *bucket, old, *to, *reason))
        }
        Proposal::NewEnsemble { node, incarnation, bucket, epoch } => {
            led(map, *node, *incarnation, *bucket, *epoch).map_or_else(refused, |old| new_ensemble(map, *bucket, old))
        }
        Proposal::TailCopied { node, incarnation, bucket, epoch } => {
            led(map, *node, *incarnation, *bucket, *epoch).map_or_else(refused, |old| tail_copied(map, *bucket, old))
        }
        Proposal::DriveFailed { node, incarnation, drive } => drive_failed(map, *node, *incarnation, *drive),
        Proposal::Moved { node, incarnation, bucket, epoch, layout, drives } => {
            led(map, *node, *incarnation, *bucket, *epoch).map_or_else(refused, |old| match old.layout == *layout {
                true => placed(Ok(weft_placement::moved(map, *bucket, drives))),
                false => refused(format!("{bucket} has other members by now")),
            })
        }
        Proposal::AddNode { new, replace } => placed(weft_placement::add_node(map, new, *replace)),
        Proposal::AddDrive { node, incarnation, drive } => match lives_as(map, *node, *incarnation) {
            Ok(()) => placed(weft_placement::add_drive(map, *node, drive)),
            Err(reason) => refused(reason),
        },
        Proposal::DriveReady { node, incarnation, drive } => match owns(map, *node, *incarnation, *drive) {
            Ok(()) => placed(weft_placement::drive_ready(map, *drive)),
            Err(reason) => refused(reason),
        },
        Proposal::SetPurpose { part, purpose } => placed(weft_placement::set_purpose(map, *part, *purpose)),
        Proposal::Remove { part } => placed(weft_placement::remove(map, *part).map(Some)),
        Proposal::HotSpare { nodes } => placed(weft_placement::hot_spare(map, *nodes)),
        Proposal::CreateFilesystem { name, size_bytes } => create_filesystem(map, name, *size_bytes),
        Proposal::FilesystemReady { fs } => filesystem_ready(map, *fs),
        Proposal::DeleteFilesystem { name } => delete_filesystem(map, name),
        Proposal::FilesystemGone { fs } => filesystem_gone(map, *fs),
        Proposal::NewClient { host } => new_client(map, host),
        Proposal::RemoveClient { client } => match map.clients.get(client) {
            None => Decision::Nothing(Outcome { client: *client, ..Outcome::default() }),
            Some(_) => {
                change(map, vec![Change::RemoveClient(*client)], Outcome { client: *client, ..Outcome::default() })
            }
        },
        Proposal::FenceClient { client } => fence_client(map, *client),
    };
    match decision {
        Decision::Change(delta, outcome) => match too_large(map, &delta) {
            Some(reason) => Decision::Refused(reason),
            None => Decision::Change(delta, outcome),
        },
        decision => decision,
    }
}

fn too_large(map: &Map, delta: &Delta) -> Option<String> {
    let bytes = encode(delta).len();
    if bytes > DELTA_BYTES_MAX {
        return Some(format!(
            "the change takes {bytes} bytes, more than the {DELTA_BYTES_MAX} that managers agree on at once; change less at a time"
        ));
    }
    let mut next = map.clone();
    if let Err(error) = next.apply(delta) {
        return Some(error.to_string());
    }
    let bytes = encode(&next).len();
    (bytes > MAP_BYTES_MAX).then(|| format!("the map would take {bytes} bytes, more than the {MAP_BYTES_MAX} that a drive keeps; remove clients or filesystems"))
}

fn change(map: &Map, changes: Vec<Change>, outcome: Outcome) -> Decision {
    Decision::Change(Delta { version: MapVersion(map.version.0 + 1), changes }, outcome)
}

fn refused(text: impl Into<String>) -> Decision {
    Decision::Refused(text.into())
}

/// What placement makes of an order.
fn placed(placed: Result<Option<Delta>, weft_placement::Refusal>) -> Decision {
    match placed {
        Ok(Some(delta)) => Decision::Change(delta, Outcome::default()),
        Ok(None) => Decision::Nothing(Outcome::default()),
        Err(refusal) => refused(refusal.to_string()),
    }
}

fn lives_as(map: &Map, id: NodeId, incarnation: Incarnation) -> Result<(), String> {
    match map.nodes.get(&id).is_some_and(|node| node.incarnation == incarnation) {
        true => Ok(()),
        false => Err(format!("{id} does not live as {incarnation}")),
    }
}

fn owns(map: &Map, id: NodeId, incarnation: Incarnation, drive: DriveId) -> Result<(), String> {
    lives_as(map, id, incarnation)?;
    match map.drives.get(&drive).is_some_and(|drive| drive.node == id) {
        true => Ok(()),
        false => Err(format!("{drive} is not of {id}")),
    }
}

fn node_started(map: &Map, id: NodeId, cores: &[std::net::SocketAddr], control: std::net::SocketAddr) -> Decision {
    let Some(node) = map.nodes.get(&id) else {
        return refused(format!("cluster {} has no {id}; add the node first", map.name));
    };
    if cores.len() < node.cores.len() {
        let led =
            map.buckets.iter().any(|bucket| bucket.leader.node == id && usize::from(bucket.leader.core) >= cores.len());
        let owned = map.drives.values().any(|drive| drive.node == id && usize::from(drive.core) >= cores.len());
        if led || owned || cores.is_empty() {
            return refused(format!(
                "node {:?} ({id}) started with {} cores and had {}; drives or buckets are on those that are missing",
                node.name,
                cores.len(),
                node.cores.len()
            ));
        }
    }
    let taken =
        map.nodes.values().filter(|other| other.id != id).find(|other| other.cores.iter().any(|at| cores.contains(at)));
    if let Some(other) = taken {
        return refused(format!(
            "node {:?} ({id}) uses a data address of node {:?} ({})",
            node.name, other.name, other.id
        ));
    }
    let incarnation = Incarnation(node.incarnation.0 + 1);
    let state = match node.state {
        State::Away | State::Failed | State::Joining => node.purpose.present(),
        State::Up | State::Draining => node.state,
    };
    let started = Node { cores: cores.to_vec(), control, incarnation, state, ..node.clone() };
    let mut changes = vec![Change::Node(started)];
    // A start is a new try for drives that had failed.
    let failed = map.drives.values().filter(|drive| drive.node == id && drive.state == State::Failed);
    changes.extend(failed.map(|drive| Change::Drive(Drive { state: drive.purpose.present(), ..drive.clone() })));
    let led = |bucket: &Bucket| bucket.leader.node == id;
    changes
        .extend(buckets(map).filter(|(_, bucket)| led(bucket)).map(|(id, bucket)| next_epoch(id, bucket, incarnation)));
    change(map, changes, Outcome { incarnation, ..Outcome::default() })
}

fn new_epochs(map: &Map, id: NodeId, incarnation: Incarnation, wanted: &[BucketId]) -> Decision {
    let Some(node) = map.nodes.get(&id) else { return refused(format!("this cluster has no {id}")) };
    if node.incarnation != incarnation {
        return refused(format!("{id} lives as {} now, not as {incarnation}", node.incarnation));
    }
    let mut changes = Vec::with_capacity(wanted.len());
    for bucket_id in wanted {
        match map.bucket(*bucket_id) {
            Some(bucket) if bucket.leader.node == id => changes.push(next_epoch(*bucket_id, bucket, incarnation)),
            Some(bucket) => return refused(format!("{bucket_id} is led by {}, not by {id}", bucket.leader)),
            None => return refused(format!("this cluster has no {bucket_id}")),
        }
    }
    let outcome = Outcome { incarnation, ..Outcome::default() };
    if changes.is_empty() { Decision::Nothing(outcome) } else { change(map, changes, outcome) }
}

fn drive_failed(map: &Map, id: NodeId, incarnation: Incarnation, drive: DriveId) -> Decision {
    if let Err(reason) = owns(map, id, incarnation, drive) {
        return refused(reason);
    }
    let survivors = |bucket: &&Bucket| {
        bucket.members.iter().filter(|member| **member != drive && weft_placement::lives(map, **member)).count()
    };
    let data = usize::from(map.protection.data);
    if let Some(bucket) =
        map.buckets.iter().filter(|bucket| bucket.members.contains(&drive)).find(|bucket| survivors(bucket) < data)
    {
        let left = survivors(&bucket);
        return refused(format!(
            "{drive} is not given up: without it a bucket would have {left} of the {data} drives that it needs"
        ));
    }
    match weft_placement::drive_failed(map, drive) {
        Some(delta) => Decision::Change(delta, Outcome::default()),
        None => Decision::Nothing(Outcome::default()),
    }
}

/// The bucket, if this life of the node leads it in just this epoch: an epoch belongs to one incarnation.
fn led(map: &Map, node: NodeId, incarnation: Incarnation, id: BucketId, epoch: Epoch) -> Result<&Bucket, String> {
    let bucket = map.bucket(id).ok_or_else(|| format!("this cluster has no {id}"))?;
    if bucket.leader.node != node || bucket.incarnation != incarnation || bucket.epoch != epoch {
        return Err(format!("{id} is led by {} in {}, not by {node} in {epoch}", bucket.leader, bucket.epoch));
    }
    Ok(bucket)
}

fn hand_over(map: &Map, id: BucketId, bucket: &Bucket, to: CoreId, reason: HandOverReason) -> Decision {
    if reason == HandOverReason::Balance && !weft_placement::balance_leaders(map).contains(&(id, to)) {
        return refused(format!("{id} is as well where it is, at {}", bucket.leader));
    }
    match weft_placement::set_leaders(map, &[(id, to)].into()) {
        Ok(delta) => Decision::Change(delta, Outcome::default()),
        Err(refusal) => refused(refusal.to_string()),
    }
}

fn new_ensemble(map: &Map, id: BucketId, bucket: &Bucket) -> Decision {
    match weft_placement::better_ensemble(map, id) {
        Some(drives) => {
            let bucket = weft_placement::with_ensemble(bucket, drives);
            change(map, vec![Change::Bucket(id, bucket)], Outcome::default())
        }
        None => Decision::Nothing(Outcome::default()),
    }
}

/// The leader counts promises and copies of the newest ensemble alone, and every later leader is given a later epoch, by a
/// map that comes after this change: nobody will ask the earlier drives again.
fn tail_copied(map: &Map, id: BucketId, bucket: &Bucket) -> Decision {
    if bucket.ensembles.len() < 2 {
        return Decision::Nothing(Outcome::default());
    }
    let ensembles = bucket.ensembles.iter().take(1).cloned().collect();
    change(map, vec![Change::Bucket(id, Bucket { ensembles, ..bucket.clone() })], Outcome::default())
}

fn next_epoch(id: BucketId, bucket: &Bucket, incarnation: Incarnation) -> Change {
    Change::Bucket(id, Bucket { epoch: Epoch(bucket.epoch.0 + 1), incarnation, ..bucket.clone() })
}

fn buckets(map: &Map) -> impl Iterator<Item = (BucketId, &Bucket)> {
    (0u32..).map(BucketId).zip(&map.buckets)
}

fn create_filesystem(map: &Map, name: &str, size_bytes: u64) -> Decision {
    if name.is_empty()
        || name.len() > NAME_BYTES_MAX
        || name.contains(['/', '\0', ',', ':'])
        || name.chars().any(char::is_whitespace)
    {
        return refused(format!(
            "{name:?} can't name a filesystem: 1 to {NAME_BYTES_MAX} bytes without '/', ',', ':' and white space"
        ));
    }
    if let Some(fs) = map.filesystem_named(name) {
        // A proposal whose answer was lost comes again.
        if fs.state == FilesystemState::Creating && fs.size_bytes == size_bytes {
            return Decision::Nothing(Outcome { fs: fs.id, ..Outcome::default() });
        }
        return refused(match fs.state {
            FilesystemState::Deleting => format!("a filesystem {name:?} is still being deleted"),
            _ => format!("a filesystem {name:?} exists"),
        });
    }
    if map.filesystems.len() >= FILESYSTEMS_MAX {
        return refused(format!("the cluster has {FILESYSTEMS_MAX} filesystems, as many as it can"));
    }
    // Each version of the map makes at most one filesystem, so its number is an id that never comes again.
    let Ok(id) = u32::try_from(map.version.0 + 1).map(FsId) else {
        return refused("no id is left for another filesystem");
    };
    let position = directory_position(&map.secret, id, InodeId::default(), &[], 0);
    let fs = Filesystem {
        id,
        name: name.into(),
        root: InodeId::new(position, ROOT_SERIAL),
        size_bytes,
        state: FilesystemState::Creating,
    };
    change(map, vec![Change::Filesystem(fs)], Outcome { fs: id, ..Outcome::default() })
}

fn filesystem_ready(map: &Map, id: FsId) -> Decision {
    let outcome = Outcome { fs: id, ..Outcome::default() };
    match map.filesystems.get(&id) {
        None => refused(format!("this cluster has no {id}")),
        Some(fs) if fs.state == FilesystemState::Ready => Decision::Nothing(outcome),
        Some(fs) if fs.state == FilesystemState::Deleting => {
            refused(format!("filesystem {:?} is being deleted", fs.name))
        }
        Some(fs) => {
            change(map, vec![Change::Filesystem(Filesystem { state: FilesystemState::Ready, ..fs.clone() })], outcome)
        }
    }
}

fn delete_filesystem(map: &Map, name: &str) -> Decision {
    let Some(fs) = map.filesystem_named(name) else { return refused(format!("there is no filesystem {name:?}")) };
    let outcome = Outcome { fs: fs.id, ..Outcome::default() };
    if fs.state == FilesystemState::Deleting {
        return Decision::Nothing(outcome);
    }
    change(map, vec![Change::Filesystem(Filesystem { state: FilesystemState::Deleting, ..fs.clone() })], outcome)
}

fn filesystem_gone(map: &Map, id: FsId) -> Decision {
    let outcome = Outcome { fs: id, ..Outcome::default() };
    match map.filesystems.get(&id) {
        None => Decision::Nothing(outcome),
        Some(fs) if fs.state == FilesystemState::Deleting => change(map, vec![Change::RemoveFilesystem(id)], outcome),
        Some(fs) => refused(format!("filesystem {:?} is in use; delete it first", fs.name)),
    }
}

fn new_client(map: &Map, host: &str) -> Decision {
    if host.len() > HOST_BYTES_MAX {
        return refused(format!("a host's name of {} bytes is longer than {HOST_BYTES_MAX}", host.len()));
    }
    if map.clients.len() >= CLIENTS_MAX {
        return refused(format!("{CLIENTS_MAX} clients are known, as many as can be; unmount some"));
    }
    let client = Client { id: map.next_client.max(ClientId(1)), host: host.into(), fenced: false };
    let outcome = Outcome { client: client.id, ..Outcome::default() };
    change(map, vec![Change::Client(client)], outcome)
}

fn fence_client(map: &Map, id: ClientId) -> Decision {
    let outcome = Outcome { client: id, ..Outcome::default() };
    match map.clients.get(&id) {
        // Removed is more than fenced.
        None => Decision::Nothing(outcome),
        Some(client) if client.fenced => Decision::Nothing(outcome),
        Some(client) => change(map, vec![Change::Client(Client { fenced: true, ..client.clone() })], outcome),
    }
}

/// The core that speaks for a node: its first.
pub(crate) fn front(node: NodeId) -> CoreId {
    CoreId { node, core: 0 }
}
