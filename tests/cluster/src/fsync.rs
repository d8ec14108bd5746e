//! Does what fsync acknowledged survive?
//!
//! The writer runs a plan: operations that follow from a seed, each made durable before the next begins. After each it
//! prints one line into a pipe, which `survivor` appends to a file that is not on the filesystem under test. After
//! whatever happened, the checker replays the plan up to the last line and compares. One operation per thread may have
//! been under way: it may have happened, or not, or, if it is a write, for some of its bytes.

pub mod check;
pub mod plan;
pub mod survivor;
pub mod write;
