//! What the namespace promises to those who mount it: every operation, its errors, its effects on attributes; once and
//! for good.

mod acl;
mod attributes;
mod beyond;
mod check;
mod contents;
mod data;
mod locks;
mod names;
mod once;
mod pages;
mod renames;
mod rig;
mod space;
mod transactions;
