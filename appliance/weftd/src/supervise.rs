//! The supervisor: a small process that starts the daemon, reports its death at once, and starts it again.
//!
//! It does nothing else, so that it does not die itself: no thread, no memory that grows, nobody it waits for. What it has
//! to tell the cluster is a datagram (`word`). The decisions
//! are a state machine without clock (`Backoff`); the loop below it waits for signals, children and time.
//!
//! Signals: SIGTERM and SIGINT ask the daemon to stop in order, and the supervisor ends when it has; a second one kills
//! it. When the supervisor itself is killed, the kernel kills the daemon (`bind_to_supervisor`), so a node never has
//! two daemons.
//!
//! A death is one line of JSON, appended to `supervisor.events` in the state directory and repeated on standard error.
//! The daemon is restarted after 100 ms, twice as long after each further death up to 10 s, and after 100 ms again
//! when it had lived for a minute. Two exit codes are final: 0 (it was asked to stop), and `EXIT_CONFIGURATION`.

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getppid};
use serde::Serialize;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use crate::notify::{self, State};
use crate::word::Word;

/// The daemon's exit code when starting it again can't help: its configuration is wrong (`EX_CONFIG`).
pub const EXIT_CONFIGURATION: u8 = 78;
/// Names the supervisor to the daemon.
const SUPERVISOR_VARIABLE: &str = "WEFTD_SUPERVISOR";
const EVENTS_FILE: &str = "supervisor.events";
/// The file of events is begun anew beyond this; the last one is kept beside it.
const EVENTS_BYTES_MAX: u64 = 1 << 20;
const LOCK_FILE: &str = "supervisor.lock";
/// The child is looked at so often even without a signal: a lost one must not hide a death.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

pub struct Options {
    /// The program to run, with its arguments.
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    /// Where lock and events go. One supervisor per directory.
    pub state_dir: PathBuf,
    pub backoff: BackoffOptions,
}

#[derive(Clone, Copy, Debug)]
pub struct BackoffOptions {
    pub first: Duration,
    pub max: Duration,
    /// A daemon that lived so long was well; its death counts as the first.
    pub well_after: Duration,
}

impl Default for BackoffOptions {
    fn default() -> BackoffOptions {
        BackoffOptions {
            first: Duration::from_millis(100),
            max: Duration::from_secs(10),
            well_after: Duration::from_secs(60),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    #[error("another supervisor runs in {}: stop it first, or use another state directory", .0.display())]
    Runs(PathBuf),
    #[error("{what}: {source}")]
    System { what: String, source: std::io::Error },
}

fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> SuperviseError {
    let what = what.into();
    move |source| SuperviseError::System { what, source }
}

fn errno(what: &str) -> impl FnOnce(Errno) -> SuperviseError {
    let what = what.to_string();
    move |source| SuperviseError::System { what, source: source.into() }
}

/// Called first by the daemon: from then on it dies with its supervisor. Without a supervisor it does nothing.
pub fn bind_to_supervisor() -> Result<(), SuperviseError> {
    let Some(supervisor) = std::env::var(SUPERVISOR_VARIABLE).ok().and_then(|pid| pid.parse::<i32>().ok()) else {
        return Ok(());
    };
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(errno("can't tie the daemon to its supervisor"))?;
    // It may have died before the line above; then no signal will come.
    if getppid() != Pid::from_raw(supervisor) {
        let source = std::io::Error::other("the supervisor died while the daemon started");
        return Err(SuperviseError::System { what: "not started".into(), source });
    }
    Ok(())
}

/// How long to wait before the next start.
#[derive(Clone, Debug)]
pub struct Backoff {
    options: BackoffOptions,
    next: Duration,
}

impl Backoff {
    pub fn new(options: BackoffOptions) -> Backoff {
        Backoff { options, next: options.first }
    }

    pub fn after_death(&mut self, lived: Duration) -> Duration {
        if lived >= self.options.well_after {
            self.next = self.options.first;
        }
        let wait = self.next;
        self.next = (wait * 2).min(self.options.max);
        wait
    }
}

/// One line of the events file.
#[derive(Debug, Serialize)]
struct Death {
    event: &'static str,
    /// Nanoseconds since 1970.
    time_ns: u64,
    pid: u32,
    /// How it ended: one of the two.
    exit_code: Option<i32>,
    signal: Option<i32>,
    lived_ms: u64,
    /// When it will be started again; none if it will not.
    restart_in_ms: Option<u64>,
}

struct Events {
    path: PathBuf,
}

impl Events {
    /// A full disk must not stop the restart, so a line that can't be written is only complained about; and standard error
    /// is often a file on the same disk.
    fn append(&self, death: &Death) {
        let Ok(mut line) = serde_json::to_string(death) else { return };
        let mut stderr = std::io::stderr();
        let _ = writeln!(stderr, "weftd supervise: {line}");
        line.push('\n');
        if let Err(error) = self.write(&line) {
            let _ = writeln!(stderr, "weftd supervise: can't write {}: {error}", self.path.display());
        }
    }

    fn write(&self, line: &str) -> std::io::Result<()> {
        if std::fs::metadata(&self.path).is_ok_and(|m| m.len() > EVENTS_BYTES_MAX) {
            std::fs::rename(&self.path, self.path.with_extension("events.old"))?;
        }
        OpenOptions::new().create(true).append(true).open(&self.path)?.write_all(line.as_bytes())
    }
}

/// Held for the supervisor's life; the file has its process id.
fn lock(state_dir: &Path) -> Result<Flock<File>, SuperviseError> {
    let path = state_dir.join(LOCK_FILE);
    let what = format!("can't lock {}", path.display());
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
    let file = file.map_err(system(&what))?;
    let mut held = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(held) => held,
        Err((_, Errno::EWOULDBLOCK)) => return Err(SuperviseError::Runs(state_dir.into())),
        Err((_, error)) => return Err(errno(&what)(error)),
    };
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut held).map_err(system(&what))?;
    Ok(held)
}

