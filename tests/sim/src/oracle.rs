//! Splits a history into objects and has each explained.

use crate::extras::{LockCall, Locks, XattrCall, Xattrs};
use crate::files::{File, FileCall, Files};
use crate::history::{Call, Name, Op, OpId, Outcome, Value, value};
use crate::linear::{Operation, Verdict, check};
use crate::names::{ENOENT, ESTALE, NameCall, Names, Tree};
use crate::workload::FILE_MODE;
use std::collections::{BTreeMap, BTreeSet};
use weft_wire::InodeId;

const EAGAIN: i32 = 11;
const ENODATA: i32 = 61;

/// What the oracle found wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub text: String,
    pub op: OpId,
    /// Which inode it is about, where that is known.
    pub inode: Option<InodeId>,
}

#[derive(Debug, Default)]
pub struct Findings {
    pub violations: Vec<Violation>,
    /// Objects whose histories have too many explanations to be followed.
    pub undecided: usize,
}

/// Cells of a slab, and the names that exist.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub slab_cells: u64,
    pub names: Name,
}

impl Violation {
    /// The inodes that other operations are to be looked at for.
    pub fn inodes(&self, ops: &[Op]) -> Vec<InodeId> {
        let all = || ops.get(self.op).map(inodes).unwrap_or_default();
        self.inode.map_or_else(all, |inode| vec![inode])
    }
}

pub fn judge(ops: &[Op], root: InodeId, shape: Shape) -> Findings {
    let mut findings = Findings::default();
    for (id, op) in ops.iter().enumerate() {
        if let Some(text) = nonsense(op) {
            findings.violations.push(Violation { text, op: id, inode: subject(&op.call) });
        }
    }
    gone_stays_gone(ops, &mut findings);
    targets_stay(ops, &mut findings);
    names(ops, root, shape, &mut findings);
    files(ops, shape, &mut findings);
    extras(ops, &mut findings);
    findings
}

/// Answers that are wrong whatever happened.
fn nonsense(op: &Op) -> Option<String> {
    match (&op.call, op.outcome()?) {
        (_, Outcome::Nonsense(text)) => Some(text.clone()),
        (
            Call::Write { .. }
            | Call::Append { .. }
            | Call::Read { .. }
            | Call::Truncate { .. }
            | Call::Chmod { .. }
            | Call::Stat { .. }
            | Call::Punch { .. }
            | Call::Zero { .. }
            | Call::Reserve { .. }
            | Call::ReadLink { .. }
            | Call::SetXattr { .. }
            | Call::Unlock { .. },
            Outcome::Errno(errno),
        ) if *errno != ESTALE => Some(format!("errno {errno} is no answer to this")),
        (Call::GetXattr { .. } | Call::RemoveXattr { .. }, Outcome::Errno(errno))
            if ![ENODATA, ESTALE].contains(errno) =>
        {
            Some(format!("errno {errno} is no answer to this"))
        }
        (Call::Lock { .. }, Outcome::Errno(errno)) if ![EAGAIN, ESTALE].contains(errno) => {
            Some(format!("errno {errno} is no answer to this"))
        }
        (Call::ReadDir { .. } | Call::Lookup { .. }, Outcome::Errno(errno)) if ![ENOENT, ESTALE].contains(errno) => {
            Some(format!("errno {errno} is no answer to this"))
        }
        (Call::ReadDir { .. }, Outcome::Entries(entries)) => {
            let names: BTreeSet<Name> = entries.iter().map(|(name, _)| *name).collect();
            (names.len() != entries.len()).then(|| "a name is listed twice".into())
        }
        _ => None,
    }
}

