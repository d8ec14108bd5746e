//! The checker of what is left when nothing should be: everything is removed, all clients go, and some time later the
//! buckets have neither keys nor blocks of files, nor anything of clients and transactions.

use crate::crew::Crew;
use crate::stripes;
use crate::workload::list;
use crate::world::World;
use std::time::Duration;
use weft_bucket::key::PREFIX_BYTES;
use weft_bucket::{KeyBuilder, Tag};
use weft_client::{Client, Errno};
use weft_wire::fs::FileKind;
use weft_wire::{FsId, InodeId};

/// In virtual time, for all that is there.
const REMOVE_MAX: Duration = Duration::from_secs(120);
/// Cuts are remembered for two minutes, sessions for half a one: when it is first looked, how often then, and how many times.
const FORGET: Duration = Duration::from_secs(150);
const LOOK_EVERY: Duration = Duration::from_secs(15);
const LOOKS: usize = 7;
/// Keys of a kind that are shown.
const SHOWN_MAX: usize = 4;

/// Tags of a filesystem's keys. The root's inode and pages are all that may be there.
const OF_FILES: [Tag; 9] =
    [Tag::Inode, Tag::Dentry, Tag::Page, Tag::Xattr, Tag::Open, Tag::Cut, Tag::Stray, Tag::Time, Tag::Extent];
/// Tags of what belongs to no filesystem.
const OF_CLIENTS: [Tag; 3] = [Tag::Result, Tag::Open, Tag::Transaction];

/// Removes all, lets everyone go, and looks.
pub fn check(world: &mut World, crew: &Crew) -> Result<(), String> {
    let hands = crew.hands();
    let Some((process, hand)) = hands.last() else { return Ok(()) };
    let (client, root, fs) = (hand.client.clone(), crew.shared.root, hand.client.fs());
    let removing = async move { remove_all(&client, root).await };
    match world.block_on_client(*process, REMOVE_MAX, removing) {
        Ok(Ok(())) => {}
        Ok(Err(errno)) => return Err(format!("not all can be removed: errno {}", errno.0)),
        Err(_) => return Err("removing all takes too long".into()),
    }
    for (process, hand) in hands {
        let client = hand.client;
        let closed = world.block_on_client(process, REMOVE_MAX, async move { client.close().await });
        closed.map_err(|_| "a client can't go".to_string())?;
    }
    world.run_for(FORGET);
    let mut left = look(world, crew, root, fs)?;
    for _ in 1..LOOKS {
        if left.is_empty() {
            return Ok(());
        }
        world.run_for(LOOK_EVERY);
        left = look(world, crew, root, fs)?;
    }
    if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
}

/// What is there and should not be.
fn look(world: &mut World, crew: &Crew, root: InodeId, fs: FsId) -> Result<Vec<String>, String> {
    let mut left = Vec::new();
    for (node, bucket) in stripes::buckets(world) {
        let tags = OF_FILES.map(|tag| (fs, tag)).into_iter().chain(OF_CLIENTS.map(|tag| (FsId(0), tag)));
        for (fs, tag) in tags {
            // Who died is still listed in the map, and may ask again for all that it is known.
            if tag == Tag::Result && crew.any_died() {
                continue;
            }
            let id = bucket.id();
            let bucket = bucket.clone();
            let prefix = KeyBuilder::new(fs, tag).build();
            let scan = async move { bucket.scan_prefix(&prefix, usize::MAX).await };
            let found = match world.block_on_node(node, REMOVE_MAX, scan) {
                Ok(Ok(found)) => found,
                Ok(Err(error)) => return Err(format!("{id} can't be read: {error}")),
                Err(_) => return Err(format!("reading {id} does not end")),
            };
            let roots = root.0.to_be_bytes();
            let of_root = |key: &[u8]| match tag {
                Tag::Inode => key.ends_with(&roots),
                // They stay when it is empty.
                Tag::Page => key.get(PREFIX_BYTES..).is_some_and(|key| key.starts_with(&roots)),
                _ => false,
            };
            let keys = found.into_iter().filter(|(key, _)| !of_root(key));
            let keys: Vec<_> = keys.collect();
            if !keys.is_empty() {
                let shown: Vec<_> = keys.iter().take(SHOWN_MAX).collect();
                left.push(format!("{id}: {} keys of {tag:?}: {shown:02x?}", keys.len()));
            }
        }
    }
    Ok(left)
}

async fn remove_all(client: &Client, root: InodeId) -> Result<(), Errno> {
    // Each with its parents before it: emptied from the end.
    let mut directories = vec![(root, root, Vec::new())];
    let mut at = 0;
    while let Some((dir, ..)) = directories.get(at).cloned() {
        at += 1;
        for entry in list(client, dir).await? {
            match entry.kind {
                FileKind::Directory => directories.push((entry.inode, dir, entry.name)),
                _ => client.unlink(dir, &entry.name).await?,
            }
        }
    }
    for (_, parent, name) in directories.into_iter().skip(1).rev() {
        client.rmdir(parent, &name).await?;
    }
    Ok(())
}
