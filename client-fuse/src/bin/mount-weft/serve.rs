//! Serving a mount: look for the filesystem, mount, serve until it is unmounted.

use crate::background::Ready;
use crate::source::Source;
use crate::{Arguments, EXIT_FAILED};
use anyhow::{Context, bail};
use nix::sys::signal::{SigSet, Signal};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tracing_subscriber::EnvFilter;
use weft_client::{ConnectError, ConnectOptions};
use weft_fuse::mount_options::MountOptions;
use weft_fuse::session::{Session, SessionOptions, Stopper};
use weft_fuse::weft::{Weft, network};
use weft_fuse::{Locks, ReaddirPlus};
use weft_reactor::{Core, CoreOptions, Handle, Idle};

/// After the signal to end, files that are still open are cut off after this long.
const END_WAIT: Duration = Duration::from_secs(5);
/// Pause before a way to the cluster is looked for again.
const ROUTE_AGAIN: Duration = Duration::from_secs(1);

pub fn serve(
    arguments: &Arguments,
    source: &Source,
    options: &MountOptions,
    ending: Ending,
    ready: Ready,
) -> anyhow::Result<()> {
    start_log(arguments, options)?;
    let connect = ConnectOptions {
        addresses: source.addresses.clone(),
        fs_name: source.name.clone(),
        host: host_name(),
        fail_after: options.fail_after,
    };
    probe(&connect)?;
    let defaults = SessionOptions::default();
    let session_options = SessionOptions {
        source: arguments.source.clone(),
        flags: options.flags,
        threads: options.threads.unwrap_or(defaults.threads),
        readdirplus: ReaddirPlus::Off,
        locks: Locks::Filesystem,
        ..defaults
    };
    let session = Session::mount(&arguments.mountpoint, session_options)?;
    let mountpoint = session.mountpoint().to_owned();
    let stopper = session.stopper();
    ending.set(session.stopper());
    let first_look = std::thread::Builder::new().name("first look".into()).spawn(move || {
        // Both are asked once, so that there is something to show while the cluster is away.
        let answered = std::fs::metadata(&mountpoint)
            .and_then(|_| nix::sys::statvfs::statvfs(&mountpoint).map_err(std::io::Error::from))
            .context("the mount doesn't answer");
        let told = answered.and_then(|_| ready.tell());
        if told.is_err() {
            let _ = stopper.stop();
        }
        told
    })?;
    let served = session.run(|_, handle| Weft::start(handle, connect.clone()));
    // It can't fail to end: the session that it looks at has ended.
    let told = first_look.join();
    served?;
    match told {
        Ok(told) => told,
        Err(_) => bail!("looking at the mount failed"),
    }
}

fn start_log(arguments: &Arguments, options: &MountOptions) -> anyhow::Result<()> {
    let default = if arguments.verbose { "debug" } else { "info" };
    let filter = options.log.as_deref().unwrap_or(default);
    let filter = EnvFilter::try_new(filter).with_context(|| format!("mount option 'log={filter}'"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        // A line that can't be written, for want of space, is lost: complaining of it there would end the mount.
        .log_internal_errors(false)
        .init();
    Ok(())
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "unknown".into() } else { name.trim().into() }
}

/// What the signals to end act on.
#[derive(Clone, Default)]
pub struct Ending(Arc<Mutex<Option<Stopper>>>);

impl Ending {
    fn set(&self, stopper: Stopper) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(stopper);
    }

    fn get(&self) -> Option<Stopper> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// SIGTERM and SIGINT unmount. Before it is mounted they end the program at once, and so does a second one.
pub fn catch_signals() -> anyhow::Result<Ending> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    // All threads that start from here on inherit it.
    signals.thread_block().context("blocking signals")?;
    let ending = Ending::default();
    let shared = ending.clone();
    let wait = move || {
        let Ok(signal) = signals.wait() else { return };
        let Some(stopper) = shared.get() else { std::process::exit(i32::from(EXIT_FAILED)) };
        tracing::info!(%signal, "unmounting");
        if let Err(errno) = stopper.stop() {
            tracing::warn!(%errno, "it may be unmounted already");
        }
        std::thread::spawn(|| {
            std::thread::sleep(END_WAIT);
            tracing::warn!("files are still open; they are cut off");
            std::process::exit(0)
        });
        let _ = signals.wait();
        std::process::exit(0);
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait)?;
    Ok(ending)
}

/// Looks for the filesystem before anything is mounted; waits for a cluster that is away.
fn probe(options: &ConnectOptions) -> anyhow::Result<()> {
    let mut core = Core::new(CoreOptions {
        name: "mount.weft".into(),
        idle: Idle::Adaptive { spin: Duration::ZERO },
        seed: weft_fuse::session::system_random(),
        pin: None,
    })?;
    let handle = core.handle();
    let outcome: Rc<RefCell<Option<Result<(), ConnectError>>>> = Rc::default();
    let (found, options) = (Rc::clone(&outcome), options.clone());
    let look = {
        let handle = handle.clone();
        async move {
            found.replace(Some(find(&handle, &options).await));
            handle.shutdown();
        }
    };
    handle.spawn("probe", look).detach();
    core.run()?;
    match outcome.take() {
        Some(outcome) => Ok(outcome?),
        None => bail!("looking for the filesystem ended without a result"),
    }
}

async fn find(handle: &Handle, options: &ConnectOptions) -> Result<(), ConnectError> {
    let started = handle.now();
    loop {
        match network(handle, &options.addresses) {
            Ok(network) => return weft_client::probe(network, handle.clone(), options).await,
            Err(error) => {
                let seconds = handle.now().since(started).as_secs();
                let reason = format!("no way to the cluster: {error}");
                if options.fail_after.is_some_and(|limit| handle.now().since(started) >= limit) {
                    return Err(ConnectError::TimedOut { seconds, reason });
                }
                tracing::warn!(waiting_s = seconds, "{reason}");
            }
        }
        handle.sleep(ROUTE_AGAIN).await;
    }
}
