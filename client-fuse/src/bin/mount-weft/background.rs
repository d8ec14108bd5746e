//! The program in the background: started by the one that the user called, which waits until it serves.
//!
//! It is a new process rather than a fork, so that no thread and no lock is half copied. Its standard output is a pipe
//! to the caller; one line on it says that the mount answers. Its standard input is a pipe from the caller; its end
//! before then means that the caller was killed. What it logs until then goes to the caller's standard error.

use crate::Arguments;
use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, dup2_stderr, dup2_stdout, setsid};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

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
    command.arg("--serve").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start the program that serves")?;
    // Open until this process ends.
    let _alive = child.stdin.take();
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

/// The mount answers: the caller may end.
static SERVES: AtomicBool = AtomicBool::new(false);

/// Makes this process the one in the background. It ends with its caller until it serves.
pub fn attach() -> anyhow::Result<()> {
    // Signals of the caller's terminal are not for us.
    let _ = setsid();
    let watch = || {
        let mut nothing = [0];
        while matches!(std::io::stdin().read(&mut nothing), Ok(1..)) {}
        if !SERVES.load(Ordering::Acquire) {
            let _ = writeln!(std::io::stderr(), "mount.weft: given up before the mount answered");
            // The session's own end, if it has begun, unmounts.
            let _ = nix::sys::signal::kill(Pid::this(), Signal::SIGTERM);
        }
    };
    std::thread::Builder::new().name("caller".into()).spawn(watch)?;
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
        std::env::set_current_dir("/").context("leaving the working directory")?;
        let null = OpenOptions::new().read(true).write(true).open("/dev/null").context("/dev/null")?;
        match log_file {
            Some(path) => dup2_stderr(open_log(&path)?).context("the log")?,
            None if is_file(&std::io::stderr()) => {}
            None => dup2_stderr(&null).context("standard error")?,
        }
        SERVES.store(true, Ordering::Release);
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
