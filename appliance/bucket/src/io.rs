//! Calls to drives: zones and shards.

use bytes::Bytes;
use std::rc::Rc;
use std::time::Duration;
use weft_transport::rpc::{CallError, Network};
use weft_wire::drive::{DriveOp, DriveRefusal, DriveReply, DriveRequest};
use weft_wire::{BucketId, CoreId, DriveId, Service, Uuid, decode, encode};

/// Longest wait for one drive operation. A drive that is slower is treated as unreachable for this operation.
pub const DRIVE_CALL_MAX: Duration = Duration::from_secs(10);

/// Finds the core that owns a drive, by the newest map.
pub type FindDrive = Rc<dyn Fn(DriveId) -> Option<CoreId>>;

#[derive(Clone)]
pub struct DriveCalls {
    pub network: Rc<dyn Network>,
    pub cluster: Uuid,
    pub bucket: BucketId,
    pub find: FindDrive,
}

/// Why a drive operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriveCallError {
    #[error("{0} is not in the map")]
    Unknown(DriveId),
    #[error("{0} is away")]
    Away(DriveId),
    #[error("{0} can't be reached: {1}")]
    Unreachable(DriveId, CallError),
    #[error("{0}: {1}")]
    Refused(DriveId, DriveRefusal),
    #[error("{0} answered something else than was asked for")]
    Confused(DriveId),
}

impl DriveCalls {
    pub async fn call(&self, drive: DriveId, op: DriveOp, body: Bytes) -> Result<(DriveReply, Bytes), DriveCallError> {
        self.call_within(drive, op, body, DRIVE_CALL_MAX).await
    }

    /// [`Self::call`] that gives up earlier.
    pub async fn call_within(
        &self,
        drive: DriveId,
        op: DriveOp,
        body: Bytes,
        timeout: Duration,
    ) -> Result<(DriveReply, Bytes), DriveCallError> {
        let core = (self.find)(drive).ok_or(DriveCallError::Unknown(drive))?;
        let request = DriveRequest { cluster: self.cluster, drive, bucket: self.bucket, op };
        let answer = self.network.call(core, Service::Drive, encode(&request), body, timeout).await;
        let response = match answer {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(DriveCallError::Unreachable(drive, error)),
            Err(_) => return Err(DriveCallError::Unreachable(drive, CallError::SessionLost)),
        };
        match decode(&response.head) {
            Ok(DriveReply::Refused(refusal)) => Err(DriveCallError::Refused(drive, refusal)),
            Ok(reply) => Ok((reply, response.body)),
            Err(_) => Err(DriveCallError::Confused(drive)),
        }
    }
}
