//! The oracle for names: what a tree of directories may answer.
//!
//! An inode that was made by an operation without an answer has no number until somebody sees it.

use crate::history::{Name, OpId};
use crate::linear::{Access, Model};
use std::collections::BTreeMap;
use weft_wire::InodeId;
use weft_wire::fs::RenameMode;

pub const ENOENT: i32 = 2;
pub const EEXIST: i32 = 17;
pub const ENOTDIR: i32 = 20;
pub const EISDIR: i32 = 21;
pub const EINVAL: i32 = 22;
pub const ENOTEMPTY: i32 = 39;
pub const ESTALE: i32 = 116;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    Known(InodeId),
    /// Made by this operation.
    Unseen(OpId),
}

/// A call on names, with its answer.
#[derive(Clone, Debug)]
pub enum NameCall {
    Create {
        op: OpId,
        dir: InodeId,
        name: Name,
        directory: bool,
        answer: Option<Result<InodeId, i32>>,
    },
    Remove {
        dir: InodeId,
        name: Name,
        directory: bool,
        answer: Option<Result<(), i32>>,
    },
    Rename {
        from: (InodeId, Name),
        to: (InodeId, Name),
        mode: RenameMode,
        answer: Option<Result<(), i32>>,
    },
    Link {
        inode: InodeId,
        dir: InodeId,
        name: Name,
        answer: Option<Result<(), i32>>,
    },
    /// Somebody looked: the name led there, or nowhere.
    Saw {
        dir: InodeId,
        name: Name,
        inode: Option<InodeId>,
    },
    /// Looking at a name in a directory that isn't there.
    NoDirectory {
        dir: InodeId,
    },
    /// A file's number of links.
    Links {
        inode: InodeId,
        links: u32,
    },
}

/// What lost its last name never gets another, so it is not remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tree {
    pub entries: BTreeMap<(Node, Name), Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub node: Node,
    pub directory: bool,
}

impl Tree {
    fn is_directory(&self, root: InodeId, dir: Node) -> bool {
        dir == Node::Known(root) || self.entries.values().any(|entry| entry.node == dir && entry.directory)
    }

    fn is_empty(&self, dir: Node) -> bool {
        self.entries.range((dir, Name::MIN)..=(dir, Name::MAX)).next().is_none()
    }

    fn knows(&self, inode: InodeId) -> bool {
        self.entries.values().any(|entry| entry.node == Node::Known(inode))
    }

    fn links(&self, node: Node) -> usize {
        self.entries.values().filter(|entry| entry.node == node).count()
    }

    fn parent(&self, node: Node) -> Option<Node> {
        self.entries.iter().find(|(_, entry)| entry.node == node).map(|((dir, _), _)| *dir)
    }

    /// `dir` is `node`, or lies below it.
    fn is_below(&self, dir: Node, node: Node) -> bool {
        let mut at = Some(dir);
        for _ in 0..=self.entries.len() {
            match at {
                Some(here) if here == node => return true,
                Some(here) => at = self.parent(here),
                None => return false,
            }
        }
        false
    }

    /// Someone saw the number of what was unseen.
    fn bind(&self, unseen: OpId, inode: InodeId) -> Option<Self> {
        if self.knows(inode) {
            return None;
        }
        let bound = |node: Node| if node == Node::Unseen(unseen) { Node::Known(inode) } else { node };
        let entries = self
            .entries
            .iter()
            .map(|((dir, name), entry)| ((bound(*dir), *name), Entry { node: bound(entry.node), ..*entry }))
            .collect();
        Some(Self { entries })
    }
}

pub struct Names {
    pub root: InodeId,
}

impl Names {
    /// The directory is there; otherwise whether the answer says that it isn't.
    fn in_directory<T>(&self, tree: &Tree, dir: Node, answer: &Option<Result<T, i32>>) -> Result<(), Vec<Tree>> {
        if tree.is_directory(self.root, dir) {
            return Ok(());
        }
        let said_so = matches!(answer, Some(Err(ENOENT | ESTALE | ENOTDIR)));
        Err(if said_so { vec![tree.clone()] } else { Vec::new() })
    }

    fn refused(tree: &Tree, allowed: &[i32], errno: i32) -> Vec<Tree> {
        if allowed.contains(&errno) { vec![tree.clone()] } else { Vec::new() }
    }

