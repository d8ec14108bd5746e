//! What clients asked for and what they were told, with the order of both.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use weft_reactor::{Clock, Instant, VirtualClock};
use weft_wire::InodeId;
use weft_wire::fs::{FileKind, RenameMode};

/// Number of an operation in its history.
pub type OpId = usize;

/// What a cell of a file holds: 0 is zeros, anything else names the operation that wrote it, and which of its cells it was.
pub type Value = u64;

/// Cells of one operation, at most.
pub const CELLS_MAX: u64 = 1 << 10;

pub fn value(op: OpId, cell: u64) -> Value {
    (op as u64 + 1) * CELLS_MAX + cell
}

/// Which operation wrote it, and which of its cells it is.
pub fn value_origin(value: Value) -> Option<(OpId, u64)> {
    Some(((value / CELLS_MAX).checked_sub(1)? as OpId, value % CELLS_MAX))
}

/// Names are numbers here.
pub type Name = u16;

/// Offsets, lengths and sizes of files are in cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Create {
        dir: InodeId,
        name: Name,
        directory: bool,
    },
    Lookup {
        dir: InodeId,
        name: Name,
    },
    Remove {
        dir: InodeId,
        name: Name,
        directory: bool,
    },
    Rename {
        dir: InodeId,
        name: Name,
        new_dir: InodeId,
        new_name: Name,
        mode: RenameMode,
    },
    Link {
        inode: InodeId,
        dir: InodeId,
        name: Name,
    },
    ReadDir {
        dir: InodeId,
    },
    Write {
        inode: InodeId,
        at: u64,
        cells: u64,
    },
    Append {
        inode: InodeId,
        cells: u64,
    },
    Read {
        inode: InodeId,
        at: u64,
        cells: u64,
    },
    Truncate {
        inode: InodeId,
        size: u64,
    },
    Chmod {
        inode: InodeId,
        mode: u16,
    },
    Stat {
        inode: InodeId,
    },
    /// Zeros there, the size stays.
    Punch {
        inode: InodeId,
        at: u64,
        cells: u64,
    },
    /// Zeros there; the file grows to the end of it.
    Zero {
        inode: InodeId,
        at: u64,
        cells: u64,
    },
    /// Nothing changes there; the file grows to the end of it.
    Reserve {
        inode: InodeId,
        at: u64,
        cells: u64,
    },
    /// Its target says which operation made it.
    Symlink {
        dir: InodeId,
        name: Name,
    },
    ReadLink {
        inode: InodeId,
    },
    /// The value says which operation set it.
    SetXattr {
        inode: InodeId,
        name: Name,
    },
    GetXattr {
        inode: InodeId,
        name: Name,
    },
    RemoveXattr {
        inode: InodeId,
        name: Name,
    },
    /// Of the whole file, without waiting.
    Lock {
        inode: InodeId,
        owner: Owner,
        exclusive: bool,
    },
    Unlock {
        inode: InodeId,
        owner: Owner,
    },
}

/// Who holds a lock: a worker of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    pub client: usize,
    pub worker: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// What was made or found, and whether it is a directory.
    Entry {
        inode: InodeId,
        kind: FileKind,
    },
    Entries(Vec<(Name, InodeId)>),
    Data(Vec<Value>),
    Stat {
        size: u64,
        mode: u16,
        links: u32,
    },
    Errno(i32),
    /// Something that no filesystem may answer.
    Nonsense(String),
}

#[derive(Clone, Debug)]
pub struct Op {
    pub client: usize,
    pub call: Call,
    /// Place among all invocations and responses.
    pub invoked: u64,
    pub invoked_at: Instant,
    pub answer: Option<Answer>,
}

#[derive(Clone, Debug)]
pub struct Answer {
    pub responded: u64,
    pub responded_at: Instant,
    pub outcome: Outcome,
}

impl Op {
    pub fn outcome(&self) -> Option<&Outcome> {
        self.answer.as_ref().map(|answer| &answer.outcome)
    }