/// Why the loop woke up.
enum Woken {
    Stop,
    Child,
    Timeout,
}

struct Signals {
    descriptor: SignalFd,
}

impl Signals {
    /// Must be called while the process has one thread: others would not block the signals.
    fn block() -> Result<Signals, SuperviseError> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD, Signal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block().map_err(errno("can't block signals"))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let descriptor = SignalFd::with_flags(&set, flags).map_err(errno("can't wait for signals"))?;
        Ok(Signals { descriptor })
    }

    fn wait(&mut self, until: Instant) -> Result<Woken, SuperviseError> {
        loop {
            while let Some(info) = self.descriptor.read_signal().map_err(errno("can't read signals"))? {
                match Signal::try_from(info.ssi_signo as i32) {
                    Ok(Signal::SIGTERM | Signal::SIGINT) => return Ok(Woken::Stop),
                    Ok(Signal::SIGCHLD) => return Ok(Woken::Child),
                    // The terminal went away; the node stays.
                    _ => {}
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Woken::Timeout);
            }
            // Rounded up, so that the loop does not spin through the last millisecond.
            let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            let mut descriptors = [PollFd::new(self.descriptor.as_fd(), PollFlags::POLLIN)];
            match poll(&mut descriptors, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(errno("can't wait for signals")(error)),
            }
        }
    }
}

/// Runs the program until it ends for good, and returns its last exit code.
pub fn supervise(options: &Options) -> Result<u8, SuperviseError> {
    let _lock = lock(&options.state_dir)?;
    let mut signals = Signals::block()?;
    let mut backoff = Backoff::new(options.backoff);
    let events = Events { path: options.state_dir.join(EVENTS_FILE) };
    loop {
        let mut child = start(options)?;
        let started = Instant::now();
        let (status, asked) = until_death(&mut child, &mut signals)?;
        let word = Word::take(&options.state_dir);
        word.iter().for_each(Word::say);
        let lived = started.elapsed();
        let last = asked || matches!(status.code(), Some(code) if code == 0 || code == EXIT_CONFIGURATION as i32);
        let wait = (!last).then(|| backoff.after_death(lived));
        if !status.success() {
            events.append(&death(child.id(), status, lived, wait));
        }
        let Some(wait) = wait else {
            return Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
        };
        notify::notify(&State::Status(format!("weftd died ({status}) and is started again")));
        let until = Instant::now() + wait;
        loop {
            match signals.wait(until)? {
                Woken::Stop => return Ok(0),
                Woken::Child => {}
                Woken::Timeout => break,
            }
        }
        word.iter().for_each(Word::say);
    }
}

fn start(options: &Options) -> Result<Child, SuperviseError> {
    let mut command = Command::new(&options.program);
    command.args(&options.arguments).stdin(Stdio::null());
    command.env(SUPERVISOR_VARIABLE, std::process::id().to_string());
    command.spawn().map_err(system(format!("can't start {}", options.program.display())))
}

