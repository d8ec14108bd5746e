//! A matrix made ready for a kernel: shards out = matrix · shards in.

use crate::kernel::{Kernel, Tables};

/// Outputs that a kernel computes in one pass over the sources.
pub(crate) const OUTPUTS_MAX: usize = 4;

/// A matrix, its rows in groups of [`OUTPUTS_MAX`].
#[derive(Debug)]
pub(crate) struct Product {
    kernel: Kernel,
    sources: usize,
    groups: Vec<Group>,
}

/// Rows that are computed together.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) outputs: usize,
    /// Row 0 and column 0 are all ones, as in the parity matrix: output 0 is the XOR of the sources, and the first source
    /// enters every output as it is. Kernels save those multiplications.
    pub(crate) normal: bool,
    /// For each source in turn the coefficient of each output.
    pub(crate) coefficients: Vec<u8>,
    /// The same in the kernel's form.
    pub(crate) tables: Tables,
}

impl Product {
    /// The product with the matrix of these rows, all of the same length.
    ///
    /// # Panics
    /// When the machine lacks the kernel's instructions.
    pub(crate) fn new(kernel: Kernel, rows: &[&[u8]]) -> Self {
        // What makes it sound to run the kernel later.
        assert!(kernel.is_supported(), "this machine cannot run the {kernel} kernel");
        let sources = rows.first().map_or(0, |row| row.len());
        assert!(rows.iter().all(|row| row.len() == sources), "a matrix's rows have the same length");
        let groups = rows
            .chunks(OUTPUTS_MAX)
            .map(|rows| {
                let coefficients: Vec<u8> =
                    (0..sources).flat_map(|source| rows.iter().map(move |row| row[source])).collect();
                Group {
                    outputs: rows.len(),
                    normal: rows[0].iter().all(|&one| one == 1) && rows.iter().all(|row| row.first() == Some(&1)),
                    tables: kernel.tables(&coefficients),
                    coefficients,
                }
            })
            .collect();
        Self { kernel, sources, groups }
    }

    /// Overwrites `out` with the product.
    ///
    /// # Panics
    /// When the number of slices does not fit the matrix, or their lengths differ.
    pub(crate) fn apply(&self, sources: &[&[u8]], out: &mut [&mut [u8]]) {
        assert_eq!(sources.len(), self.sources, "one slice for each source");
        assert_eq!(out.len(), self.groups.iter().map(|group| group.outputs).sum(), "one slice for each output");
        let Some(len) = out.first().map(|first| first.len()) else { return };
        assert!(out.iter().all(|slice| slice.len() == len), "shards of one stripe have the same length");
        assert!(sources.iter().all(|slice| slice.len() == len), "shards of one stripe have the same length");
        let mut rest = out;
        for group in &self.groups {
            let (now, later) = rest.split_at_mut(group.outputs);
            self.kernel.run(group, sources, now, len);
            rest = later;
        }
    }
}
