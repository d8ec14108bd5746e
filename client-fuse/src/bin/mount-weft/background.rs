//! The program in the background: started by the one that the user called, which waits until it serves.
//!
//! It is a new process rather than a fork, so that no thread and no lock is half copied. Its standard output is a pipe
//! to the caller; one line on it says that the mount answers. What it logs until then goes to the caller's standard error.

use crate::Arguments;
use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, dup2_stderr, dup2_stdout, getppid, setsid};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const MOUNTED: &str = "mounted";

/// Starts the program that serves; returns when it does.
pub fn start(arguments: &Arguments) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command.arg0("mount.weft").arg(&arguments.source).arg(std::path::absolute(&arguments.mountpoint)?);
    for options in &arguments.options {
        command.arg("-o").arg(options);
    }
    if arguments.verbose {
        command.arg("-v");
    }
    command.arg(format!("--serve-for={}", std::process::id()));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start the program that serves")?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut line).context("waiting for the mount")?;
    }
    if line.trim_end() == MOUNTED {
        return Ok(());
    }
    let status = child.wait().context("waiting for the program that serves")?;
    match status.code() {
        // It has said why.
        Some(code) if code != 0 => std::process::exit(code),
        _ => bail!("the program that serves ended before it had mounted ({status})"),
    }
}

/// Makes this process the one in the background. It dies with its parent until it serves.
pub fn attach(parent: i32) -> anyhow::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGTERM).context("prctl")?;
    if getppid() != Pid::from_raw(parent) {
        bail!("the program that started the mount is gone");
    }
    // Signals of the caller's terminal are not for us.
    let _ = setsid();
    Ok(())
}

/// Whom to tell that the mount answers.
pub enum Ready {
    Foreground,
    Parent { log_file: Option<PathBuf> },
}

impl Ready {
    /// The mount answers. From here on the log goes to its file, or, if standard error is one, stays there.
    pub fn tell(self) -> anyhow::Result<()> {
        let Self::Parent { log_file } = self else { return Ok(()) };
        nix::sys::prctl::set_pdeathsig(None).context("prctl")?;
        std::env::set_current_dir("/").context("leaving the working directory")?;
        let null = OpenOptions::new().read(true).write(true).open("/dev/null").context("/dev/null")?;
        match log_file {
            Some(path) => dup2_stderr(open_log(&path)?).context("the log")?,
            None if is_file(&std::io::stderr()) => {}
            None => dup2_stderr(&null).context("standard error")?,
        }
        // If nobody reads it any more, the mount stays all the same.
        let _ = writeln!(std::io::stdout(), "{MOUNTED}");
        dup2_stdout(&null).context("standard output")?;
        Ok(())
    }
}

pub fn open_log(path: &Path) -> anyhow::Result<File> {
    let open = OpenOptions::new().create(true).append(true).open(path);
    open.with_context(|| format!("cannot open the log {}", path.display()))
}

fn is_file(fd: &impl std::os::fd::AsFd) -> bool {
    nix::sys::stat::fstat(fd).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFREG)
}
