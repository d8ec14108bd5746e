//! The oracle for contents: what a file may answer.
//!
//! A file within one slab is one object. Of a larger one each slab is an object of its own, and so are its size and mode
//! together: that is what is promised of writes that cross slabs.

use crate::history::Value;
use crate::linear::{Access, Model};
use std::collections::BTreeMap;
use std::ops::Range;

/// A call on a file's contents, with its answer. Positions are in cells.
#[derive(Clone, Debug)]
pub enum FileCall {
    Write {
        at: u64,
        values: Vec<Value>,
    },
    /// Nobody heard of its end: a client that dies may have written what lies in front of the file's end, and not the rest. How
    /// much that may be is in `fronts`.
    Torn {
        at: u64,
        values: Vec<Value>,
        fronts: Vec<usize>,
    },
    Append {
        values: Vec<Value>,
    },
    Truncate {
        size: u64,
    },
    Chmod {
        mode: u16,
    },
    Read {
        at: u64,
        cells: u64,
        got: Vec<Value>,
    },
    Stat {
        size: u64,
        mode: u16,
    },
    Punch {
        at: u64,
        cells: u64,
    },
    Zero {
        at: u64,
        cells: u64,
    },
    Reserve {
        at: u64,
        cells: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct File {
    pub size: u64,
    pub mode: u16,
    /// Cells that aren't zeros.
    pub cells: BTreeMap<u64, Value>,
}

/// Which part of a file the checked object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Files {
    Whole,
    Cells(Range<u64>),
    SizeAndMode,
}

impl Files {
    fn has_size(&self) -> bool {
        !matches!(self, Self::Cells(_))
    }

    fn has(&self, cell: u64) -> bool {
        match self {
            Self::Whole => true,
            Self::Cells(range) => range.contains(&cell),
            Self::SizeAndMode => false,
        }
    }

    fn write(&self, file: &mut File, at: u64, values: &[Value]) {
        for (cell, value) in (at..).zip(values) {
            if self.has(cell) {
                file.cells.insert(cell, *value);
            }
        }
        if self.has_size() && !values.is_empty() {
            file.size = file.size.max(at + values.len() as u64);
        }
    }

    fn punch(&self, file: &mut File, at: u64, cells: u64) {
        let gone: Vec<u64> = file.cells.range(at..at + cells).map(|(cell, _)| *cell).collect();
        for cell in gone {
            file.cells.remove(&cell);
        }
    }

    fn grow(&self, file: &mut File, end: u64) {
        if self.has_size() {
            file.size = file.size.max(end);
        }
    }

    fn read_fits(&self, file: &File, at: u64, cells: u64, got: &[Value]) -> bool {
        let len = got.len() as u64;
        let size_fits = if len == cells { file.size >= at + cells } else { file.size.max(at) == at + len };
        let cells_fit = (at..)
            .zip(got)
            .all(|(cell, value)| !self.has(cell) || file.cells.get(&cell).copied().unwrap_or_default() == *value);
        (!self.has_size() || size_fits) && cells_fit
    }
}

impl Model for Files {
    type State = File;
    type Call = FileCall;
    type Key = ();

    fn step(&self, file: &File, call: &FileCall) -> Vec<File> {
        let mut next = file.clone();
        match call {
            FileCall::Write { at, values } => self.write(&mut next, *at, values),
            FileCall::Torn { at, values, fronts } => {
                return fronts
                    .iter()
                    .chain([&values.len()])
                    .map(|front| {
                        let mut next = file.clone();
                        self.write(&mut next, *at, &values[..*front]);
                        next
                    })
                    .collect();
            }
            FileCall::Append { values } => self.write(&mut next, file.size, values),
            FileCall::Truncate { size } => {
                drop(next.cells.split_off(size));
                if self.has_size() {
                    next.size = *size;
                }
            }
            FileCall::Punch { at, cells } => self.punch(&mut next, *at, *cells),
            FileCall::Zero { at, cells } => {
                self.punch(&mut next, *at, *cells);
                self.grow(&mut next, at + cells);
            }
            FileCall::Reserve { at, cells } => self.grow(&mut next, at + cells),
            FileCall::Chmod { mode } if self.has_size() => next.mode = *mode,
            FileCall::Chmod { .. } => {}
            FileCall::Read { at, cells, got } if self.read_fits(file, *at, *cells, got) => {}
            FileCall::Read { .. } => return Vec::new(),
            FileCall::Stat { size, mode } if !self.has_size() || (file.size, file.mode) == (*size, *mode) => {}
            FileCall::Stat { .. } => return Vec::new(),
        }
        vec![next]
    }

    fn only_looks(&self, call: &FileCall) -> bool {
        matches!(call, FileCall::Read { .. } | FileCall::Stat { .. })
    }

    fn keys(&self, call: &FileCall) -> Vec<((), Access)> {
        let access = if self.only_looks(call) { Access::Shared } else { Access::Exclusive };
        vec![((), access)]
    }
}
