//! The rules of the repository, as tests.
//!
//! Each rule is a function from what is there to a list of violations. Each has two tests: one applies it to this
//! repository, the other, the canary, to a bad sample, so that a rule which sees nothing is itself seen.

#![forbid(unsafe_code)]

pub mod docs;
pub mod layers;
pub mod licences;
pub mod lints;
pub mod metadata;
pub mod paths;
pub mod purity;
pub mod readme;
pub mod sizes;
pub mod tree;

/// What is wrong, where, and what to do.
pub type Violations = Vec<String>;

/// Fails the test with all violations, one a line.
#[cfg(test)]
fn none(violations: Violations) {
    assert!(violations.is_empty(), "\n  {}\n", violations.join("\n  "));
}

/// A canary: the sample must give exactly one violation, and for this reason.
#[cfg(test)]
fn one(violations: Violations, reason: &str) {
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert!(violations.iter().all(|v| v.contains(reason)), "{violations:?}");
}