/// Waits for the child's end, and says whether it was asked for.
fn until_death(child: &mut Child, signals: &mut Signals) -> Result<(ExitStatus, bool), SuperviseError> {
    let mut asked = false;
    loop {
        if let Some(status) = child.try_wait().map_err(system("can't wait for weftd"))? {
            return Ok((status, asked));
        }
        if let Woken::Stop = signals.wait(Instant::now() + LOOK_INTERVAL)? {
            let signal = if asked { Signal::SIGKILL } else { Signal::SIGTERM };
            asked = true;
            notify::notify(&State::Stopping);
            // It has not been waited for, so the process id is still its own.
            match kill(Pid::from_raw(child.id() as i32), signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(errno("can't stop weftd")(error)),
            }
        }
    }
}

fn death(pid: u32, status: ExitStatus, lived: Duration, wait: Option<Duration>) -> Death {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Death {
        event: "death",
        time_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        pid,
        exit_code: status.code(),
        signal: status.signal(),
        lived_ms: millis(lived),
        restart_in_ms: wait.map(millis),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("weftd-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }

        fn options(&self, script: &str) -> Options {
            let fast = BackoffOptions { first: Duration::from_millis(1), ..BackoffOptions::default() };
            Options {
                program: "/bin/sh".into(),
                arguments: vec!["-c".into(), script.into(), "sh".into(), self.0.clone().into()],
                state_dir: self.0.clone(),
                backoff: fast,
            }
        }

        fn deaths(&self) -> Vec<serde_json::Value> {
            let text = std::fs::read_to_string(self.0.join(EVENTS_FILE)).unwrap_or_default();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn waits_longer_after_each_death_and_forgets() {
        let seconds = Duration::from_secs;
        let options = BackoffOptions { first: seconds(1), max: seconds(5), well_after: seconds(60) };
        let mut backoff = Backoff::new(options);
        let waits: Vec<u64> = [0, 1, 59, 2, 60, 0].map(|lived| backoff.after_death(seconds(lived)).as_secs()).into();
        assert_eq!(waits, [1, 2, 4, 5, 1, 2]);
    }

    #[test]
    fn starts_again_what_died_and_tells() {
        let state = Scratch::new("again");
        // Dies by a signal, then with a code, then ends well.
        let script = r#"echo x >> "$1/starts"
            case $(wc -l < "$1/starts") in 1) kill -9 $$ ;; 2) exit 3 ;; esac"#;
        assert_eq!(supervise(&state.options(script)).unwrap(), 0);
        let deaths = state.deaths();
        assert_eq!(deaths.len(), 2);
        assert_eq!((&deaths[0]["signal"], &deaths[0]["exit_code"]), (&9.into(), &serde_json::Value::Null));
        assert_eq!((&deaths[1]["exit_code"], &deaths[1]["restart_in_ms"]), (&3.into(), &2.into()));
    }

    #[test]
    fn does_not_start_again_what_is_configured_wrongly() {
        let state = Scratch::new("final");
        assert_eq!(supervise(&state.options("exit 78")).unwrap(), EXIT_CONFIGURATION);
        let deaths = state.deaths();
        assert_eq!(deaths.len(), 1);
        assert!(deaths[0]["restart_in_ms"].is_null());
    }

    #[test]
    fn tells_the_child_who_supervises() {
        let state = Scratch::new("parent");
        let script = r#"test "$WEFTD_SUPERVISOR" = "$PPID" || exit 78"#;
        assert_eq!(supervise(&state.options(script)).unwrap(), 0);
    }

    #[test]
    fn there_is_one_supervisor_per_state_directory() {
        let state = Scratch::new("lock");
        let _held = lock(&state.0).unwrap();
        assert!(matches!(supervise(&state.options("true")), Err(SuperviseError::Runs(_))));
    }

    #[test]
    fn says_what_can_not_be_started() {
        let state = Scratch::new("missing");
        let options = Options { program: "/nowhere/weftd".into(), ..state.options("") };
        assert!(supervise(&options).unwrap_err().to_string().contains("/nowhere/weftd"));
    }

    #[test]
    fn begins_the_events_anew_when_they_are_many() {
        let state = Scratch::new("events");
        let events = Events { path: state.0.join(EVENTS_FILE) };
        std::fs::write(&events.path, vec![b'\n'; EVENTS_BYTES_MAX as usize + 1]).unwrap();
        let status = ExitStatus::from_raw(9);
        events.append(&death(1, status, Duration::ZERO, None));
        assert_eq!(state.deaths().len(), 1);
        assert!(state.0.join("supervisor.events.old").exists());
    }
}