/// A symlink's target is what the operation that made it gave it.
fn targets_stay(ops: &[Op], findings: &mut Findings) {
    for (id, op) in ops.iter().enumerate() {
        let (Call::ReadLink { inode }, Some(Outcome::Data(target))) = (&op.call, op.outcome()) else { continue };
        let maker = target.first().and_then(|maker| ops.get(*maker as usize));
        let fits = maker.is_some_and(|maker| {
            let made = match maker.outcome() {
                Some(Outcome::Entry { inode: made, .. }) => made == inode,
                Some(_) => false,
                None => true,
            };
            made && matches!(maker.call, Call::Symlink { .. })
        });
        if !fits {
            let text = "its target is not what it was made with".into();
            findings.violations.push(Violation { text, op: id, inode: Some(*inode) });
        }
    }
}

/// An inode that was once gone is never met again.
fn gone_stays_gone(ops: &[Op], findings: &mut Findings) {
    let mut gone: BTreeMap<InodeId, (u64, OpId)> = BTreeMap::new();
    for (id, op) in ops.iter().enumerate() {
        let (Some(inode), Some(answer)) = (subject(&op.call), &op.answer) else { continue };
        if answer.outcome == Outcome::Errno(ESTALE) {
            let found = (answer.responded, id);
            let first = gone.entry(inode).or_insert(found);
            *first = found.min(*first);
        }
    }
    for (id, op) in ops.iter().enumerate() {
        for inode in met(op) {
            if let Some((at, by)) = gone.get(&inode)
                && *at < op.invoked
            {
                let text = format!("operation {by} found {inode} gone, and it is met again");
                findings.violations.push(Violation { text, op: id, inode: Some(inode) });
            }
        }
    }
}

/// The inode that a call on contents is about.
fn subject(call: &Call) -> Option<InodeId> {
    match call {
        Call::Write { inode, .. }
        | Call::Append { inode, .. }
        | Call::Read { inode, .. }
        | Call::Truncate { inode, .. }
        | Call::Chmod { inode, .. }
        | Call::Punch { inode, .. }
        | Call::Zero { inode, .. }
        | Call::Reserve { inode, .. }
        | Call::ReadLink { inode }
        | Call::SetXattr { inode, .. }
        | Call::GetXattr { inode, .. }
        | Call::RemoveXattr { inode, .. }
        | Call::Lock { inode, .. }
        | Call::Stat { inode } => Some(*inode),
        _ => None,
    }
}

/// Inodes that the call is about or goes through, and those that its answer shows.
pub fn inodes(op: &Op) -> Vec<InodeId> {
    let mut inodes = match &op.call {
        Call::Create { dir, .. }
        | Call::Symlink { dir, .. }
        | Call::Lookup { dir, .. }
        | Call::Remove { dir, .. }
        | Call::ReadDir { dir } => vec![*dir],
        Call::Rename { dir, new_dir, .. } => vec![*dir, *new_dir],
        Call::Link { inode, dir, .. } => vec![*inode, *dir],
        Call::Unlock { inode, .. } => vec![*inode],
        call => subject(call).into_iter().collect(),
    };
    inodes.extend(met(op));
    inodes
}

/// Inodes that the answer shows to exist.
fn met(op: &Op) -> Vec<InodeId> {
    match (op.outcome(), subject(&op.call)) {
        (Some(Outcome::Entry { inode, .. }), _) => vec![*inode],
        (Some(Outcome::Entries(entries)), _) => entries.iter().map(|(_, inode)| *inode).collect(),
        (Some(Outcome::Done | Outcome::Data(_) | Outcome::Stat { .. }), Some(inode)) => vec![inode],
        _ => Vec::new(),
    }
}

fn names(ops: &[Op], root: InodeId, shape: Shape, findings: &mut Findings) {
    let mut operations = Vec::new();
    let mut origin = Vec::new();
    for (id, op) in ops.iter().enumerate() {
        for call in name_calls(id, op, shape) {
            let responded = op.answer.as_ref().map(|answer| answer.responded);
            operations.push(Operation { invoked: op.invoked, responded, call });
            origin.push(id);
        }
    }
    let (verdict, _) = check(&Names { root }, Tree::default(), &operations);
    report(verdict, &origin, "names", findings);
}