    fn create(&self, tree: &Tree, op: OpId, at: (Node, Name), directory: bool, answer: &Answer<InodeId>) -> Vec<Tree> {
        if let Err(states) = self.in_directory(tree, at.0, answer) {
            return states;
        }
        let there = tree.entries.contains_key(&at);
        let node = match answer {
            Some(Err(errno)) => return Self::refused(tree, if there { &[EEXIST] } else { &[] }, *errno),
            Some(Ok(inode)) if tree.knows(*inode) => return Vec::new(),
            Some(Ok(inode)) => Node::Known(*inode),
            None => Node::Unseen(op),
        };
        if there {
            return Vec::new();
        }
        let mut next = tree.clone();
        next.entries.insert(at, Entry { node, directory });
        vec![next]
    }

    fn remove(&self, tree: &Tree, at: (Node, Name), directory: bool, answer: &Answer<()>) -> Vec<Tree> {
        if let Err(states) = self.in_directory(tree, at.0, answer) {
            return states;
        }
        let mut errors = Vec::new();
        match tree.entries.get(&at) {
            None => errors.push(ENOENT),
            Some(entry) => {
                if directory && !entry.directory {
                    errors.push(ENOTDIR);
                }
                if !directory && entry.directory {
                    errors.push(EISDIR);
                }
                if directory && entry.directory && !tree.is_empty(entry.node) {
                    errors.push(ENOTEMPTY);
                }
            }
        }
        match answer {
            Some(Err(errno)) => Self::refused(tree, &errors, *errno),
            _ if !errors.is_empty() => Vec::new(),
            _ => {
                let mut next = tree.clone();
                next.entries.remove(&at);
                vec![next]
            }
        }
    }

    fn rename(
        &self,
        tree: &Tree,
        from: (Node, Name),
        to: (Node, Name),
        mode: RenameMode,
        answer: &Answer<()>,
    ) -> Vec<Tree> {
        for dir in [from.0, to.0] {
            if let Err(states) = self.in_directory(tree, dir, answer) {
                return states;
            }
        }
        let mut errors = Vec::new();
        let source = tree.entries.get(&from).copied();
        let target = tree.entries.get(&to).copied();
        match (source, target, mode) {
            (None, ..) => errors.push(ENOENT),
            (Some(_), Some(_), RenameMode::NoReplace) => errors.push(EEXIST),
            (Some(_), None, RenameMode::Exchange) => errors.push(ENOENT),
            (Some(source), Some(target), RenameMode::Replace) if source.node != target.node => {
                if source.directory && !target.directory {
                    errors.push(ENOTDIR);
                }
                if !source.directory && target.directory {
                    errors.push(EISDIR);
                }
                if source.directory && target.directory && !tree.is_empty(target.node) {
                    errors.extend([ENOTEMPTY, EEXIST]);
                }
            }
            _ => {}
        }
        if let Some(source) = source
            && source.directory
            && tree.is_below(to.0, source.node)
        {
            errors.push(EINVAL);
        }
        if let Some(target) = target
            && mode == RenameMode::Exchange
            && target.directory
            && tree.is_below(from.0, target.node)
        {
            errors.push(EINVAL);
        }
        if let Some(Err(errno)) = answer {
            return Self::refused(tree, &errors, *errno);
        }
        let (true, Some(source)) = (errors.is_empty(), source) else { return Vec::new() };
        let mut next = tree.clone();
        match (target, mode) {
            (Some(target), _) if target.node == source.node => {}
            (Some(target), RenameMode::Exchange) => {
                next.entries.insert(from, target);
                next.entries.insert(to, source);
            }
            _ => {
                next.entries.remove(&from);
                next.entries.insert(to, source);
            }
        }
        vec![next]
    }

    fn link(&self, tree: &Tree, inode: InodeId, at: (Node, Name), answer: &Answer<()>) -> Vec<Tree> {
        let node = Node::Known(inode);
        let gone = !tree.entries.values().any(|entry| entry.node == node);
        if gone && matches!(answer, Some(Err(ESTALE | ENOENT))) {
            return vec![tree.clone()];
        }
        if let Err(states) = self.in_directory(tree, at.0, answer) {
            return states;
        }
        let there = tree.entries.contains_key(&at);
        match answer {
            Some(Err(errno)) => Self::refused(tree, if there { &[EEXIST] } else { &[] }, *errno),
            _ if there || gone => Vec::new(),
            _ => {
                let mut next = tree.clone();
                next.entries.insert(at, Entry { node, directory: false });
                vec![next]
            }
        }
    }

