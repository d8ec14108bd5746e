//! Whether a filesystem hangs together: every name means something, every inode has the names that it counts, no
//! transaction is left over.

use crate::rig::*;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use weft_bucket::{KeyBuilder, Tag};
use weft_wire::fs::*;
use weft_wire::{BucketId, FsId, InodeId};

async fn entries(client: &Client, dir: InodeId) -> Vec<DirEntry> {
    let op = FsOp::ReadDir { dir, cookie: 0, entries_max: 1000, attrs: false };
    match client.ask(op).await {
        Ok((FsReply::Entries { entries, end: true }, _)) => entries,
        other => panic!("readdir of {dir}: {other:?}"),
    }
}

async fn keys(rig: &Rig, bucket: BucketId, fs: FsId, tag: Tag) -> Vec<Bytes> {
    let prefix = KeyBuilder::new(fs, tag).build();
    let found = rig.leader(bucket).bucket().scan_prefix(&prefix, usize::MAX).await.expect("scan");
    found.into_iter().map(|(key, _)| key).collect()
}

/// All paths with their inodes. Panics with what is wrong.
pub async fn check(rig: &Rig, client: &Client) -> BTreeMap<String, InodeId> {
    // Transactions and purges come to their end.
    rig.handle().sleep(Duration::from_secs(15)).await;
    for bucket in (0..BUCKETS).map(BucketId) {
        let left = keys(rig, bucket, FsId(0), Tag::Transaction).await;
        assert!(left.is_empty(), "{bucket} has {} records of transactions left", left.len());
    }
    let mut paths = BTreeMap::new();
    let mut names: BTreeMap<InodeId, u32> = BTreeMap::new();
    let mut todo = vec![(String::new(), ROOT, ROOT)];
    while let Some((path, dir, parent)) = todo.pop() {
        assert_eq!(client.lookup(dir, "..").await.expect(".."), parent, "{path}/..");
        let found = entries(client, dir).await;
        let subdirs = found.iter().filter(|entry| entry.kind == FileKind::Directory).count() as u32;
        let attr = client.getattr(dir).await.expect("a directory with a name");
        assert_eq!(attr.links, 2 + subdirs, "links of {path}/");
        for entry in found {
            let path = format!("{path}/{}", String::from_utf8(entry.name).expect("name"));
            assert!(paths.insert(path.clone(), entry.inode).is_none());
            *names.entry(entry.inode).or_default() += 1;
            if entry.kind == FileKind::Directory {
                todo.push((path, entry.inode, dir));
            }
        }
    }
    let mut inodes = BTreeSet::new();
    for bucket in (0..BUCKETS).map(BucketId) {
        for key in keys(rig, bucket, FS, Tag::Inode).await {
            let number = InodeId(u64::from_be_bytes(key[key.len() - 8..].try_into().expect("8 bytes")));
            assert!(inodes.insert(number));
        }
        let orphans = keys(rig, bucket, FS, Tag::Open).await;
        assert!(orphans.is_empty(), "{bucket} has orphans: {orphans:?}");
    }
    for (inode, count) in &names {
        let attr = client.getattr(*inode).await.unwrap_or_else(|error| panic!("{inode} has a name: {error}"));
        match attr.kind {
            FileKind::Directory => assert_eq!(*count, 1, "a directory has one name"),
            _ => assert_eq!(attr.links, *count, "links of {inode}"),
        }
    }
    let lost: Vec<_> = inodes.iter().filter(|inode| **inode != ROOT && !names.contains_key(inode)).collect();
    assert!(lost.is_empty(), "inodes without a name: {lost:?}");
    paths
}
