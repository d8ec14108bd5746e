//! Operations on names: look, plan, do; look again if it changed meanwhile.

use crate::part::{Part, Parts, Veto};
use crate::transaction::Plan;
use crate::{Call, Namespace};
use bytes::Bytes;
use std::rc::Rc;
use weft_wire::InodeId;
use weft_wire::fs::{Attr, FsError, FsReply};

/// How often an operation looks again before the client is asked to come back.
const LOOKS_MAX: u32 = 64;

impl Namespace {
    /// Adds what is to be done in the bucket of an inode.
    pub(crate) fn add_part(&self, call: &Call, plan: &mut Plan, at: InodeId, part: Part) -> Result<(), FsError> {
        let bucket = self.map()?.bucket_of(at.position());
        let parts = plan.parts.entry(bucket);
        parts.or_insert_with(|| Parts { fs: call.fs, now_ns: call.now_ns, parts: Vec::new() }).parts.push(part);
        Ok(())
    }

    /// Plans and executes, until what was planned is what was done. `look` fills the plan, or answers at once.
    pub(crate) async fn plan_until_done(
        self: &Rc<Self>,
        call: &Call,
        reply: impl Fn(Option<Attr>) -> FsReply,
        look: impl AsyncFn(&mut Plan) -> Result<Option<FsReply>, FsError>,
    ) -> Result<(FsReply, Bytes), Veto> {
        for _ in 0..LOOKS_MAX {
            let mut plan = Plan::default();
            if let Some(answer) = look(&mut plan).await? {
                return Ok((answer, Bytes::new()));
            }
            match self.execute(call, plan, &reply).await {
                Ok(reply) => return Ok((reply, Bytes::new())),
                Err(Veto::Changed) => {}
                Err(veto) => return Err(veto),
            }
        }
        Err(Veto::Changed)
    }
}