fn report(verdict: Verdict, origin: &[OpId], what: &str, findings: &mut Findings) {
    match verdict {
        Verdict::Explained => {}
        Verdict::Violated(index) => {
            let op = origin.get(index).copied().unwrap_or_default();
            let text = format!("{what}: no order of events explains this");
            findings.violations.push(Violation { text, op, inode: None });
        }
        Verdict::Undecided(_) => findings.undecided += 1,
    }
}

fn unit(outcome: Option<&Outcome>) -> Option<Result<(), i32>> {
    match outcome? {
        Outcome::Errno(errno) => Some(Err(*errno)),
        _ => Some(Ok(())),
    }
}

fn name_calls(id: OpId, op: &Op, shape: Shape) -> Vec<NameCall> {
    let outcome = op.outcome();
    if outcome.is_none() && op.is_read() {
        return Vec::new();
    }
    match (&op.call, outcome) {
        (Call::Create { dir, name, .. } | Call::Symlink { dir, name }, outcome) => {
            let directory = matches!(op.call, Call::Create { directory: true, .. });
            let answer = match outcome {
                Some(Outcome::Entry { inode, .. }) => Some(Ok(*inode)),
                Some(Outcome::Errno(errno)) => Some(Err(*errno)),
                _ => None,
            };
            vec![NameCall::Create { op: id, dir: *dir, name: *name, directory, answer }]
        }
        (Call::Remove { dir, name, directory }, outcome) => {
            vec![NameCall::Remove { dir: *dir, name: *name, directory: *directory, answer: unit(outcome) }]
        }
        (Call::Rename { dir, name, new_dir, new_name, mode }, outcome) => vec![NameCall::Rename {
            from: (*dir, *name),
            to: (*new_dir, *new_name),
            mode: *mode,
            answer: unit(outcome),
        }],
        (Call::Link { inode, dir, name }, outcome) => {
            vec![NameCall::Link { inode: *inode, dir: *dir, name: *name, answer: unit(outcome) }]
        }
        (Call::Lookup { dir, name }, Some(Outcome::Entry { inode, .. })) => {
            vec![NameCall::Saw { dir: *dir, name: *name, inode: Some(*inode) }]
        }
        (Call::Lookup { dir, name }, Some(Outcome::Errno(ENOENT))) => {
            vec![NameCall::Saw { dir: *dir, name: *name, inode: None }]
        }
        (Call::Lookup { dir, .. } | Call::ReadDir { dir }, Some(Outcome::Errno(_))) => {
            vec![NameCall::NoDirectory { dir: *dir }]
        }
        (Call::ReadDir { dir }, Some(Outcome::Entries(entries))) => {
            let found: BTreeMap<Name, InodeId> = entries.iter().copied().collect();
            // Each name by itself: a listing is not of one moment.
            (0..shape.names).map(|name| NameCall::Saw { dir: *dir, name, inode: found.get(&name).copied() }).collect()
        }
        (Call::Stat { inode }, Some(Outcome::Stat { links, .. })) => {
            vec![NameCall::Links { inode: *inode, links: *links }]
        }
        _ => Vec::new(),
    }
}

fn file_call(id: OpId, op: &Op) -> Option<(InodeId, FileCall)> {
    let values = |cells: u64| -> Vec<Value> { (0..cells).map(|cell| value(id, cell)).collect() };
    let call = match (&op.call, op.outcome()) {
        // The file is gone: nothing happened.
        (_, Some(Outcome::Errno(_))) => return None,
        (Call::Write { at, cells, .. }, _) => FileCall::Write { at: *at, values: values(*cells) },
        (Call::Append { cells, .. }, _) => FileCall::Append { values: values(*cells) },
        (Call::Truncate { size, .. }, _) => FileCall::Truncate { size: *size },
        (Call::Chmod { mode, .. }, _) => FileCall::Chmod { mode: *mode },
        (Call::Punch { at, cells, .. }, _) => FileCall::Punch { at: *at, cells: *cells },
        (Call::Zero { at, cells, .. }, _) => FileCall::Zero { at: *at, cells: *cells },
        (Call::Reserve { at, cells, .. }, _) => FileCall::Reserve { at: *at, cells: *cells },
        (Call::Read { at, cells, .. }, Some(Outcome::Data(got))) => {
            FileCall::Read { at: *at, cells: *cells, got: got.clone() }
        }
        (Call::Stat { .. }, Some(Outcome::Stat { size, mode, .. })) => FileCall::Stat { size: *size, mode: *mode },
        _ => return None,
    };
    Some((subject(&op.call)?, call))
}

