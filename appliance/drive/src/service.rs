//! All drives of one core behind one service of its network.

use crate::server::DriveServer;
use bytes::Bytes;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use weft_transport::rpc::{Network, Request, Response, handler};
use weft_wire::drive::{DriveRefusal, DriveReply, DriveRequest};
use weft_wire::{DriveId, Service};

/// Clones share the drives.
#[derive(Clone, Default)]
pub struct DriveService {
    drives: Rc<RefCell<BTreeMap<DriveId, Rc<DriveServer>>>>,
}

impl DriveService {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn add(&self, drive: Rc<DriveServer>) {
        self.drives.borrow_mut().insert(drive.id(), drive);
    }

    pub fn get(&self, drive: DriveId) -> Option<Rc<DriveServer>> {
        self.drives.borrow().get(&drive).cloned()
    }

    /// Answers drive requests that come over this network, also for drives that are added later.
    pub fn serve(&self, network: &dyn Network) {
        let service = self.clone();
        network.serve(
            Service::Drive,
            handler(move |request: Request| {
                let service = service.clone();
                async move {
                    let (head, body) = service.handle(request.head, request.body).await;
                    Response { head, body }
                }
            }),
        );
    }

    /// Passes an encoded request to the drive that it names.
    pub async fn handle(&self, head: Bytes, body: Bytes) -> (Bytes, Bytes) {
        let (reply, body) = match weft_wire::decode::<DriveRequest>(&head) {
            Err(malformed) => (DriveReply::Refused(DriveRefusal::Bounds(malformed.to_string())), Bytes::new()),
            Ok(request) => match self.get(request.drive) {
                Some(drive) => drive.request(request, body).await,
                None => (DriveReply::Refused(DriveRefusal::NotHere), Bytes::new()),
            },
        };
        (weft_wire::encode(&reply), body)
    }
}
