//! `weft mount`: becomes `mount.weft`.

use crate::arguments::Mount;
use anyhow::{Result, anyhow, ensure};
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

const HELPER: &str = "mount.weft";
/// Where mount helpers are; often not in the PATH of users.
const DIRECTORIES: [&str; 4] = ["/sbin", "/usr/sbin", "/usr/local/sbin", "/usr/bin"];

/// Returns only if `mount.weft` could not be started.
pub fn mount(mount: &Mount) -> Result<()> {
    check_source(&mount.source)?;
    let directory = mount.directory.display();
    ensure!(mount.directory.is_dir(), "{directory} is no directory; create it first, or unmount what is dead there");
    let helper = helper();
    let mut command = Command::new(&helper);
    command.arg(&mount.source).arg(&mount.directory);
    if let Some(options) = &mount.options {
        command.args(["-o", options]);
    }
    let error = command.exec();
    Err(match error.kind() {
        ErrorKind::NotFound => anyhow!("there is no {HELPER}: install Weft's client"),
        _ => anyhow!("can't start {}: {error}", helper.display()),
    })
}

fn check_source(source: &str) -> Result<()> {
    let parts = source.rsplit_once('/').filter(|(hosts, fs)| !hosts.is_empty() && !fs.is_empty());
    ensure!(parts.is_some(), "{source:?} is not of the form HOST:PORT[,HOST:PORT...]/FILESYSTEM");
    Ok(())
}

/// Beside this program, or where helpers are, or wherever PATH says.
fn helper() -> PathBuf {
    let own = std::env::current_exe().ok().map(|path| path.with_file_name(HELPER));
    let usual = DIRECTORIES.iter().map(|directory| PathBuf::from(directory).join(HELPER));
    own.into_iter().chain(usual).find(|path| path.is_file()).unwrap_or_else(|| HELPER.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_name_hosts_and_a_filesystem() {
        assert!(check_source("127.0.0.1:7001,127.0.0.1:7002/home").is_ok());
        for wrong in ["home", "127.0.0.1:7001", "/home", "127.0.0.1:7001/"] {
            assert!(check_source(wrong).is_err(), "{wrong}");
        }
    }
}
