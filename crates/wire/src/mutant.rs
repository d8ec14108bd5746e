//! Deliberately broken builds: with `--cfg weft_mutants` a process may be told to break a rule. Whatever checks Weft must
//! notice.

#[cfg(all(weft_mutants, not(debug_assertions)))]
compile_error!("a build that can be broken is for tests alone: build it with debug assertions");

#[cfg(weft_mutants)]
static CHOSEN: std::sync::OnceLock<String> = std::sync::OnceLock::new();

/// Has this process break the rule of this name from now on. Once.
#[cfg(weft_mutants)]
pub fn break_rule(name: String) {
    let _ = CHOSEN.set(name);
}

/// Whether this process breaks the rule of this name. Never in any other build.
#[cfg(not(weft_mutants))]
#[inline(always)]
pub const fn mutant(_name: &str) -> bool {
    false
}

/// Whether this process breaks the rule of this name.
#[cfg(weft_mutants)]
pub fn mutant(name: &str) -> bool {
    CHOSEN.get().is_some_and(|chosen| chosen == name)
}
