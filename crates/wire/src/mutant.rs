//! Deliberately broken builds: with `--cfg weft_mutants`, the environment's `WEFT_MUTANT` names a rule that this process
//! breaks. Whatever checks Weft must notice.

#[cfg(all(weft_mutants, not(debug_assertions)))]
compile_error!("a build that can be broken is for tests alone: build it with debug assertions");

/// Whether this process breaks the rule of this name. Never in any other build.
#[cfg(not(weft_mutants))]
#[inline(always)]
pub const fn mutant(_name: &str) -> bool {
    false
}

/// Whether this process breaks the rule of this name.
#[cfg(weft_mutants)]
pub fn mutant(name: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("WEFT_MUTANT").unwrap_or_default()) == name
}
