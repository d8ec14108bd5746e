//! Operations on names: look, plan, do; look again if it changed meanwhile.

use crate::part::{Entry, Part, Parts, Veto, meaning, name_key};
use crate::transaction::Plan;
use crate::{Call, Namespace, errno};
use bytes::Bytes;
use std::rc::Rc;
use weft_wire::Position;
use weft_wire::fs::{Attr, FsError, FsReply};
use weft_wire::page::PageId;

/// How often an operation looks again before the client is asked to come back.
const LOOKS_MAX: u32 = 64;

impl Namespace {
    /// Adds what is to be done in the bucket of a position.
    pub(crate) fn add_part(&self, call: &Call, plan: &mut Plan, at: Position, part: Part) -> Result<(), FsError> {
        let bucket = self.map()?.bucket_of(at);
        let parts = plan.parts.entry(bucket);
        parts.or_insert_with(|| Parts { fs: call.fs, now_ns: call.now_ns, parts: Vec::new() }).parts.push(part);
        Ok(())
    }

    /// Adds what is to be done with a page.
    pub(crate) fn add_page_part(&self, call: &Call, plan: &mut Plan, page: PageId, part: Part) -> Result<(), FsError> {
        let at = page.position(&self.map()?.secret, call.fs);
        self.add_part(call, plan, at, part)
    }

    /// Plans and executes, until what was planned is what was done. `look` fills the plan, or answers at once.
    pub(crate) async fn plan_until_done(
        self: &Rc<Self>,
        call: &Call,
        reply: impl Fn(Option<Attr>) -> FsReply,
        look: impl AsyncFn(&mut Plan) -> Result<Option<FsReply>, Veto>,
    ) -> Result<(FsReply, Bytes), Veto> {
        let mut paged = false;
        for _ in 0..LOOKS_MAX {
            let mut plan = Plan { paged, ..Plan::default() };
            match look(&mut plan).await {
                Ok(Some(answer)) => return Ok((answer, Bytes::new())),
                Ok(None) => {}
                Err(Veto::Changed) => continue,
                Err(veto) => return Err(veto),
            }
            let planned = plan.parts.clone();
            match self.execute(call, plan, &reply).await {
                Ok(reply) => return Ok((reply, Bytes::new())),
                Err(Veto::Changed) => {}
                Err(Veto::Paged) => paged = true,
                Err(Veto::Error(error @ FsError::Errno(_))) if error != errno::EIO => {
                    // One bucket says no, and may have been asked because of what another no longer has.
                    let mut again = Plan { paged, ..Plan::default() };
                    if matches!(look(&mut again).await, Ok(None)) && again.parts == planned {
                        return Err(Veto::Error(error));
                    }
                }
                Err(veto) => return Err(veto),
            }
        }
        Err(Veto::Changed)
    }

    /// What a name means by a page of this bucket, once no transaction is about it.
    pub(crate) async fn meaning_here(&self, call: &Call, page: PageId, name: &[u8]) -> Result<Option<Entry>, FsError> {
        self.seen(&name_key(&self.map()?.secret, call.fs, page, name)).await?;
        Ok(meaning(&self.find_name(call, page, name).await?))
    }
}