    /// It changes nothing.
    pub fn is_read(&self) -> bool {
        matches!(
            self.call,
            Call::Lookup { .. }
                | Call::ReadDir { .. }
                | Call::Read { .. }
                | Call::Stat { .. }
                | Call::ReadLink { .. }
                | Call::GetXattr { .. }
        )
    }
}

impl std::fmt::Display for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} client {} {:?}", self.invoked_at, self.client, self.call)?;
        match &self.answer {
            Some(answer) => write!(f, " = {:?} at {:?}", answer.outcome, answer.responded_at),
            None => write!(f, " = ?"),
        }
    }
}

/// Shared by all clients of a run.
#[derive(Clone)]
pub struct History {
    clock: VirtualClock,
    inner: Rc<RefCell<Inner>>,
}

#[derive(Default)]
struct Inner {
    ops: Vec<Op>,
    events: u64,
    /// Operations without an answer, of clients that live.
    outstanding: usize,
    /// Clients that died: what they had asked for gets no answer.
    dead: BTreeSet<usize>,
    print: bool,
}

impl History {
    pub fn new(clock: VirtualClock) -> Self {
        Self { clock, inner: Rc::default() }
    }

    /// Each operation goes to standard error when it is answered.
    pub fn print(&self) {
        self.inner.borrow_mut().print = true;
    }

    pub fn invoke(&self, client: usize, call: Call) -> OpId {
        let mut inner = self.inner.borrow_mut();
        inner.events += 1;
        inner.outstanding += usize::from(!inner.dead.contains(&client));
        let op = Op { client, call, invoked: inner.events, invoked_at: self.clock.now(), answer: None };
        inner.ops.push(op);
        inner.ops.len() - 1
    }

    pub fn respond(&self, op: OpId, outcome: Outcome) {
        let mut inner = self.inner.borrow_mut();
        inner.events += 1;
        let responded = inner.events;
        let print = inner.print;
        let id = op;
        let Some(op) = inner.ops.get_mut(id) else { return };
        op.answer = Some(Answer { responded, responded_at: self.clock.now(), outcome });
        if print {
            eprintln!("{:?} {id} {op}", self.clock.now());
        }
        let client = op.client;
        inner.outstanding -= usize::from(!inner.dead.contains(&client));
    }

    /// The client died. What it held is free some time later: `released` are the operations that say so, without an
    /// answer until [`History::respond`].
    pub fn client_dies(&self, client: usize) -> Vec<OpId> {
        let mut held: Vec<(InodeId, Owner)> = Vec::new();
        {
            let mut inner = self.inner.borrow_mut();
            inner.dead.insert(client);
            let unanswered = inner.ops.iter().filter(|op| op.client == client && op.answer.is_none()).count();
            inner.outstanding -= unanswered;
            for op in inner.ops.iter().filter(|op| op.client == client) {
                if let Call::Lock { inode, owner, .. } = op.call
                    && !held.contains(&(inode, owner))
                {
                    held.push((inode, owner));
                }
            }
        }
        held.into_iter().map(|(inode, owner)| self.invoke(client, Call::Unlock { inode, owner })).collect()
    }

    /// Nobody waits for anything.
    pub fn is_settled(&self) -> bool {
        self.inner.borrow().outstanding == 0
    }

    /// Operations that somebody waits for, the oldest first.
    pub fn outstanding(&self) -> Vec<(OpId, Op)> {
        let inner = self.inner.borrow();
        let waits = |op: &Op| op.answer.is_none() && !inner.dead.contains(&op.client);
        inner.ops.iter().enumerate().filter(|(_, op)| waits(op)).map(|(id, op)| (id, op.clone())).collect()
    }

    pub fn len(&self) -> usize {
        self.inner.borrow().ops.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn ops(&self) -> Vec<Op> {
        self.inner.borrow().ops.clone()
    }
}