/// The last cell that a call reaches, and one more.
fn end(call: &FileCall) -> u64 {
    match call {
        FileCall::Write { at, values } | FileCall::Torn { at, values, .. } => at + values.len() as u64,
        FileCall::Truncate { size } => *size,
        FileCall::Read { at, cells, .. }
        | FileCall::Punch { at, cells }
        | FileCall::Zero { at, cells }
        | FileCall::Reserve { at, cells } => at + cells,
        _ => 0,
    }
}

/// Cells `at..at + cells`, slab by slab.
fn slabs_of(at: u64, cells: u64, shape: Shape) -> Vec<(u64, u64)> {
    let mut parts = Vec::new();
    let (mut from, end) = (at, at + cells);
    while from < end {
        let stop = ((from / shape.slab_cells + 1) * shape.slab_cells).min(end);
        parts.push((from, stop - from));
        from = stop;
    }
    parts
}

/// A write across slabs is one of each slab: each by itself takes effect at once, and the file grows step by step.
fn by_slab(call: &FileCall, shape: Shape) -> Vec<FileCall> {
    match call {
        FileCall::Write { at, values } => {
            let mut left = values.iter().copied();
            let parts = slabs_of(*at, values.len() as u64, shape).into_iter();
            parts
                .map(|(at, cells)| FileCall::Write { at, values: left.by_ref().take(cells as usize).collect() })
                .collect()
        }
        FileCall::Punch { at, cells } => {
            slabs_of(*at, *cells, shape).into_iter().map(|(at, cells)| FileCall::Punch { at, cells }).collect()
        }
        FileCall::Zero { at, cells } => {
            slabs_of(*at, *cells, shape).into_iter().map(|(at, cells)| FileCall::Zero { at, cells }).collect()
        }
        FileCall::Reserve { at, cells } => {
            slabs_of(*at, *cells, shape).into_iter().map(|(at, cells)| FileCall::Reserve { at, cells }).collect()
        }
        other => vec![other.clone()],
    }
}

/// A part of a write that may have been left at one of these ends of the file, which its slab alone does not know.
fn torn(call: FileCall, object: &Files, ends: &BTreeSet<u64>) -> FileCall {
    match (call, object) {
        (FileCall::Write { at, values }, Files::Cells(_)) => {
            let within = ends.range(at + 1..at + values.len() as u64);
            FileCall::Torn { at, fronts: within.map(|end| (end - at) as usize).collect(), values }
        }
        (call, _) => call,
    }
}

/// Attributes and locks, each inode's by itself.
fn extras(ops: &[Op], findings: &mut Findings) {
    let mut xattrs: BTreeMap<InodeId, (Vec<Operation<XattrCall>>, Vec<OpId>)> = BTreeMap::new();
    let mut locks: BTreeMap<InodeId, (Vec<Operation<LockCall>>, Vec<OpId>)> = BTreeMap::new();
    for (id, op) in ops.iter().enumerate() {
        let (invoked, responded) = (op.invoked, op.answer.as_ref().map(|answer| answer.responded));
        if let Some((inode, call)) = xattr_call(id, op) {
            let (operations, origin) = xattrs.entry(inode).or_default();
            operations.push(Operation { invoked, responded, call });
            origin.push(id);
        }
        if let Some((inode, call)) = lock_call(op) {
            let (operations, origin) = locks.entry(inode).or_default();
            operations.push(Operation { invoked, responded, call });
            origin.push(id);
        }
    }
    for (inode, (operations, origin)) in xattrs {
        let (verdict, _) = check(&Xattrs, BTreeMap::new(), &operations);
        report(verdict, &origin, &format!("attributes of {inode}"), findings);
    }
    for (inode, (operations, origin)) in locks {
        let (verdict, _) = check(&Locks, BTreeMap::new(), &operations);
        report(verdict, &origin, &format!("locks of {inode}"), findings);
    }
}

