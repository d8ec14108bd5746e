//! What the suites need: packages of the distribution, programs from crates.io, a shim.

use crate::Suite;
use crate::process;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use weft_cluster_tests::mount::privileged;

const INSTALL_TIME: Duration = Duration::from_secs(900);
const SHIM: &str = include_str!("shim.c");

/// A program of the distribution: its name, its package.
const PROGRAMS: [(&str, &str, &[Suite]); 7] = [
    ("mkfs.ext4", "e2fsprogs", &[Suite::Pjdfstest, Suite::Acl]),
    ("setfacl", "acl", &[Suite::Acl]),
    ("getfattr", "attr", &[Suite::Acl]),
    ("cc", "gcc", &[Suite::Pjdfstest, Suite::Fsx, Suite::Kill]),
    ("fio", "fio", &[Suite::Fio, Suite::Kill]),
    ("python3", "python3", &[Suite::Sqlite, Suite::Kill, Suite::Acl]),
    ("git", "git", &[Suite::Tree, Suite::Kill]),
];
/// A crate with a program of its name, and the version: another one may ask for other things.
const CRATES: [(&str, &str, &[Suite]); 2] =
    [("pjdfstest", "0.2.2", &[Suite::Pjdfstest, Suite::Kill]), ("fsx", "0.3.2", &[Suite::Fsx, Suite::Kill])];

pub struct Tools {
    directory: PathBuf,
}

impl Tools {
    /// Installs what the suites need and is not there yet. Crates go below `directory`.
    pub fn install(directory: &Path, suites: &[Suite]) -> Result<Tools> {
        std::fs::create_dir_all(directory).with_context(|| format!("can't create {}", directory.display()))?;
        let tools = Tools { directory: directory.canonicalize()? };
        let wanted = |by: &[Suite]| by.iter().any(|suite| suites.contains(suite));
        let missing: Vec<&str> =
            PROGRAMS.iter().filter(|(program, _, by)| wanted(by) && !installed(program)).map(|p| p.1).collect();
        if !missing.is_empty() {
            println!("installing {}", missing.join(", "));
            let apt = |arguments: &[&str]| {
                let mut command = privileged(Path::new("apt-get"));
                command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments);
                process::run(command, &tools.directory.join("apt.log"), INSTALL_TIME)
            };
            apt(&["update"])?;
            apt(&[&["install", "-y", "--no-install-recommends"], missing.as_slice()].concat())?;
        }
        for (name, version, by) in CRATES {
            if wanted(by) {
                tools.install_crate(name, version)?;
            }
        }
        if wanted(&[Suite::Pjdfstest, Suite::Fsx, Suite::Kill]) {
            tools.build_shim()?;
        }
        Ok(tools)
    }

    /// A program from crates.io.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join("bin").join(name)
    }

    /// See `shim.c`.
    pub fn shim(&self) -> PathBuf {
        self.directory.join("shim.so")
    }

    fn install_crate(&self, name: &str, version: &str) -> Result<()> {
        let output = Command::new(self.program(name)).arg("--version").output();
        let right = format!("{name} {version}");
        if output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim() == right) {
            return Ok(());
        }
        println!("installing {name} {version}");
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(["install", "--locked", "--force", "--version", version, "--root"]);
        command.arg(&self.directory).arg("--target-dir").arg(self.directory.join("build")).arg(name);
        process::run(command, &self.directory.join(format!("{name}.log")), INSTALL_TIME)
    }

    fn build_shim(&self) -> Result<()> {
        let source = self.directory.join("shim.c");
        std::fs::write(&source, SHIM).with_context(|| format!("can't write {}", source.display()))?;
        let mut command = Command::new("cc");
        command.args(["-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o"]).arg(self.shim()).arg(&source).arg("-ldl");
        process::run(command, &self.directory.join("shim.log"), INSTALL_TIME)?;
        ensure!(self.shim().is_file(), "the compiler built no {}", self.shim().display());
        Ok(())
    }
}

fn installed(program: &str) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", "command -v \"$0\" || test -x /usr/sbin/\"$0\"", program]);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
