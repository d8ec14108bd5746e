//! What the clients do: every worker makes one call after the other, chosen by its seed.

use crate::calm;
use crate::history::{CELLS_MAX, Call, History, Name, OpId, Outcome, Owner, Value, value, value_origin};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use weft_client::{Client, Errno, OpenMode};
use weft_reactor::{Handle, Random};
use weft_wire::InodeId;
use weft_wire::fs::{
    DirEntry, FallocateMode, FileKind, Lock, LockKind, LockType, NewNode, RenameMode, SetAttr, XattrMode,
};
use weft_wire::limits::SLAB_BYTES;

pub const FILE_MODE: u16 = 0o644;
const DIRECTORY_MODE: u16 = 0o755;
/// Inodes that workers remember, to use them without looking for their names.
const KNOWN_MAX: usize = 24;
/// Cells of one call.
const CALL_CELLS_MAX: u64 = 24;
/// Where calls with an offset end in a file that stays within its first slab, and what is appended to it in all.
const SMALL_CELLS_MAX: u64 = 64;
const APPENDED_CELLS_MAX: u64 = 128;
const LISTING_MAX: u32 = 1024;
/// Files that a worker has locked at a time.
const LOCKED_MAX: usize = 2;

#[derive(Clone, Copy, Debug)]
pub struct WorkloadOptions {
    /// Bytes that are written, and remembered by the oracle, as one. A divisor of a slab, or no large files are made.
    pub cell_bytes: u64,
    /// Names of a directory.
    pub names: Name,
    /// Longest pause between two calls of a worker.
    pub pause_max: Duration,
    /// Kinds of calls that this run does without, a bit each.
    pub without: u32,
}

/// Kinds of calls, and how often each is made where all are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Create,
    MakeDirectory,
    Symlink,
    Lookup,
    Unlink,
    RemoveDirectory,
    Rename,
    Link,
    ReadDir,
    Write,
    Append,
    Read,
    Truncate,
    Chmod,
    Stat,
    Punch,
    Zero,
    Reserve,
    ReadLink,
    SetXattr,
    GetXattr,
    RemoveXattr,
    Lock,
    Unlock,
}

const KINDS: [(Kind, u64); 24] = [
    (Kind::Create, 13),
    (Kind::MakeDirectory, 4),
    (Kind::Symlink, 2),
    (Kind::Lookup, 8),
    (Kind::Unlink, 7),
    (Kind::RemoveDirectory, 3),
    (Kind::Rename, 7),
    (Kind::Link, 3),
    (Kind::ReadDir, 5),
    (Kind::Write, 18),
    (Kind::Append, 5),
    (Kind::Read, 14),
    (Kind::Truncate, 5),
    (Kind::Chmod, 3),
    (Kind::Stat, 6),
    (Kind::Punch, 3),
    (Kind::Zero, 2),
    (Kind::Reserve, 2),
    (Kind::ReadLink, 2),
    (Kind::SetXattr, 3),
    (Kind::GetXattr, 3),
    (Kind::RemoveXattr, 1),
    (Kind::Lock, 4),
    (Kind::Unlock, 3),
];
/// Without these there is nothing to see.
const ALWAYS: [Kind; 4] = [Kind::Create, Kind::Write, Kind::Read, Kind::Lookup];

/// A random choice of kinds to do without: what is rare among all kinds is frequent among a few.
pub fn swarm(random: &mut Random) -> u32 {
    (0..KINDS.len()).filter(|_| random.chance(0.25)).fold(0, |bits, index| bits | 1 << index)
}

fn without_all_but(kinds: &[Kind]) -> u32 {
    let all = KINDS.iter().enumerate().filter(|(_, (kind, _))| !kinds.contains(kind));
    all.fold(0, |bits, (index, _)| bits | 1 << index)
}

/// What changes names in several directories, beside what there always is.
pub fn without_all_but_names() -> u32 {
    without_all_but(&[Kind::MakeDirectory, Kind::Rename, Kind::Link, Kind::Unlink])
}

/// What locks and what is locked, beside what there always is.
pub fn without_all_but_locks() -> u32 {
    without_all_but(&[Kind::Lock, Kind::Unlock, Kind::Unlink, Kind::Rename])
}

/// What moves data, beside what there always is.
pub fn without_all_but_data() -> u32 {
    without_all_but(&[Kind::Truncate, Kind::Unlink, Kind::Append])
}

