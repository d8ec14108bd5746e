//! `weft completion` and `weft man`: made from the definition of the command line.

use crate::arguments::Arguments;
use crate::output::print;
use anyhow::{Context, Result};
use clap::CommandFactory;
use std::path::Path;

pub fn completion(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "weft", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// One page per verb.
pub fn manual(directory: &Path) -> Result<()> {
    let failed =
        || format!("can't write manual pages into {}; expected a directory where you may write", directory.display());
    std::fs::create_dir_all(directory).with_context(failed)?;
    clap_mangen::generate_to(Arguments::command(), directory).with_context(failed)
}
