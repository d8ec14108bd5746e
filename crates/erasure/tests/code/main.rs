//! The codes as their users see them.

mod kernels;
mod losses;
mod support;