impl WorkloadOptions {
    pub fn slab_cells(&self) -> u64 {
        SLAB_BYTES / self.cell_bytes
    }

    fn large_files(&self) -> bool {
        SLAB_BYTES.is_multiple_of(self.cell_bytes)
    }
}

/// What all workers know.
pub struct Shared {
    pub options: WorkloadOptions,
    pub history: History,
    pub root: InodeId,
    directories: RefCell<Vec<InodeId>>,
    files: RefCell<Vec<InodeId>>,
    symlinks: RefCell<Vec<InodeId>>,
    appended: RefCell<BTreeMap<InodeId, u64>>,
    /// Workers finish the call that they are at, and begin no other.
    pub stopping: Cell<bool>,
}

impl Shared {
    pub fn new(options: WorkloadOptions, history: History, root: InodeId) -> Rc<Self> {
        Rc::new(Self {
            options,
            history,
            root,
            directories: RefCell::default(),
            files: RefCell::default(),
            symlinks: RefCell::default(),
            appended: RefCell::default(),
            stopping: Cell::new(false),
        })
    }

    fn learn(&self, inode: InodeId, kind: FileKind) {
        let mut known = match kind {
            FileKind::Directory => self.directories.borrow_mut(),
            FileKind::Symlink => self.symlinks.borrow_mut(),
            _ => self.files.borrow_mut(),
        };
        if !known.contains(&inode) {
            if known.len() == KNOWN_MAX {
                known.remove(0);
            }
            known.push(inode);
        }
    }

    fn forget(&self, inode: InodeId) {
        self.directories.borrow_mut().retain(|known| *known != inode);
        self.files.borrow_mut().retain(|known| *known != inode);
        self.symlinks.borrow_mut().retain(|known| *known != inode);
    }
}

pub fn name_bytes(name: Name) -> Vec<u8> {
    format!("name{name}").into_bytes()
}

fn name_number(name: &[u8]) -> Option<Name> {
    std::str::from_utf8(name).ok()?.strip_prefix("name")?.parse().ok()
}

/// The bytes of an operation's cells: each word says whose it is and where in the cell it belongs.
fn fill(op: OpId, cells: u64, cell_bytes: u64) -> Bytes {
    let mut bytes = Vec::with_capacity((cells * cell_bytes) as usize);
    for cell in 0..cells {
        for word in 0..cell_bytes / 8 {
            bytes.extend((value(op, cell) << 16 | word).to_le_bytes());
        }
    }
    bytes.into()
}

/// What a cell holds; `None`: neither zeros nor what any operation writes.
fn decode_cell(bytes: &[u8]) -> Option<Value> {
    let mut words =
        bytes.chunks_exact(8).map(|word| word.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)));
    let first = words.next()?;
    let found = first >> 16;
    if found == 0 {
        return (first == 0 && words.all(|word| word == 0)).then_some(0);
    }
    (first & 0xffff == 0 && words.zip(1..).all(|(word, at)| word == (found << 16 | at))).then_some(found)
}

/// One client's hand: makes calls and writes down what comes of them.
#[derive(Clone)]
pub struct Hand {
    pub index: usize,
    pub client: Rc<Client>,
    pub shared: Rc<Shared>,
    /// Workers that have not come to their end.
    pub working: Rc<Cell<usize>>,
    /// It was silent for so long that it can't tell what it did: another one is to take its place.
    pub lost: Rc<Cell<bool>>,
}

impl Hand {
    /// Makes the call and remembers its outcome.
    pub async fn call(&self, call: Call) -> Outcome {
        let op = self.shared.history.invoke(self.index, call.clone());
        let carried_out = match opened(&call) {
            // Only what is open keeps its contents when its last name goes.
            Some(inode) => match self.client.open(inode, OpenMode::Keep).await {
                Ok(_) => {
                    let outcome = self.carry_out(op, &call).await;
                    self.client.release(inode);
                    outcome
                }
                Err(errno) => Err(errno),
            },
            None => self.carry_out(op, &call).await,
        };
        if self.client.is_fenced() {
            // It was silent for too long. What it has asked for may happen or not, as if it had died, which it does soon.
            std::future::pending::<()>().await;
        }
        let outcome = match carried_out {
            Ok(outcome) => outcome,
            Err(errno) => Outcome::Errno(errno.0),
        };
        self.take_note(&call, &outcome);
        self.shared.history.respond(op, outcome.clone());
        outcome
    }