    fn saw(&self, tree: &Tree, at: (Node, Name), inode: Option<InodeId>) -> Vec<Tree> {
        if !tree.is_directory(self.root, at.0) {
            // Nothing is found in what is gone.
            return if inode.is_none() { vec![tree.clone()] } else { Vec::new() };
        }
        match (tree.entries.get(&at).map(|entry| entry.node), inode) {
            (None, None) => vec![tree.clone()],
            (Some(Node::Known(there)), Some(seen)) if there == seen => vec![tree.clone()],
            (Some(Node::Unseen(op)), Some(seen)) => tree.bind(op, seen).into_iter().collect(),
            _ => Vec::new(),
        }
    }
}

type Answer<T> = Option<Result<T, i32>>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Name(InodeId, Name),
    /// Which directories there are.
    Directories,
    /// How many names files have.
    Links,
}

impl Model for Names {
    type State = Tree;
    type Call = NameCall;
    type Key = Key;

    fn step(&self, tree: &Tree, call: &NameCall) -> Vec<Tree> {
        let at = |dir: InodeId, name: Name| (Node::Known(dir), name);
        match call {
            NameCall::Create { op, dir, name, directory, answer } => {
                self.create(tree, *op, at(*dir, *name), *directory, answer)
            }
            NameCall::Remove { dir, name, directory, answer } => self.remove(tree, at(*dir, *name), *directory, answer),
            NameCall::Rename { from, to, mode, answer } => {
                self.rename(tree, at(from.0, from.1), at(to.0, to.1), *mode, answer)
            }
            NameCall::Link { inode, dir, name, answer } => self.link(tree, *inode, at(*dir, *name), answer),
            NameCall::Saw { dir, name, inode } => self.saw(tree, at(*dir, *name), *inode),
            NameCall::NoDirectory { dir } => match tree.is_directory(self.root, Node::Known(*dir)) {
                true => Vec::new(),
                false => vec![tree.clone()],
            },
            NameCall::Links { inode, links } => match tree.links(Node::Known(*inode)) == *links as usize {
                true => vec![tree.clone()],
                false => Vec::new(),
            },
        }
    }

    fn only_looks(&self, call: &NameCall) -> bool {
        match call {
            NameCall::Create { answer, .. } => matches!(answer, Some(Err(_))),
            NameCall::Remove { answer, .. } | NameCall::Rename { answer, .. } | NameCall::Link { answer, .. } => {
                matches!(answer, Some(Err(_)))
            }
            NameCall::Saw { .. } | NameCall::NoDirectory { .. } | NameCall::Links { .. } => true,
        }
    }

    fn keys(&self, call: &NameCall) -> Vec<(Key, Access)> {
        use Access::{Exclusive, Shared};
        // What a removed or moved name led to isn't known beforehand: where it may be a directory, the call touches all.
        let changes = |dir: &InodeId, name: &Name| (Key::Name(*dir, *name), Exclusive);
        match call {
            NameCall::Create { dir, name, .. } => vec![changes(dir, name), (Key::Directories, Shared)],
            NameCall::Remove { dir, name, directory: false, .. } => {
                vec![changes(dir, name), (Key::Directories, Shared), (Key::Links, Shared)]
            }
            NameCall::Remove { dir, name, .. } => vec![changes(dir, name), (Key::Directories, Exclusive)],
            NameCall::Rename { from, to, .. } => vec![
                changes(&from.0, &from.1),
                changes(&to.0, &to.1),
                (Key::Directories, Exclusive),
                (Key::Links, Shared),
            ],
            NameCall::Link { dir, name, .. } => {
                vec![changes(dir, name), (Key::Directories, Shared), (Key::Links, Exclusive)]
            }
            NameCall::Saw { dir, name, .. } => vec![(Key::Name(*dir, *name), Shared), (Key::Directories, Shared)],
            NameCall::NoDirectory { .. } => vec![(Key::Directories, Shared)],
            NameCall::Links { .. } => vec![(Key::Links, Exclusive)],
        }
    }
}
