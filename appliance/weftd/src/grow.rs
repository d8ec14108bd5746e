//! A running node's part in growing: it takes a drive more, and shows others the map in which they are named.

use crate::drives::{self, Found};
use crate::node::Node;
use std::rc::Rc;
use std::time::Duration;
use weft_manager::{Manager, Patience};
use weft_wire::control::Answer;
use weft_wire::manager::{ManagerReply, Proposal};
use weft_wire::map::{Map, NewDrive, State};
use weft_wire::{DriveId, Incarnation, NodeId, Uuid};

/// How long a change that is committed may take to reach this node.
const SHOW_MAX: Duration = Duration::from_secs(10);

impl Node {
    /// Proposes, and waits until this node's own map shows it.
    pub(crate) async fn propose_and_see(&self, proposal: Proposal) -> Answer {
        let manager = self.manager.borrow().clone();
        let Some(manager) = manager else { return Answer::Refused("the node is in no cluster yet".into()) };
        match self.commit(&manager, proposal).await {
            Ok(_) => Answer::Done,
            Err(reason) => Answer::Refused(reason),
        }
    }

    /// The map with the proposal in it.
    async fn commit(&self, manager: &Manager, proposal: Proposal) -> Result<Rc<Map>, String> {
        let version = match manager.propose(proposal, Patience::default()).await {
            ManagerReply::Committed { version, .. } => version,
            ManagerReply::Refused(reason) => return Err(reason),
            _ => return Err("too few managers answer: see `weft status` for which nodes are away".into()),
        };
        let watch = manager.watch();
        let shown = watch.wait_for(|map| map.as_ref().is_some_and(|map| map.version >= version));
        match (self.handle.timeout(SHOW_MAX, shown).await, watch.get()) {
            (Ok(_), Some(map)) => Ok(map),
            _ => Err(format!("the change was made, and this node has not heard of it after {} s", SHOW_MAX.as_secs())),
        }
    }

    /// Makes a drive part of the cluster. Said again after an interruption, it goes on.
    pub(crate) async fn add_drive(&self, path: &str) -> Answer {
        let manager = self.manager.borrow().clone();
        let (Some(manager), Some(incarnation)) = (manager, self.incarnation.get()) else {
            return Answer::Refused("the node is in no cluster yet: `weft node add` takes all its drives".into());
        };
        let Some(node) = manager.node() else { return Answer::Refused("the node is in no cluster yet".into()) };
        match self.try_add_drive(&manager, node, incarnation, path).await {
            Ok(text) => {
                self.event("info", text);
                Answer::Done
            }
            Err(reason) => Answer::Refused(reason),
        }
    }

    async fn try_add_drive(
        &self,
        manager: &Manager,
        node: NodeId,
        incarnation: Incarnation,
        path: &str,
    ) -> Result<String, String> {
        if let Some(id) = self.formatted_at(path) {
            let map = manager.map().ok_or("the node has no map yet")?;
            return match map.drives.get(&id).map(|drive| drive.state) {
                // An earlier order was interrupted.
                Some(State::Joining) => {
                    self.commit(manager, Proposal::DriveReady { node, incarnation, drive: id }).await?;
                    Ok(format!("{path} is {id} from now on"))
                }
                Some(_) => Err(format!("{path} is {id} of the cluster already")),
                None => Err(format!(
                    "{path} was {id}, which was removed from the cluster: wipe the drive and start weftd again to add it anew"
                )),
            };
        }
        let (device, uuid, capacity_bytes) = {
            let drives = self.drives.borrow();
            let known = drives.iter().find(|drive| drive.device.path == path);
            let Some(drive) = known else {
                let others: Vec<&str> = drives.iter().map(|drive| drive.device.path.as_str()).collect();
                return Err(format!(
                    "{path} is no drive of this node: name it in its configuration and start weftd again. It has {}",
                    others.join(", ")
                ));
            };
            match &drive.found {
                Found::Formatted(formatted) => return Err(format!("{path} is {}", formatted.id())),
                Found::Unusable(reason) => return Err(format!("{path} can't be used: {reason}")),
                Found::Blank => {}
            }
            (drive.device.clone(), drive.uuid, drive.device.drive.capacity_bytes())
        };
        let (zone_bytes, zones) = drives::geometry(capacity_bytes)?;
        let drive = NewDrive { uuid, core: device.core, capacity_bytes, zone_bytes, zones };
        let map = self.commit(manager, Proposal::AddDrive { node, incarnation, drive }).await?;
        let formatted =
            drives::format_one(&device, uuid, false, &map, node).await.map_err(|error| error.to_string())?;
        if let Some(store) = &*self.store.borrow() {
            store.add(&formatted);
        }
        self.serve_drive(&formatted, incarnation);
        let id = formatted.id();
        self.note_formatted(uuid, Found::Formatted(formatted));
        self.commit(manager, Proposal::DriveReady { node, incarnation, drive: id }).await?;
        Ok(format!("{path} is {id} from now on"))
    }

    fn formatted_at(&self, path: &str) -> Option<DriveId> {
        let drives = self.drives.borrow();
        drives.iter().find(|drive| drive.device.path == path)?.id()
    }

    fn note_formatted(&self, uuid: Uuid, found: Found) {
        if let Some(drive) = self.drives.borrow_mut().iter_mut().find(|drive| drive.uuid == uuid) {
            drive.found = found;
        }
    }

    /// Drives that were formatted before an earlier life of the node ended, and that the map does not count on yet.
    pub(crate) fn ready_drives(self: &Rc<Self>) {
        let manager = self.manager.borrow().clone();
        let (Some(manager), Some(incarnation)) = (manager, self.incarnation.get()) else { return };
        let (Some(map), Some(node)) = (manager.map(), manager.node()) else { return };
        let own: Vec<_> = self.drives.borrow().iter().filter_map(drives::NodeDrive::id).collect();
        for drive in own {
            if map.drives.get(&drive).is_some_and(|drive| drive.state == State::Joining) {
                let life = Rc::clone(self);
                let propose = async move {
                    life.propose(Proposal::DriveReady { node, incarnation, drive }).await;
                };
                self.handle.spawn("a drive is ready", propose).detach();
            }
        }
    }
}
