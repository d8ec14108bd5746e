//! One node: a supervisor process with the daemon below it.

use crate::layout::Layout;
use crate::memory::Group;
use crate::process;
use crate::programs::Programs;
use crate::wait;
use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A killed process is gone within this, unless the machine is stuck.
const DEATH_DEADLINE: Duration = Duration::from_secs(30);

pub struct Node {
    /// From 1.
    pub number: usize,
    pub directory: PathBuf,
    pub data: SocketAddr,
    pub control: SocketAddr,
    /// What its processes may use of memory; set it before the start.
    pub memory: Option<Group>,
    /// Set if this program started it, and must wait for it.
    child: Option<Child>,
}

impl Node {
    pub fn new(layout: &Layout, state: &Path, number: usize) -> Node {
        Node {
            number,
            directory: layout.node_directory(state, number),
            data: layout.data_address(number),
            control: layout.control_address(number),
            memory: None,
            child: None,
        }
    }

    pub fn config(&self) -> PathBuf {
        self.directory.join("weftd.toml")
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    pub fn drive(&self) -> PathBuf {
        self.directory.join(format!("node{}.drive", self.number))
    }

    /// Names another drive in the node's configuration, beside its first; the daemon sees it when it starts.
    pub fn configure_drive(&self, file: &str, bytes: u64) -> Result<()> {
        let text = std::fs::read_to_string(self.config())?;
        Ok(std::fs::write(self.config(), format!("{text}\n[[drives]]\npath = \"{file}\"\nsize_bytes = {bytes}\n"))?)
    }

    pub fn log(&self) -> PathBuf {
        self.directory.join("weftd.log")
    }

    /// The supervisor's process, if it runs.
    pub fn supervisor(&self) -> Option<Pid> {
        let text = std::fs::read_to_string(self.directory.join("supervisor.lock")).ok()?;
        let pid = Pid::from_raw(text.trim().parse().ok()?);
        (process::alive(pid) && process::has_argument(pid, &self.config())).then_some(pid)
    }

    /// The daemon's process, if it runs.
    pub fn daemon(&self) -> Option<Pid> {
        let own = |pid: &Pid| process::alive(*pid) && process::has_argument(*pid, &self.config());
        process::children(self.supervisor()?).into_iter().find(own)
    }

    /// Starts the supervisor, with its output appended to the log. It outlives this program.
    pub fn start(&mut self, programs: &Programs) -> Result<()> {
        if self.supervisor().is_some() {
            return Ok(());
        }
        // A socket that a killed daemon left behind must not look like a living one.
        let _ = std::fs::remove_file(self.socket());
        let log = OpenOptions::new().create(true).append(true).open(self.log());
        let log = log.with_context(|| format!("can't open {}", self.log().display()))?;
        let mut command = match &self.memory {
            Some(group) => {
                // The shell joins the group and becomes the supervisor.
                let mut shell = Command::new("sh");
                shell.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(group.processes()).arg(&programs.weftd);
                shell
            }
            None => Command::new(&programs.weftd),
        };
        command.arg("supervise").arg("--config").arg(self.config());
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("can't start {}", programs.weftd.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until the daemon takes commands.
    pub fn wait_ready(&mut self, deadline: Duration) -> Result<()> {
        let what = format!("node{} answers on {}", self.number, self.socket().display());
        let result = wait::until(&what, deadline, || {
            if UnixStream::connect(self.socket()).is_ok() {
                return Ok(Some(()));
            }
            match self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                Some(status) => bail!("the supervisor of node{} ended: {status}", self.number),
                None => Ok(None),
            }
        });
        result.with_context(|| format!("the end of its log, {}:\n{}", self.log().display(), self.log_end()))
    }

    /// kill -9 of supervisor and daemon: what a power loss of the node leaves, but for the kernel's caches.
    pub fn kill(&mut self) -> Result<()> {
        let (supervisor, daemon) = (self.supervisor(), self.daemon());
        // The supervisor first: it would start the daemon again.
        for pid in supervisor.into_iter().chain(daemon) {
            process::signal(pid, Signal::SIGKILL)?;
        }
        self.wait_gone(supervisor, daemon, DEATH_DEADLINE)
    }

    /// kill -9 of the daemon alone; its supervisor starts it again.
    pub fn kill_daemon(&self) -> Result<()> {
        let daemon = self.daemon().with_context(|| format!("node{} has no daemon to kill", self.number))?;
        process::signal(daemon, Signal::SIGKILL)
    }

    /// Asks for an orderly stop. `wait_stopped` waits for it.
    pub fn terminate(&self) -> Result<()> {
        match self.supervisor() {
            Some(pid) => process::signal(pid, Signal::SIGTERM),
            None => Ok(()),
        }
    }

    pub fn wait_stopped(&mut self, deadline: Duration) -> Result<()> {
        let (supervisor, daemon) = (self.supervisor(), self.daemon());
        self.wait_gone(supervisor, daemon, deadline)
    }

    fn wait_gone(&mut self, supervisor: Option<Pid>, daemon: Option<Pid>, deadline: Duration) -> Result<()> {
        let what = format!("the processes of node{} end", self.number);
        wait::until(&what, deadline, || {
            if let Some(child) = &mut self.child {
                child.try_wait()?;
            }
            let gone = !supervisor.into_iter().chain(daemon).any(process::alive);
            Ok(gone.then_some(()))
        })?;
        self.child = None;
        Ok(())
    }

    /// The last lines of the log, for messages.
    pub fn log_end(&self) -> String {
        let text = String::from_utf8_lossy(&std::fs::read(self.log()).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
    }
}
