//! The inner loops, one per instruction set, chosen when the process starts.

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions")]
mod avx2;
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions")]
mod avx2_gfni;
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions")]
mod avx512_gfni;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod tables;

use core::fmt;

use crate::product::Group;

/// An instruction set that a code can run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// 64-byte vectors, one multiplication by an 8x8 bit matrix per vector and coefficient.
    Avx512Gfni,
    /// The same with 32-byte vectors.
    Avx2Gfni,
    /// 32-byte vectors, two 16-entry look-ups per vector and coefficient.
    Avx2,
    /// Table look-ups, byte by byte; runs everywhere.
    Scalar,
}

/// Coefficients in the form that a kernel wants, by source, then by output.
#[derive(Debug)]
pub(crate) enum Tables {
    None,
    /// For GFNI: each coefficient as an 8x8 bit matrix.
    #[cfg(target_arch = "x86_64")]
    BitMatrices(Vec<u64>),
    /// For byte shuffles: the products with each low and with each high half of a byte.
    #[cfg(target_arch = "x86_64")]
    Halves(Vec<tables::Halves>),
}

impl Kernel {
    /// All kernels, the fastest first.
    pub const ALL: [Self; 4] = [Self::Avx512Gfni, Self::Avx2Gfni, Self::Avx2, Self::Scalar];

    /// The fastest that this machine supports.
    pub fn best() -> Self {
        Self::ALL.into_iter().find(|kernel| kernel.is_supported()).unwrap_or(Self::Scalar)
    }

    /// Whether this machine has the instructions.
    #[cfg(target_arch = "x86_64")]
    pub fn is_supported(self) -> bool {
        match self {
            Self::Avx512Gfni => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("gfni")
            }
            Self::Avx2Gfni => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("gfni"),
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            Self::Scalar => true,
        }
    }

    /// Whether this machine has the instructions.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_supported(self) -> bool {
        self == Self::Scalar
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn tables(self, coefficients: &[u8]) -> Tables {
        match self {
            Self::Avx512Gfni | Self::Avx2Gfni => {
                Tables::BitMatrices(coefficients.iter().map(|&coefficient| tables::bit_matrix(coefficient)).collect())
            }
            Self::Avx2 => Tables::Halves(coefficients.iter().map(|&coefficient| tables::halves(coefficient)).collect()),
            Self::Scalar => Tables::None,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn tables(self, _coefficients: &[u8]) -> Tables {
        Tables::None
    }

    /// Computes a group's outputs. All slices are `len` bytes long; the machine supports the kernel.
    #[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "vector instructions"))]
    pub(crate) fn run(self, group: &Group, sources: &[&[u8]], out: &mut [&mut [u8]], len: usize) {
        let done = match (self, &group.tables) {
            // SAFETY: `Product::new` has made sure that the machine has the kernel's instructions, and
            // `Product::apply` that all slices are `len` bytes long and as many as the group says.
            #[cfg(target_arch = "x86_64")]
            (Self::Avx512Gfni, Tables::BitMatrices(tables)) => unsafe {
                avx512_gfni::run(group.normal, tables, sources, out, len)
            },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (_, Tables::BitMatrices(tables)) => unsafe { avx2_gfni::run(group.normal, tables, sources, out, len) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (_, Tables::Halves(tables)) => unsafe { avx2::run(group.normal, tables, sources, out, len) },
            (_, Tables::None) => 0,
        };
        scalar::run(&group.coefficients, sources, out, done..len);
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Avx512Gfni => "AVX-512+GFNI",
            Self::Avx2Gfni => "AVX2+GFNI",
            Self::Avx2 => "AVX2",
            Self::Scalar => "scalar",
        })
    }
}