    fn take_note(&self, call: &Call, outcome: &Outcome) {
        match (call, outcome) {
            (_, Outcome::Entry { inode, kind }) => self.shared.learn(*inode, *kind),
            (
                Call::Write { inode, .. }
                | Call::Append { inode, .. }
                | Call::Read { inode, .. }
                | Call::ReadLink { inode }
                | Call::Stat { inode },
                Outcome::Errno(_),
            ) => self.shared.forget(*inode),
            (Call::Create { dir, .. } | Call::Lookup { dir, .. } | Call::ReadDir { dir }, Outcome::Errno(_)) => {
                if matches!(outcome, Outcome::Errno(crate::names::ESTALE)) {
                    self.shared.forget(*dir);
                }
            }
            _ => {}
        }
    }

    async fn carry_out(&self, op: OpId, call: &Call) -> Result<Outcome, Errno> {
        let client = &self.client;
        let cell_bytes = self.shared.options.cell_bytes;
        match call {
            Call::Create { dir, name, directory } => {
                let node = match directory {
                    true => calm::roots(FileKind::Directory, DIRECTORY_MODE),
                    false => calm::roots(FileKind::File, FILE_MODE),
                };
                let attr = client.make(*dir, &name_bytes(*name), node).await?;
                Ok(Outcome::Entry { inode: attr.inode, kind: attr.kind })
            }
            Call::Symlink { dir, name } => {
                let target = op.to_string().into_bytes();
                let node = NewNode { target, ..calm::roots(FileKind::Symlink, 0o777) };
                let attr = client.make(*dir, &name_bytes(*name), node).await?;
                Ok(Outcome::Entry { inode: attr.inode, kind: attr.kind })
            }
            Call::Lookup { dir, name } => {
                let found = client.lookup(*dir, &name_bytes(*name)).await?;
                Ok(Outcome::Entry { inode: found.attr.inode, kind: found.attr.kind })
            }
            Call::Remove { dir, name, directory: false } => {
                client.unlink(*dir, &name_bytes(*name)).await.map(|()| Outcome::Done)
            }
            Call::Remove { dir, name, .. } => client.rmdir(*dir, &name_bytes(*name)).await.map(|()| Outcome::Done),
            Call::Rename { dir, name, new_dir, new_name, mode } => client
                .rename(*dir, &name_bytes(*name), *new_dir, &name_bytes(*new_name), *mode)
                .await
                .map(|()| Outcome::Done),
            Call::Link { inode, dir, name } => {
                client.link(*inode, *dir, &name_bytes(*name)).await.map(|_| Outcome::Done)
            }
            Call::ReadDir { dir } => {
                let listed = list(client, *dir).await?;
                let entries: Option<Vec<_>> =
                    listed.iter().map(|entry| Some((name_number(&entry.name)?, entry.inode))).collect();
                Ok(match entries {
                    Some(entries) if listed.is_sorted_by(|a, b| a.cookie < b.cookie) => Outcome::Entries(entries),
                    _ => Outcome::Nonsense(format!("a listing of {listed:?}")),
                })
            }
            Call::Write { inode, at, cells } => {
                let data = fill(op, *cells, cell_bytes);
                let len = data.len();
                let written = client.write(*inode, at * cell_bytes, data, false).await?;
                if written < len && client.stat(*inode).await == Err(Errno::ESTALE) {
                    // It was removed half-way: a client that was silent for too long has nothing open any more.
                    self.lost.set(true);
                    std::future::pending::<()>().await;
                }
                Ok(all_or(written, len))
            }
            Call::Append { inode, cells } => {
                let data = fill(op, *cells, cell_bytes);
                let len = data.len();
                Ok(all_or(client.append(*inode, data, false).await?, len))
            }
            Call::Read { inode, at, cells } => {
                let parts = client.read(*inode, at * cell_bytes, (cells * cell_bytes) as u32).await?;
                Ok(self.decode(&parts.concat()))
            }
            Call::Truncate { inode, size } => {
                let set = SetAttr { size_bytes: Some(size * cell_bytes), ..SetAttr::default() };
                client.setattr(*inode, set).await.map(|_| Outcome::Done)
            }
            Call::Chmod { inode, mode } => {
                let set = SetAttr { mode: Some(*mode), ..SetAttr::default() };
                client.setattr(*inode, set).await.map(|_| Outcome::Done)
            }
            Call::Stat { inode } => {
                let attr = client.stat(*inode).await?;
                if !attr.size_bytes.is_multiple_of(cell_bytes) {
                    return Ok(Outcome::Nonsense(format!("a size of {} bytes", attr.size_bytes)));
                }
                Ok(Outcome::Stat { size: attr.size_bytes / cell_bytes, mode: attr.mode, links: attr.links })
            }
            Call::Punch { inode, at, cells } => self.fallocate(*inode, *at, *cells, FallocateMode::Punch).await,
            Call::Zero { inode, at, cells } => {
                self.fallocate(*inode, *at, *cells, FallocateMode::Zero { keep_size: false }).await
            }
            Call::Reserve { inode, at, cells } => {
                self.fallocate(*inode, *at, *cells, FallocateMode::Allocate { keep_size: false }).await
            }
            Call::ReadLink { inode } => Ok(number(&client.readlink(*inode).await?)),
            Call::SetXattr { inode, name } => {
                let value = op.to_string().into_bytes();
                client
                    .setxattr(*inode, &name_bytes(*name), &value, XattrMode::Either, false)
                    .await
                    .map(|()| Outcome::Done)
            }
            Call::GetXattr { inode, name } => Ok(number(&client.getxattr(*inode, &name_bytes(*name)).await?)),
            Call::RemoveXattr { inode, name } => {
                client.removexattr(*inode, &name_bytes(*name)).await.map(|()| Outcome::Done)
            }
            Call::Lock { inode, owner, exclusive } => {
                let typ = if *exclusive { LockType::Write } else { LockType::Read };
                client.set_lock(*inode, whole_file(*owner, typ), false).await.map(|()| Outcome::Done)
            }
            Call::Unlock { inode, owner } => {
                client.set_lock(*inode, whole_file(*owner, LockType::Unlock), false).await.map(|()| Outcome::Done)
            }
        }
    }

