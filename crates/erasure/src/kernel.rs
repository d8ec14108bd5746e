//! The inner loops, one per instruction set, chosen when the process starts.

mod scalar;

use core::fmt;

use crate::product::Group;

/// An instruction set that a code can run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Table look-ups, byte by byte; runs everywhere.
    Scalar,
}

/// Coefficients in the form that a kernel wants.
#[derive(Debug)]
pub(crate) enum Tables {
    /// The coefficients themselves.
    Bytes(Vec<u8>),
}

impl Kernel {
    /// All kernels, the fastest first.
    pub const ALL: [Self; 1] = [Self::Scalar];

    /// The fastest that this machine supports.
    pub fn best() -> Self {
        Self::ALL.into_iter().find(|kernel| kernel.is_supported()).unwrap_or(Self::Scalar)
    }

    /// Whether this machine has the instructions.
    pub fn is_supported(self) -> bool {
        match self {
            Self::Scalar => true,
        }
    }

    pub(crate) fn tables(self, coefficients: impl Iterator<Item = u8>) -> Tables {
        match self {
            Self::Scalar => Tables::Bytes(coefficients.collect()),
        }
    }

    /// Computes a group's outputs. All slices are `len` bytes long.
    pub(crate) fn run(self, group: &Group, sources: &[&[u8]], out: &mut [&mut [u8]], len: usize) {
        match &group.tables {
            Tables::Bytes(coefficients) => scalar::run(coefficients, sources, out, 0..len),
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
        })
    }
}
