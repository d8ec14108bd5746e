//! Where the programs under test are.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug)]
pub struct Programs {
    pub weftd: PathBuf,
    pub weft: PathBuf,
    pub mount: PathBuf,
}

/// The packages to build for `Programs`.
pub const PACKAGES: [&str; 3] = ["weftd", "weft-cli", "weft-fuse"];

impl Programs {
    pub fn in_directory(directory: &Path) -> Result<Programs> {
        let find = |name: &str| {
            let path = directory.join(name);
            if !path.is_file() {
                bail!("{} is not built: `cargo build --profile ci` builds it", path.display());
            }
            Ok(path)
        };
        Ok(Programs { weftd: find("weftd")?, weft: find("weft")?, mount: find("mount-weft")? })
    }

    /// Beside the test program that runs: tests are in `deps` of the directory where programs are.
    pub fn beside_this_test() -> Result<Programs> {
        let this = std::env::current_exe().context("can't find this program")?;
        let directory = this.ancestors().nth(2).context("this program is not in a directory")?;
        Programs::in_directory(directory)
    }
}