    async fn fallocate(&self, inode: InodeId, at: u64, cells: u64, mode: FallocateMode) -> Result<Outcome, Errno> {
        let cell_bytes = self.shared.options.cell_bytes;
        self.client.fallocate(inode, at * cell_bytes, cells * cell_bytes, mode).await.map(|()| Outcome::Done)
    }

    fn decode(&self, data: &[u8]) -> Outcome {
        let cell_bytes = self.shared.options.cell_bytes as usize;
        if !data.len().is_multiple_of(cell_bytes) {
            return Outcome::Nonsense(format!("{} bytes", data.len()));
        }
        let made = self.shared.history.len();
        let mut values = Vec::new();
        for (index, cell) in data.chunks_exact(cell_bytes).enumerate() {
            match decode_cell(cell) {
                Some(found) if value_origin(found).is_none_or(|(op, _)| op < made) => values.push(found),
                _ => {
                    let start: Vec<u8> = cell.iter().take(32).copied().collect();
                    return Outcome::Nonsense(format!("cell {index} of the answer is garbage: {start:02x?}..."));
                }
            }
        }
        Outcome::Data(values)
    }
}

/// A number as text, as targets and attributes hold it.
fn number(text: &[u8]) -> Outcome {
    match std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()) {
        Some(number) => Outcome::Data(vec![number]),
        None => Outcome::Nonsense(format!("{text:02x?} is no number")),
    }
}

fn whole_file(owner: Owner, typ: LockType) -> Lock {
    Lock { kind: LockKind::Record, typ, start: 0, end: u64::MAX, owner: owner.worker, pid: owner.worker as u32 }
}

/// The file that has to be open for the call.
fn opened(call: &Call) -> Option<InodeId> {
    match call {
        Call::Write { inode, .. }
        | Call::Append { inode, .. }
        | Call::Read { inode, .. }
        | Call::Punch { inode, .. }
        | Call::Zero { inode, .. }
        | Call::Reserve { inode, .. } => Some(*inode),
        _ => None,
    }
}

fn all_or(written: usize, len: usize) -> Outcome {
    if written == len { Outcome::Done } else { Outcome::Nonsense(format!("{written} of {len} bytes written")) }
}

