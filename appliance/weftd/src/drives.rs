//! The node's drives: opened, told apart, formatted when a cluster is formed; and the store that its manager keeps the
//! map and its vote in.

use bytes::Bytes;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use weft_drive::format::Geometry;
use weft_drive::{ConfigSlot, Drive, FormatOptions, FormattedDrive, OpenError};
use weft_manager::{ConfigStore, Slot, StoreError};
use weft_reactor::Handle;
use weft_reactor::sync::{Mutex, Pending, completion};
use weft_wire::map::Map;
use weft_wire::{DriveId, NodeId, Uuid};

/// A device that the configuration names.
#[derive(Clone)]
pub struct Device {
    /// For messages.
    pub path: String,
    pub core: u8,
    pub drive: Rc<dyn Drive>,
}

/// What was found on a device.
pub enum Found {
    Blank,
    Formatted(Rc<FormattedDrive>),
    /// It is left alone.
    Unusable(String),
}

pub struct NodeDrive {
    pub device: Device,
    /// A blank drive's for the time being.
    pub uuid: Uuid,
    pub found: Found,
}

impl NodeDrive {
    /// As what the cluster knows it.
    pub fn id(&self) -> Option<DriveId> {
        match &self.found {
            Found::Formatted(formatted) => Some(formatted.id()),
            Found::Blank | Found::Unusable(_) => None,
        }
    }
}

/// Why a node can't start with its drives.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DrivesError {
    #[error(
        "{path} belongs to cluster {found}, the node's other drives to {expected}: remove it from the configuration, or wipe it"
    )]
    OtherCluster { path: String, expected: Uuid, found: Uuid },
    #[error("{path} belongs to {found}, the node's other drives to {expected}: are drives of two nodes mixed up?")]
    OtherNode { path: String, expected: NodeId, found: NodeId },
    #[error("{path} can't be formatted: {reason}")]
    Format { path: String, reason: String },
    #[error("the map has no drive {uuid} ({path}): form the cluster again")]
    NotInMap { path: String, uuid: Uuid },
}

/// Opens every device. Only what is wrong with all of them together is an error.
pub async fn open(devices: Vec<Device>, handle: &Handle) -> Vec<NodeDrive> {
    let mut drives = Vec::with_capacity(devices.len());
    for device in devices {
        let random = u128::from(handle.random_u64()) << 64 | u128::from(handle.random_u64());
        let (uuid, found) = match FormattedDrive::open(Rc::clone(&device.drive)).await {
            Ok(formatted) => (formatted.superblock().uuid, Found::Formatted(formatted)),
            Err(OpenError::Blank) => (Uuid(random), Found::Blank),
            Err(error) => {
                tracing::error!(drive = %device.path, %error, "the drive can't be used");
                (Uuid(random), Found::Unusable(error.to_string()))
            }
        };
        drives.push(NodeDrive { device, uuid, found });
    }
    drives
}

/// The cluster and node that the drives belong to; `None`: all are blank.
pub fn identity(drives: &[NodeDrive]) -> Result<Option<(Uuid, NodeId)>, DrivesError> {
    let mut identity = None;
    for drive in drives {
        let Found::Formatted(formatted) = &drive.found else { continue };
        let superblock = formatted.superblock();
        let own = (superblock.cluster, superblock.node);
        let (cluster, node) = *identity.get_or_insert(own);
        let path = || drive.device.path.clone();
        if cluster != own.0 {
            return Err(DrivesError::OtherCluster { path: path(), expected: cluster, found: own.0 });
        }
        if node != own.1 {
            return Err(DrivesError::OtherNode { path: path(), expected: node, found: own.1 });
        }
    }
    Ok(identity)
}

/// Formats the drives as the map says.
pub async fn format(drives: &mut [NodeDrive], map: &Map, node: NodeId) -> Result<(), DrivesError> {
    for drive in drives {
        // Formatted without a map: the formation was interrupted before the node was part of anything.
        let force = matches!(drive.found, Found::Formatted(_));
        drive.found = Found::Formatted(format_one(&drive.device, drive.uuid, force, map, node).await?);
    }
    Ok(())
}

