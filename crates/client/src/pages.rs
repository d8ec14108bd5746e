//! Requests about names go to the page of the directory that has them. Which that is, is remembered as a hint: a page
//! that has split says so.

use crate::client::{Client, Listing, unexpected};
use crate::errno::Errno;
use crate::request::{Answer, Effect, Failure, Target};
use bytes::Bytes;
use weft_wire::InodeId;
use weft_wire::fs::{FsOp, FsReply};
use weft_wire::page::PageId;

/// How often a request follows pages that have split, or are gone. More changes at once can only mean that the directory
/// goes.
const PAGES_ASKED_MAX: usize = 64;

impl Client {
    /// Asks about a name of a directory.
    pub(crate) async fn ask_name(&self, dir: InodeId, name: &[u8], op: FsOp) -> Result<Answer, Errno> {
        self.send_to_page(dir, name, op, Effect::None).await
    }

    /// Changes a name of a directory, exactly once.
    pub(crate) async fn change_name(&self, dir: InodeId, name: &[u8], op: FsOp) -> Result<Answer, Errno> {
        self.send_to_page(dir, name, op, Effect::Once).await
    }

    async fn send_to_page(&self, dir: InodeId, name: &[u8], op: FsOp, effect: Effect) -> Result<Answer, Errno> {
        for _ in 0..PAGES_ASKED_MAX {
            let map = self.follower.map().ok_or(Errno::EIO)?;
            let page = self.pages.borrow().of_name(&map.secret, dir, name);
            let target = Target { position: page.position(&map.secret, self.fs), depth: page.depth };
            // A refusal by a page changed nothing, so the next asks under a number of its own.
            let answer = self.send(target, op.clone(), Bytes::new(), effect).await;
            match self.follow_page(page, answer)? {
                Some(answer) => return Ok(answer),
                None => continue,
            }
        }
        Err(Errno::ESTALE)
    }

    /// `None`: the page is another one; what is remembered has been corrected.
    fn follow_page(&self, page: PageId, answer: Result<Answer, Failure>) -> Result<Option<Answer>, Errno> {
        match answer {
            Ok(answer) => return Ok(Some(answer)),
            Err(Failure::PageSplit) => self.pages.borrow_mut().split(page),
            Err(Failure::NoPage) => self.pages.borrow_mut().forget(page.dir),
            Err(failure) => return Err(failure.into()),
        }
        Ok(None)
    }

    /// Entries after `cookie` (0: all), without "." and "..".
    pub async fn readdir(&self, dir: InodeId, mut cookie: u64, entries_max: u32) -> Result<Listing, Errno> {
        let mut asked = 0;
        while asked < PAGES_ASKED_MAX {
            let map = self.follower.map().ok_or(Errno::EIO)?;
            let page = self.pages.borrow().of_cookie(dir, cookie.saturating_add(1));
            let target = Target { position: page.position(&map.secret, self.fs), depth: page.depth };
            let op = FsOp::ReadDir { dir, cookie, entries_max, attrs: false };
            let answer = self.send(target, op, Bytes::new(), Effect::None).await;
            match self.follow_page(page, answer)? {
                Some((FsReply::Entries { entries, end }, _)) if !entries.is_empty() || (end && page.is_last()) => {
                    return Ok(Listing { end: end && page.is_last(), entries });
                }
                Some((FsReply::Entries { .. }, _)) => {
                    // Nothing more in this page.
                    cookie = page.last_cookie();
                    asked = 0;
                }
                Some(other) => return Err(unexpected(&other)),
                None => asked += 1,
            }
        }
        Err(Errno::ESTALE)
    }
}
