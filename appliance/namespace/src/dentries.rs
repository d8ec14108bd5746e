//! Names in a directory: found by hash, listed in the order of their cookies.

use crate::errno;
use crate::inode::{Dentry, decode, dentry_cookie, dentry_key};
use bytes::Bytes;
use weft_bucket::{Batch, Bucket};
use weft_wire::fs::FsError;
use weft_wire::hash::{Secret, name_hash};
use weft_wire::limits::NAME_BYTES_MAX;
use weft_wire::page::PageId;
use weft_wire::{FsId, InodeId};

/// Names of one directory with the same 55 bits of hash: a number of 8 bits tells them apart.
const COLLISIONS_MAX: u64 = 256;
/// Lower cookies are the client's: ".", "..", the end.
const COOKIE_MIN: u64 = COLLISIONS_MAX;

/// Where a name is or could be.
#[derive(Clone, Debug)]
pub struct Found {
    pub dentry: Option<Dentry>,
    pub cookie: u64,
}

pub fn check_name(name: &[u8]) -> Result<(), FsError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(errno::ENAMETOOLONG);
    }
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return Err(errno::EINVAL);
    }
    Ok(())
}

/// The first cookie that the name may have: the top 55 bits of its hash, and room for the collision number.
pub fn first_cookie(secret: &Secret, dir: InodeId, name: &[u8]) -> u64 {
    ((name_hash(secret, dir, name) >> 9) << 8).max(COOKIE_MIN)
}

/// Looks the name up. If it isn't there, the cookie is where it would go.
pub async fn find(bucket: &Bucket, secret: &Secret, fs: FsId, page: PageId, name: &[u8]) -> Result<Found, FsError> {
    let first = first_cookie(secret, page.dir, name);
    let mut free = None;
    for cookie in first..first + COLLISIONS_MAX {
        let value = bucket.get(&dentry_key(fs, page, cookie)).await.map_err(errno::of_bucket)?;
        let Some(value) = value else { return Ok(Found { dentry: None, cookie: free.unwrap_or(cookie) }) };
        let dentry: Dentry = decode(&value)?;
        if dentry.name == name {
            return Ok(Found { dentry: Some(dentry), cookie });
        }
        if dentry.name.is_empty() {
            free.get_or_insert(cookie);
        }
    }
    free.map(|cookie| Found { dentry: None, cookie }).ok_or(errno::ENOSPC)
}

pub fn put(batch: &mut Batch, fs: FsId, page: PageId, cookie: u64, dentry: &Dentry) {
    batch.put(dentry_key(fs, page, cookie), weft_wire::encode(dentry));
}

/// Takes a name out. One that collided with it and stands behind must stay reachable.
/// `keeps_place`: such a one is about to be put there.
pub async fn remove(
    bucket: &Bucket,
    batch: &mut Batch,
    fs: FsId,
    page: PageId,
    found: &Found,
    keeps_place: bool,
) -> Result<(), FsError> {
    let behind = dentry_key(fs, page, found.cookie + 1);
    let chained = !(found.cookie + 1).is_multiple_of(COLLISIONS_MAX)
        && bucket.get(&behind).await.map_err(errno::of_bucket)?.is_some();
    match (&found.dentry, chained || keeps_place) {
        (Some(dentry), true) => {
            let gone = Dentry { name: Bytes::new(), ..dentry.clone() };
            put(batch, fs, page, found.cookie, &gone);
        }
        _ => drop(batch.delete(dentry_key(fs, page, found.cookie))),
    }
    Ok(())
}

/// Entries of a page after `cookie`, in cookie order.
pub async fn list(
    bucket: &Bucket,
    fs: FsId,
    page: PageId,
    cookie: u64,
    entries_max: usize,
) -> Result<(Vec<(u64, Dentry)>, bool), FsError> {
    let mut entries = Vec::new();
    let mut from = dentry_key(fs, page, cookie.saturating_add(1).max(page.first_cookie()));
    let to = dentry_key(fs, page, page.last_cookie() + 1);
    loop {
        let wanted = entries_max - entries.len();
        let found = bucket.scan(&from, &to, wanted).await.map_err(errno::of_bucket)?;
        let end = found.len() < wanted;
        for (key, value) in &found {
            let dentry: Dentry = decode(value)?;
            if let (Some(cookie), false) = (dentry_cookie(key), dentry.name.is_empty()) {
                entries.push((cookie, dentry));
            }
        }
        match found.last() {
            Some((key, _)) if !end && entries.len() < entries_max => {
                let mut next = key.to_vec();
                next.push(0);
                from = next.into();
            }
            _ => return Ok((entries, end)),
        }
    }
}