/// Calls until told to stop. `worker`: which of the client's.
pub async fn work(hand: Hand, handle: Handle, worker: u64, seed: u64) {
    let mut random = Random::new(seed);
    let owner = Owner { client: hand.index, worker };
    let mut locked: Vec<InodeId> = Vec::new();
    while !hand.shared.stopping.get() {
        if let Some(call) = choose(&hand.shared, owner, &locked, &mut random) {
            let outcome = hand.call(call.clone()).await;
            match (call, outcome) {
                (Call::Lock { inode, .. }, Outcome::Done) if !locked.contains(&inode) => locked.push(inode),
                (Call::Unlock { inode, .. }, _) => locked.retain(|other| *other != inode),
                _ => {}
            }
        }
        let pause = random.below(hand.shared.options.pause_max.as_nanos() as u64);
        handle.sleep(Duration::from_nanos(pause)).await;
    }
    for inode in locked {
        hand.call(Call::Unlock { inode, owner }).await;
    }
    hand.working.set(hand.working.get() - 1);
}

fn pick<T: Copy>(list: &[T], random: &mut Random) -> Option<T> {
    list.get(random.below(list.len() as u64) as usize).copied()
}

/// Where a call begins, and how many cells it takes.
fn place(shared: &Shared, inode: InodeId, random: &mut Random) -> (u64, u64) {
    let cells = 1 + random.below(CALL_CELLS_MAX.min(CELLS_MAX));
    if !is_large(shared, inode) {
        return (random.below(SMALL_CELLS_MAX - CALL_CELLS_MAX), cells);
    }
    // Around the ends of slabs.
    let border = random.below(4) * shared.options.slab_cells();
    ((border + random.below(2 * CALL_CELLS_MAX)).saturating_sub(CALL_CELLS_MAX), cells)
}

/// Every fourth file is used beyond its first slab, and never appended to.
fn is_large(shared: &Shared, inode: InodeId) -> bool {
    shared.options.large_files() && inode.0.is_multiple_of(4)
}

fn draw_kind(without: u32, random: &mut Random) -> Kind {
    let used = |index: usize, kind: Kind| ALWAYS.contains(&kind) || without & (1 << index) == 0;
    let all = KINDS.into_iter().enumerate();
    let kinds: Vec<_> = all.filter(|(index, (kind, _))| used(*index, *kind)).map(|(_, kind)| kind).collect();
    let mut left = random.below(kinds.iter().map(|(_, weight)| weight).sum());
    for (kind, weight) in kinds {
        match left.checked_sub(weight) {
            Some(rest) => left = rest,
            None => return kind,
        }
    }
    Kind::Lookup
}

fn choose(shared: &Shared, owner: Owner, locked: &[InodeId], random: &mut Random) -> Option<Call> {
    let dir = match random.below(2) {
        0 => shared.root,
        _ => pick(&shared.directories.borrow(), random).unwrap_or(shared.root),
    };
    let name = random.below(u64::from(shared.options.names)) as Name;
    let file = pick(&shared.files.borrow(), random);
    let kind = draw_kind(shared.options.without, random);
    let (at, cells) = file.map(|inode| place(shared, inode, random)).unwrap_or_default();
    Some(match kind {
        Kind::Create => Call::Create { dir, name, directory: false },
        Kind::MakeDirectory => Call::Create { dir, name, directory: true },
        Kind::Symlink => Call::Symlink { dir, name },
        Kind::Lookup => Call::Lookup { dir, name },
        Kind::Unlink => Call::Remove { dir, name, directory: false },
        Kind::RemoveDirectory => Call::Remove { dir, name, directory: true },
        Kind::Rename => {
            let new_dir = pick(&shared.directories.borrow(), random).unwrap_or(shared.root);
            let new_name = random.below(u64::from(shared.options.names)) as Name;
            let mode = match random.below(4) {
                0 => RenameMode::NoReplace,
                1 => RenameMode::Exchange,
                _ => RenameMode::Replace,
            };
            Call::Rename { dir, name, new_dir, new_name, mode }
        }
        Kind::Link => Call::Link { inode: file?, dir, name },
        Kind::ReadDir => Call::ReadDir { dir },
        Kind::Write => Call::Write { inode: file?, at, cells },
        Kind::Append => {
            let inode = file?;
            let cells = 1 + random.below(4);
            let mut appended = shared.appended.borrow_mut();
            let appended = appended.entry(inode).or_default();
            if is_large(shared, inode) || *appended + cells > APPENDED_CELLS_MAX {
                return Some(Call::Stat { inode });
            }
            *appended += cells;
            Call::Append { inode, cells }
        }
        Kind::Read => Call::Read { inode: file?, at, cells },
        Kind::Truncate => Call::Truncate { inode: file?, size: at },
        Kind::Chmod => Call::Chmod { inode: file?, mode: random.below(0o1000) as u16 },
        Kind::Stat => Call::Stat { inode: file? },
        Kind::Punch => Call::Punch { inode: file?, at, cells },
        Kind::Zero => Call::Zero { inode: file?, at, cells },
        Kind::Reserve => Call::Reserve { inode: file?, at, cells },
        Kind::ReadLink => Call::ReadLink { inode: pick(&shared.symlinks.borrow(), random)? },
        Kind::SetXattr => Call::SetXattr { inode: file?, name },
        Kind::GetXattr => Call::GetXattr { inode: file?, name },
        Kind::RemoveXattr => Call::RemoveXattr { inode: file?, name },
        Kind::Lock if locked.len() < LOCKED_MAX => Call::Lock { inode: file?, owner, exclusive: random.chance(0.6) },
        Kind::Lock | Kind::Unlock => Call::Unlock { inode: pick(locked, random)?, owner },
    })
}