/// Formats one drive as what the map knows it.
pub async fn format_one(
    device: &Device,
    uuid: Uuid,
    force: bool,
    map: &Map,
    node: NodeId,
) -> Result<Rc<FormattedDrive>, DrivesError> {
    let path = device.path.clone();
    let by_map = map.drives.values().find(|by_map| by_map.uuid == uuid && by_map.node == node);
    let Some(by_map) = by_map else { return Err(DrivesError::NotInMap { path, uuid }) };
    let failed = |reason: String| DrivesError::Format { path: path.clone(), reason };
    let options = FormatOptions { cluster: map.cluster, node, drive: by_map.id, uuid, force };
    FormattedDrive::format(&device.drive, options).await.map_err(|error| failed(error.to_string()))?;
    FormattedDrive::open(Rc::clone(&device.drive)).await.map_err(|error| failed(error.to_string()))
}

/// What a blank device would become.
pub fn geometry(capacity_bytes: u64) -> Result<(u64, u32), String> {
    let geometry = Geometry::for_capacity(capacity_bytes).map_err(|error| error.to_string())?;
    Ok((geometry.zone_bytes, geometry.zones))
}

/// The configuration slots of the node's formatted drives.
pub struct DriveStore {
    handle: Handle,
    drives: RefCell<BTreeMap<DriveId, Stored>>,
}

#[derive(Clone)]
struct Stored {
    formatted: Rc<FormattedDrive>,
    /// Writes are done in the order in which they were asked for.
    order: Rc<Mutex<()>>,
}

impl DriveStore {
    pub fn new(handle: Handle, drives: &[NodeDrive]) -> Rc<Self> {
        let store = Rc::new(Self { handle, drives: RefCell::default() });
        for drive in drives {
            if let Found::Formatted(formatted) = &drive.found {
                store.add(formatted);
            }
        }
        store
    }

    /// One drive more, formatted while the node runs.
    pub fn add(&self, formatted: &Rc<FormattedDrive>) {
        let stored = Stored { formatted: Rc::clone(formatted), order: Rc::new(Mutex::new(())) };
        self.drives.borrow_mut().insert(formatted.id(), stored);
    }

    fn find(&self, uuid: Uuid) -> Option<Stored> {
        self.drives.borrow().values().find(|stored| stored.formatted.superblock().uuid == uuid).cloned()
    }
}

fn config_slot(slot: Slot) -> ConfigSlot {
    match slot {
        Slot::Map => ConfigSlot::Map,
        Slot::Raft => ConfigSlot::Raft,
    }
}

impl ConfigStore for DriveStore {
    fn drives(&self) -> Vec<Uuid> {
        self.drives.borrow().values().map(|stored| stored.formatted.superblock().uuid).collect()
    }

    fn store(&self, drive: Uuid, slot: Slot, bytes: Bytes) -> Pending<Result<(), StoreError>> {
        let Some(stored) = self.find(drive) else {
            return Pending::ready(Err(StoreError::Drive(format!("no drive {drive} in this node"))));
        };
        let (completer, pending) = completion();
        let write = async move {
            let _order = stored.order.lock().await;
            let done = stored.formatted.config_store(config_slot(slot), &bytes).await;
            completer.complete(done.map_err(|error| StoreError::Drive(error.to_string())));
        };
        self.handle.spawn("store configuration", write).detach();
        pending
    }

    fn load(&self, drive: Uuid, slot: Slot) -> Pending<Result<Option<Bytes>, StoreError>> {
        let Some(stored) = self.find(drive) else {
            return Pending::ready(Err(StoreError::Drive(format!("no drive {drive} in this node"))));
        };
        let (completer, pending) = completion();
        let read = async move {
            let done = stored.formatted.config_load(config_slot(slot)).await;
            completer.complete(done.map_err(|error| StoreError::Drive(error.to_string())));
        };
        self.handle.spawn("load configuration", read).detach();
        pending
    }
}