fn xattr_call(id: OpId, op: &Op) -> Option<(InodeId, XattrCall)> {
    Some(match (&op.call, op.outcome()) {
        (_, Some(Outcome::Errno(ESTALE))) => return None,
        (Call::SetXattr { inode, name }, _) => (*inode, XattrCall::Set { name: *name, value: id }),
        (Call::GetXattr { inode, name }, Some(Outcome::Data(got))) => {
            let value = got.first().map(|value| *value as OpId);
            (*inode, XattrCall::Saw { name: *name, value })
        }
        (Call::GetXattr { inode, name }, Some(Outcome::Errno(_))) => {
            (*inode, XattrCall::Saw { name: *name, value: None })
        }
        (Call::RemoveXattr { inode, name }, outcome) => {
            let there = outcome.map(|outcome| *outcome == Outcome::Done);
            (*inode, XattrCall::Remove { name: *name, there })
        }
        _ => return None,
    })
}

fn lock_call(op: &Op) -> Option<(InodeId, LockCall)> {
    Some(match (&op.call, op.outcome()) {
        (Call::Unlock { inode, owner }, _) => (*inode, LockCall::Unlock { owner: *owner }),
        (_, Some(Outcome::Errno(ESTALE))) => return None,
        (Call::Lock { inode, owner, exclusive }, outcome) => {
            let granted = outcome.map(|outcome| *outcome == Outcome::Done);
            (*inode, LockCall::Lock { owner: *owner, exclusive: *exclusive, granted })
        }
        _ => return None,
    })
}

fn files(ops: &[Op], shape: Shape, findings: &mut Findings) {
    let mut by_inode: BTreeMap<InodeId, Vec<(OpId, FileCall)>> = BTreeMap::new();
    for (id, op) in ops.iter().enumerate() {
        if let Some((inode, call)) = file_call(id, op) {
            by_inode.entry(inode).or_default().push((id, call));
        }
    }
    for (inode, calls) in by_inode {
        let most = calls.iter().map(|(_, call)| end(call)).max().unwrap_or_default();
        let sizes = |(_, call): &(OpId, FileCall)| match call {
            FileCall::Write { .. } | FileCall::Truncate { .. } | FileCall::Zero { .. } | FileCall::Reserve { .. } => {
                Some(end(call))
            }
            FileCall::Stat { size, .. } => Some(*size),
            _ => None,
        };
        let ends: BTreeSet<u64> = calls.iter().filter_map(sizes).collect();
        let mut objects = vec![Files::Whole];
        if most > shape.slab_cells {
            let slabs = 0..most.div_ceil(shape.slab_cells);
            objects = slabs.map(|slab| Files::Cells(slab * shape.slab_cells..(slab + 1) * shape.slab_cells)).collect();
            objects.push(Files::SizeAndMode);
        }
        for object in objects {
            let mut operations = Vec::new();
            let mut origin = Vec::new();
            for (id, call) in &calls {
                let Some(op) = ops.get(*id) else { continue };
                let responded = op.answer.as_ref().map(|answer| answer.responded);
                for call in by_slab(call, shape) {
                    let call = if responded.is_none() { torn(call, &object, &ends) } else { call };
                    operations.push(Operation { invoked: op.invoked, responded, call });
                    origin.push(*id);
                }
            }
            let empty = File { size: 0, mode: FILE_MODE, cells: BTreeMap::new() };
            let (verdict, _) = check(&object, empty, &operations);
            report(verdict, &origin, &format!("{inode} ({object:?})"), findings);
        }
    }
}