/// All names of a directory. Not of one moment.
pub async fn list(client: &Client, dir: InodeId) -> Result<Vec<DirEntry>, Errno> {
    let mut entries: Vec<DirEntry> = Vec::new();
    loop {
        let after = entries.last().map_or(0, |entry| entry.cookie);
        let listing = client.readdir(dir, after, LISTING_MAX).await?;
        let stands = listing.entries.is_empty();
        entries.extend(listing.entries);
        if listing.end || stands {
            return Ok(entries);
        }
    }
}

/// Looks at everything that there is.
pub async fn read_back(hand: &Hand) -> Result<(), String> {
    let mut directories = vec![hand.shared.root];
    let mut seen = Vec::new();
    while let Some(dir) = directories.pop() {
        let Outcome::Entries(entries) = hand.call(Call::ReadDir { dir }).await else {
            return Err(format!("{dir} can't be listed"));
        };
        for (name, inode) in entries {
            let found = hand.call(Call::Lookup { dir, name }).await;
            let Outcome::Entry { kind, .. } = found else {
                return Err(format!("name {name} of {dir}: {found:?}"));
            };
            if seen.contains(&inode) {
                continue;
            }
            seen.push(inode);
            match kind {
                FileKind::Directory => directories.push(inode),
                FileKind::Symlink => _ = hand.call(Call::ReadLink { inode }).await,
                _ => {}
            }
            if kind != FileKind::File {
                continue;
            }
            for name in 0..hand.shared.options.names {
                hand.call(Call::GetXattr { inode, name }).await;
            }
            // Whoever held a lock has given it back, or is gone.
            let owner = Owner { client: hand.index, worker: 0 };
            let taken = hand.call(Call::Lock { inode, owner, exclusive: true }).await;
            if taken != Outcome::Done {
                return Err(format!("{inode} can't be locked: {taken:?}"));
            }
            let Outcome::Stat { size, .. } = hand.call(Call::Stat { inode }).await else {
                return Err(format!("{inode} has a name and no attributes"));
            };
            let step = hand.shared.options.slab_cells().min(SLAB_READ_CELLS_MAX);
            let mut at = 0;
            while at < size {
                hand.call(Call::Read { inode, at, cells: step.min(size - at) }).await;
                at += step;
            }
        }
    }
    Ok(())
}

/// Cells of one call of the final reading.
const SLAB_READ_CELLS_MAX: u64 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_say_whose_they_are() {
        let bytes = fill(6, 2, 1000);
        assert_eq!(bytes.len(), 2000);
        assert_eq!(decode_cell(&bytes[..1000]), Some(value(6, 0)));
        assert_eq!(decode_cell(&bytes[1000..]), Some(value(6, 1)));
        assert_eq!(value_origin(value(6, 1)), Some((6, 1)));
        assert_eq!(decode_cell(&[0; 1000]), Some(0));
        assert_eq!(value_origin(0), None);
        assert_eq!(decode_cell(&bytes[8..1008]), None, "shifted");
        let mut mixed = bytes[..1000].to_vec();
        mixed[992..].copy_from_slice(&bytes[1992..]);
        assert_eq!(decode_cell(&mixed), None, "torn");
        let mut partly = bytes[..1000].to_vec();
        partly[500..].fill(0);
        assert_eq!(decode_cell(&partly), None, "partly zeros");
    }
}
