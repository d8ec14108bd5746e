//! What a cluster needs of the machine besides what was needed to build it: installed here if it is missing.

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};

const FUSE: &str = "/dev/fuse";

/// A program and the Debian package that has it.
struct Tool {
    program: &'static str,
    package: &'static str,
}

const UMOUNT: Tool = Tool { program: "umount", package: "mount" };
const MODPROBE: Tool = Tool { program: "modprobe", package: "kmod" };
/// What tests cut nodes off with.
const NETWORK: [Tool; 2] = [Tool { program: "ip", package: "iproute2" }, Tool { program: "nft", package: "nftables" }];

/// Installs and loads what is missing. What can't be had is left to the checks, which say what it is for.
pub fn prepare(say: impl Fn(&str)) -> Result<()> {
    let fuse = Path::new(FUSE).exists();
    let mut missing: Vec<&Tool> = [&UMOUNT].into_iter().filter(|tool| !tool.is_there()).collect();
    if !fuse && !MODPROBE.is_there() {
        missing.push(&MODPROBE);
    }
    if !missing.is_empty() {
        let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
        say(&format!("installing {}", packages.join(", ")));
        install(&packages)?;
    }
    if !fuse {
        say("loading the kernel's module fuse");
        // In a container it can't be loaded: the checks say so.
        let _ = as_root("modprobe").arg("fuse").stdin(Stdio::null()).status();
    }
    Ok(())
}

/// What tests of whole clusters need beyond that.
pub fn prepare_tests() -> Result<()> {
    let missing: Vec<&str> = NETWORK.iter().filter(|tool| !tool.is_there()).map(|tool| tool.package).collect();
    if missing.is_empty() { Ok(()) } else { install(&missing) }
}

impl Tool {
    fn is_there(&self) -> bool {
        let places = std::env::var_os("PATH").unwrap_or_default();
        // What only root needs is not in everyone's path.
        let places = std::env::split_paths(&places).chain(["/usr/sbin".into(), "/sbin".into()]);
        places.into_iter().any(|place| place.join(self.program).is_file())
    }
}

fn install(packages: &[&str]) -> Result<()> {
    if !(Tool { program: "apt-get", package: "apt" }).is_there() {
        bail!("this is no Debian: install what has the programs of Debian's packages {}", packages.join(", "));
    }
    for arguments in [&["update", "-qq"][..], &["install", "-y", "-qq", "--no-install-recommends"]] {
        let mut command = as_root("apt-get");
        command.args(arguments);
        if arguments.contains(&"install") {
            command.args(packages);
        }
        let status = command.stdin(Stdio::null()).status().context("can't start apt-get")?;
        if !status.success() {
            bail!("can't install {}: do it by hand, as root: apt-get install {0}", packages.join(" "));
        }
    }
    Ok(())
}

fn as_root(program: &str) -> Command {
    if nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_where_they_are() {
        assert!(Tool { program: "sh", package: "dash" }.is_there());
        assert!(!Tool { program: "no-such-program", package: "none" }.is_there());
    }
}
