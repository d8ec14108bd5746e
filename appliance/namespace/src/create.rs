//! New inodes and names.

use crate::acl::Born;
use crate::inode::{Dentry, Inode, inode_key, object, orphan_key};
use crate::page::{Records, lock_key};
use crate::part::{Entry, Inherited, Part, Veto, name_key};
use crate::{Call, Namespace, Outcome, acl, dentries, errno};
use bytes::Bytes;
use std::rc::Rc;
use weft_bucket::Batch;
use weft_wire::fs::{Attr, FileKind, FsError, FsReply, LateTimes, NewNode};
use weft_wire::hash::directory_position;
use weft_wire::limits::SYMLINK_BYTES_MAX;
use weft_wire::page::PageId;
use weft_wire::{InodeId, Position};

impl Namespace {
    pub(crate) async fn lookup(&self, call: &Call, dir: InodeId, name: &[u8]) -> Outcome {
        if name == b".." {
            self.seen(&inode_key(call.fs, dir)).await?;
            let parent = self.inode(call, dir).await?.parent;
            let attr = self.attr_here(call, parent).await?;
            let reply = FsReply::Entry { inode: parent, kind: FileKind::Directory, attr, created: false };
            return Ok((reply, Bytes::new()));
        }
        dentries::check_name(name)?;
        let secret = self.map()?.secret;
        let page = self.page_of(call, dir, name)?;
        self.seen(&name_key(&secret, call.fs, page, name)).await?;
        match self.find_name(call, page, name).await?.dentry {
            Some(dentry) => self.entry(call, &dentry).await,
            None => Err(errno::ENOENT),
        }
    }

    async fn entry(&self, call: &Call, dentry: &Dentry) -> Outcome {
        let attr = self.attr_here(call, dentry.inode).await?;
        let reply = FsReply::Entry { inode: dentry.inode, kind: dentry.kind, attr, created: false };
        Ok((reply, Bytes::new()))
    }

