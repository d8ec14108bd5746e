//! First maps and changes of them, by the rules that every map keeps.

mod change;
mod common;
mod failover;
mod form;
