//! Models of Weft's protocols, checked by exhaustive search within bounds.
//!
//! A model is the protocol without its engineering: atomic steps in any order, any number of leaders that don't know
//! of each other. Each rule names the function that implements it; where a rule is a pure function the model calls
//! that very function. Each rule can be broken on purpose: a model that does not notice is worth nothing.
#![forbid(unsafe_code)]

pub mod journal;
pub mod managers;
pub mod members;
pub mod search;
pub mod transactions;
pub mod zones;
