//! ACLs: what new inodes inherit, how mode and access ACL follow each other.

use crate::rig::*;
use weft_wire::InodeId;
use weft_wire::acl::{ACCESS_NAME, Acl, DEFAULT_NAME};
use weft_wire::fs::*;

const EACCES: i32 = 13;
const EINVAL: i32 = 22;
const ENODATA: i32 = 61;

/// Owner rwx, user 1000 rw, group rx, others nothing; the mask is given.
pub fn acl(mask: u16) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(1u16, 7u16, u32::MAX), (2, 6, 1000), (4, 5, u32::MAX), (16, mask, u32::MAX), (32, 0, u32::MAX)]
    {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    value
}

pub fn set_op(inode: InodeId, name: &[u8], value: Vec<u8>) -> FsOp {
    FsOp::SetXattr { inode, name: name.to_vec(), value, mode: XattrMode::Either, kill_setgid: false }
}

pub async fn get(client: &Client, inode: InodeId, name: &[u8]) -> Result<Acl, i32> {
    match client.ask(FsOp::GetXattr { inode, name: name.to_vec() }).await {
        Ok((FsReply::Bytes(value), _)) => Ok(Acl::from_xattr(&value).unwrap()),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(errno(&error)),
    }
}

pub fn node(kind: FileKind, mode: u16) -> NewNode {
    NewNode { kind, mode, umask: 0o077, rdev: 0, caller: Caller { uid: 7, gid: 8 }, target: Vec::new() }
}

#[test]
fn without_a_default_acl_the_umask_counts() {
    run(46, |rig| async move {
        let client = rig.client(1);
        assert_eq!(client.make(ROOT, "f", node(FileKind::File, 0o666)).await.unwrap().mode, 0o600);
        assert_eq!(client.make(ROOT, "d", node(FileKind::Directory, 0o1777)).await.unwrap().mode, 0o1700);
        assert_eq!(client.make(ROOT, "l", node(FileKind::Symlink, 0o777)).await.unwrap().mode, 0o777);
    });
}

#[test]
fn what_is_made_inherits_the_default_acl() {
    run(47, |rig| async move {
        let client = rig.client(1);
        let d = client.mkdir(ROOT, "d").await.unwrap();
        assert_eq!(client.fails(set_op(d, DEFAULT_NAME, acl(7))).await, 0);
        let f = client.make(d, "f", node(FileKind::File, 0o666)).await.unwrap();
        // Narrowed by the mode; the umask has no say.
        assert_eq!(f.mode, 0o660);
        assert_eq!(get(&client, f.inode, ACCESS_NAME).await.unwrap().mode(), 0o660);
        assert_eq!(get(&client, f.inode, DEFAULT_NAME).await, Err(ENODATA));
        let link = client.make(d, "l", node(FileKind::Symlink, 0o777)).await.unwrap();
        assert_eq!((link.mode, get(&client, link.inode, ACCESS_NAME).await), (0o777, Err(ENODATA)));
        let op = FsOp::CreateUnnamed { dir: d, node: node(FileKind::File, 0o640) };
        let FsReply::Entry { attr: Some(unnamed), .. } = client.ask(op).await.unwrap().0 else { panic!("no entry") };
        assert_eq!((unnamed.mode, get(&client, unnamed.inode, ACCESS_NAME).await.unwrap().mode()), (0o640, 0o640));
        // Directories pass it on, whichever bucket they come to be in.
        let map = rig.map();
        let mut buckets = std::collections::BTreeSet::new();
        for name in 0..12 {
            let sub = client.make(d, &format!("sub{name}"), node(FileKind::Directory, 0o755)).await.unwrap();
            assert_eq!(sub.mode, 0o750);
            assert_eq!(get(&client, sub.inode, DEFAULT_NAME).await, Ok(Acl::from_xattr(&acl(7)).unwrap()));
            assert_eq!(get(&client, sub.inode, ACCESS_NAME).await.unwrap().mode(), 0o750);
            buckets.insert(map.bucket_of(sub.inode.position()));
        }
        assert!(buckets.len() > 1, "some were made by transactions");
        // Of what is gone, nothing stays.
        assert_eq!(client.unlink(d, "f").await, 0);
        rig.handle().sleep(std::time::Duration::from_secs(1)).await;
        assert!(client.getattr(f.inode).await.is_err());
    });
}

#[test]
fn the_mode_and_the_access_acl_follow_each_other() {
    run(48, |rig| async move {
        let client = rig.client(1);
        let f = client.make(ROOT, "f", node(FileKind::File, 0o2600)).await.unwrap().inode;
        assert_eq!(client.fails(set_op(f, ACCESS_NAME, acl(4))).await, 0);
        assert_eq!(client.getattr(f).await.unwrap().mode, 0o2740);
        client.setattr(f, SetAttr { mode: Some(0o617), ..SetAttr::default() }).await.unwrap();
        assert_eq!(get(&client, f, ACCESS_NAME).await.unwrap().mode(), 0o617);
        let op = FsOp::SetXattr {
            inode: f,
            name: ACCESS_NAME.to_vec(),
            value: acl(4),
            mode: XattrMode::Either,
            kill_setgid: true,
        };
        client.setattr(f, SetAttr { mode: Some(0o2617), ..SetAttr::default() }).await.unwrap();
        assert_eq!(client.fails(op).await, 0);
        assert_eq!(client.getattr(f).await.unwrap().mode, 0o740);
        // An ACL that the mode says all of is none.
        let minimal = [&acl(0)[..12], &acl(0)[20..28], &acl(0)[36..44]].concat();
        assert_eq!(client.fails(set_op(f, ACCESS_NAME, minimal)).await, 0);
        assert_eq!((client.getattr(f).await.unwrap().mode, get(&client, f, ACCESS_NAME).await), (0o750, Err(ENODATA)));
        assert_eq!(client.fails(set_op(f, DEFAULT_NAME, acl(7))).await, EACCES);
        assert_eq!(client.fails(set_op(f, ACCESS_NAME, acl(7)[..20].to_vec())).await, EINVAL);
    });
}