    /// The attributes of an inode if it is in this bucket, and didn't go while its name was looked at.
    async fn attr_here(&self, call: &Call, number: InodeId) -> Result<Option<Attr>, FsError> {
        if !self.is_here(number) {
            return Ok(None);
        }
        self.seen(&inode_key(call.fs, number)).await?;
        match self.inode(call, number).await {
            // Attributes are withheld while a cut is under way: the client asks for them.
            Ok(inode) => Ok((!inode.cutting).then(|| inode.attr(number))),
            Err(errno::ESTALE) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The inode if it is a directory that still has a name.
    pub(crate) async fn directory(&self, call: &Call, dir: InodeId) -> Result<Inode, FsError> {
        let inode = self.inode(call, dir).await?;
        if inode.kind != FileKind::Directory {
            return Err(errno::ENOTDIR);
        }
        if inode.links == 0 {
            return Err(errno::ENOENT);
        }
        Ok(inode)
    }

    fn new_inode(call: &Call, dir: InodeId, inherited: &Inherited, node: &NewNode) -> Result<Born, FsError> {
        if node.target.len() > SYMLINK_BYTES_MAX {
            return Err(errno::ENAMETOOLONG);
        }
        let directory = node.kind == FileKind::Directory;
        let (mode, xattrs) = acl::at_birth(inherited, node)?;
        let inode = Inode {
            kind: node.kind,
            mode: if directory && inherited.setgid { mode | 0o2000 } else { mode },
            links: if directory { 2 } else { 1 },
            uid: node.caller.uid,
            gid: if inherited.setgid { inherited.gid } else { node.caller.gid },
            rdev: node.rdev,
            size: node.target.len() as u64,
            atime_ns: call.now_ns,
            mtime_ns: call.now_ns,
            ctime_ns: call.now_ns,
            btime_ns: call.now_ns,
            cut_generation: 0,
            published_from: 0,
            parent: if directory { dir } else { InodeId(0) },
            entries: 0,
            split_since_ns: None,
            inline: Bytes::from(node.target.clone()),
            blocks: 0,
            cutting: false,
            has_xattrs: !xattrs.is_empty(),
            linkable: false,
            late: LateTimes::Never,
        };
        Ok(Born { inode, xattrs })
    }

    pub(crate) async fn create(
        self: &Rc<Self>,
        call: &Call,
        dir: InodeId,
        name: Vec<u8>,
        node: NewNode,
        exclusive: bool,
        open: bool,
    ) -> Outcome {
        dentries::check_name(&name)?;
        let map = self.map()?;
        let secret = map.secret;
        let name = Bytes::from(name);
        let page = self.page_of(call, dir, &name)?;
        let mut near = page.position(&secret, call.fs);
        if node.kind == FileKind::Directory {
            let position = directory_position(&secret, call.fs, dir, &name, 0);
            if map.bucket_of(position) == self.bucket.id() {
                near = position;
            } else {
                match self.make_elsewhere(call, page, &name, &node, position).await {
                    Err(Veto::Away(reason)) => {
                        tracing::debug!(reason, "a directory is made in its parent's bucket");
                    }
                    outcome => return Ok(outcome?),
                }
            }
        }
        let _guard = self.bucket.lock([lock_key(call.fs, page)]).await;
        let mut records = Records::default();
        let mut parent = records.holder(self, call.fs, page).await?;
        let found = dentries::find(&self.bucket, &secret, call.fs, page, &name).await?;
        if let Some(dentry) = &found.dentry {
            if exclusive {
                return Err(errno::EEXIST);
            }
            let outcome = self.entry(call, dentry).await;
            if open && matches!(&outcome, Ok((FsReply::Entry { attr: Some(_), .. }, _))) {
                self.list_holder(call.client, false).await?;
                self.opens.borrow_mut().add(call.fs, dentry.inode, call.client);
            }
            return outcome;
        }
        self.room_for(node.target.len())?;
        let inherited = self.inherited_by(call.fs, page, &parent).await?;
        let born = Self::new_inode(call, dir, &inherited, &node)?;
        let number = InodeId::new(near, self.bucket.serial());
        parent.count(None, Some(Entry { inode: number, kind: node.kind }), call.now_ns)?;
        self.split_if_large(call.fs, page, parent.entries());
        let mut batch = Batch::new();
        records.put(&mut batch, call.fs);
        born.put(&mut batch, call.fs, number);
        let dentry = Dentry { name, inode: number, kind: node.kind };
        dentries::put(&mut batch, call.fs, page, found.cookie, &dentry);
        let attr = Some(born.inode.attr(number));
        let reply = FsReply::Entry { inode: number, kind: node.kind, attr, created: true };
        if !open {
            return self.commit(call, batch, reply).await;
        }
        self.commit_open(call, number, batch, reply).await
    }

    /// Commits the birth of an inode that the client has open.
    async fn commit_open(&self, call: &Call, number: InodeId, mut batch: Batch, reply: FsReply) -> Outcome {
        self.opens.borrow_mut().add(call.fs, number, call.client);
        self.list_holder_with(call.client, false, &mut batch);
        let outcome = self.commit(call, batch, reply).await;
        match outcome.is_ok() {
            true => self.listed(call.client, false),
            false => _ = self.opens.borrow_mut().remove(call.fs, number, call.client),
        }
        outcome
    }

    /// O_TMPFILE: an inode that is an orphan from birth.
    pub(crate) async fn create_unnamed(&self, call: &Call, dir: InodeId, node: NewNode) -> Outcome {
        if node.kind != FileKind::File {
            return Err(errno::EINVAL);
        }
        self.room_for(0)?;
        let parent = self.directory(call, dir).await?;
        let mut born = Self::new_inode(call, dir, &self.inherited(call.fs, dir, &parent).await?, &node)?;
        born.inode.links = 0;
        born.inode.linkable = true;
        let number = InodeId::new(dir.position(), self.bucket.serial());
        let mut batch = Batch::new();
        born.put(&mut batch, call.fs, number);
        batch.put(orphan_key(call.fs, number), Bytes::new());
        let attr = Some(born.inode.attr(number));
        let reply = FsReply::Entry { inode: number, kind: node.kind, attr, created: true };
        self.commit_open(call, number, batch, reply).await
    }

    /// A directory whose inode goes to another bucket, so that trees spread.
    async fn make_elsewhere(
        self: &Rc<Self>,
        call: &Call,
        page: PageId,
        name: &Bytes,
        node: &NewNode,
        position: Position,
    ) -> Result<(FsReply, Bytes), Veto> {
        let reply = |made: Option<Attr>| FsReply::Entry {
            inode: made.map_or(InodeId(0), |attr| attr.inode),
            kind: node.kind,
            attr: made,
            created: true,
        };
        self.plan_until_done(call, reply, async |plan| {
            if self.meaning_here(call, page, name).await?.is_some() {
                return Err(errno::EEXIST.into());
            }
            self.room_for(0)?;
            let mut records = Records::default();
            let parent = records.holder(self, call.fs, page).await?;
            let inherited = self.inherited_by(call.fs, page, &parent).await?;
            let born = Self::new_inode(call, page.dir, &inherited, node)?;
            self.add_part(call, plan, position, Part::Make { position, born })?;
            let inherited = Some(inherited);
            let put = Part::PutName { page, name: name.clone(), expected: None, entry: None, inherited };
            self.add_page_part(call, plan, page, put)?;
            Ok(None)
        })
        .await
    }

    pub(crate) async fn link(self: &Rc<Self>, call: &Call, number: InodeId, dir: InodeId, name: Vec<u8>) -> Outcome {
        dentries::check_name(&name)?;
        let page = self.page_of(call, dir, &name)?;
        let name = Bytes::from(name);
        let reply = |linked: Option<Attr>| FsReply::Entry {
            inode: number,
            kind: linked.map_or(FileKind::File, |attr| attr.kind),
            attr: linked,
            created: false,
        };
        let done = self.plan_until_done(call, reply, async |plan| {
            if self.meaning_here(call, page, &name).await?.is_some() {
                return Err(errno::EEXIST.into());
            }
            self.room_for(0)?;
            self.add_part(call, plan, number.position(), Part::Link { inode: number })?;
            let put = Part::PutName { page, name: name.clone(), expected: None, entry: None, inherited: None };
            self.add_page_part(call, plan, page, put)?;
            Ok(None)
        });
        Ok(done.await?)
    }

    pub(crate) async fn read_dir(
        &self,
        call: &Call,
        dir: InodeId,
        cookie: u64,
        entries_max: u32,
        attrs: bool,
    ) -> Outcome {
        const ENTRIES_MAX: u32 = 1024;
        let page = PageId::of_cookie(dir, cookie.saturating_add(1), call.depth);
        self.seen(&lock_key(call.fs, page)).await?;
        match page.is_root() {
            // A listing of a directory that was removed is empty.
            true if self.inode(call, dir).await?.kind != FileKind::Directory => return Err(errno::ENOTDIR),
            true => {}
            false => self.check_page(call.fs, page).await?,
        }
        let entries_max = entries_max.clamp(1, ENTRIES_MAX) as usize;
        let (found, end) = dentries::list(&self.bucket, call.fs, page, cookie, entries_max).await?;
        self.still_here(call.fs, page).await?;
        let mut entries = Vec::with_capacity(found.len());
        for (cookie, dentry) in found {
            let attr = match attrs {
                true => self.attr_here(call, dentry.inode).await?,
                false => None,
            };
            let name = dentry.name.to_vec();
            entries.push(weft_wire::fs::DirEntry { name, inode: dentry.inode, kind: dentry.kind, cookie, attr });
        }
        Ok((FsReply::Entries { entries, end }, Bytes::new()))
    }

    pub(crate) async fn make_root(&self, call: &Call, root: InodeId) -> Outcome {
        let _guard = self.lock_inodes(call, [root]).await;
        match self.inode(call, root).await {
            // Made before, by a leader that could not say so any more.
            Ok(_) => return Ok((FsReply::Done, Bytes::new())),
            Err(errno::ESTALE) => {}
            Err(error) => return Err(error),
        }
        let inode = Inode {
            kind: FileKind::Directory,
            mode: 0o755,
            links: 2,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            atime_ns: call.now_ns,
            mtime_ns: call.now_ns,
            ctime_ns: call.now_ns,
            btime_ns: call.now_ns,
            cut_generation: 0,
            published_from: 0,
            parent: root,
            entries: 0,
            split_since_ns: None,
            inline: Bytes::new(),
            blocks: 0,
            cutting: false,
            has_xattrs: false,
            linkable: false,
            late: LateTimes::Never,
        };
        let mut batch = Batch::new();
        batch.put(inode_key(call.fs, root), weft_wire::encode(&inode));
        self.commit(call, batch, FsReply::Done).await
    }

    /// Puts the end of an inode into the batch: gone at once, or an orphan while someone has it open or it has data
    /// elsewhere. Answers whether the rest of it is to be removed in the background: if someone has it open, that does nothing, unless
    /// it is closed before the batch is in the index, and so before whoever closes it can see that it has no name.
    pub(crate) fn drop_link(
        self: &Rc<Self>,
        call: &Call,
        batch: &mut Batch,
        number: InodeId,
        mut inode: Inode,
    ) -> bool {
        inode.links = if inode.kind == FileKind::Directory { 0 } else { inode.links.saturating_sub(1) };
        inode.ctime_ns = call.now_ns;
        if inode.links > 0 {
            batch.put(inode_key(call.fs, number), weft_wire::encode(&inode));
            return false;
        }
        let open = self.may_be_open(call.fs, number);
        if !open && inode.size_blocks() <= weft_wire::limits::SLAB_BLOCKS && !inode.has_xattrs {
            // Everything it has is here.
            batch.delete(inode_key(call.fs, number));
            batch.delete(crate::inode::cut_key(call.fs, number));
            batch.punch(object(call.fs, number), 0..weft_wire::limits::SLAB_BLOCKS);
            return false;
        }
        batch.put(inode_key(call.fs, number), weft_wire::encode(&inode));
        batch.put(orphan_key(call.fs, number), Bytes::new());
        true
    }
}
