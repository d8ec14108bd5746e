//! A mount and the threads that serve it.
//!
//! Each thread owns a reactor, a channel of its own to the kernel and an instance of the filesystem. All channels draw
//! from the kernel's one queue, so whichever thread is free takes the next request; a request is answered on the
//! channel that it came from. The first thread that is told of the end (unmounted, cut, panicked) needs to tell the
//! others only in the last case: the kernel tells each channel by itself.

use crate::abi;
use crate::answer::Answer;
use crate::channel::{Channel, Closed, Received};
use crate::filesystem::Filesystem;
use crate::handshake::{self, Locks, ReaddirPlus};
use crate::mount::{self, MountError, MountId};
use crate::worker::{Peers, Reader, Worker};
use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use weft_reactor::{Core, CoreOptions, Handle, Idle};
use zerocopy::FromBytes;

#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// What the mount shows as its source.
    pub source: String,
    /// For mount(2).
    pub flags: MsFlags,
    /// At least 1, at most [`THREADS_MAX`].
    pub threads: usize,
    pub idle: Idle,
    pub readdirplus: ReaddirPlus,
    pub locks: Locks,
    /// How long [`Filesystem::destroy`] may take on each thread before it is cut off.
    pub destroy_wait: Duration,
}

pub const THREADS_MAX: usize = 64;
const THREADS_USUALLY_MAX: usize = 4;
const PROCESSORS_PER_THREAD: usize = 4;

/// The kernel sends its first message as it mounts; this is for one that never does.
const INIT_WAIT_MS: u16 = 10_000;

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            source: "weft".to_owned(),
            flags: MsFlags::empty(),
            threads: threads_for_host(),
            idle: Idle::Adaptive { spin: Duration::from_micros(20) },
            readdirplus: ReaddirPlus::Off,
            locks: Locks::Filesystem,
            destroy_wait: Duration::from_secs(2),
        }
    }
}

/// One for each four processors: with more, threads wake for each other's messages and hand requests over, and take the
/// processors of those who made them.
fn threads_for_host() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (processors / PROCESSORS_PER_THREAD).clamp(1, THREADS_USUALLY_MAX)
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("cannot start serving thread {index}: {reason}")]
    Thread { index: usize, reason: String },
    #[error("serving thread {index} panicked; {mountpoint} is unmounted")]
    Panicked { index: usize, mountpoint: PathBuf },
    #[error("serving thread {index} of {mountpoint} failed: {reason}")]
    Failed { index: usize, mountpoint: PathBuf, reason: String },
}

/// A directory that is mounted. Until [`run`](Self::run) serves it, whoever looks into it waits (killable).
#[derive(Debug)]
pub struct Session {
    channel: Option<Arc<Channel>>,
    mountpoint: PathBuf,
    mount_id: Option<MountId>,
    options: SessionOptions,
}

/// Ends a session from elsewhere.
#[derive(Clone, Debug)]
pub struct Stopper {
    mountpoint: PathBuf,
}

impl Stopper {
    /// Unmounts lazily. The session goes on until the last open file in it is closed.
    pub fn stop(&self) -> Result<(), Errno> {
        mount::unmount_lazily(&self.mountpoint)
    }
}

/// Mounts and serves until it is unmounted. `make` makes the filesystem of each thread, on that thread.
pub fn run<F: Filesystem>(
    mountpoint: &Path,
    options: SessionOptions,
    make: impl Fn(usize, &Handle) -> Rc<F> + Send + Sync,
) -> Result<(), SessionError> {
    Session::mount(mountpoint, options)?.run(make)
}

impl Session {
    /// Mounts, and agrees with the kernel on how to talk. The mount is in place when this returns.
    pub fn mount(mountpoint: &Path, options: SessionOptions) -> Result<Self, MountError> {
        let absolute = std::path::absolute(mountpoint).unwrap_or_else(|_| mountpoint.to_owned());
        let channel = Channel::open().map_err(|errno| match errno {
            Errno::EACCES | Errno::EPERM => MountError::NotRoot { mountpoint: absolute.clone() },
            errno => MountError::Device { errno },
        })?;
        mount::raise_pages_limit();
        mount::mount(&channel, &options.source, &absolute, options.flags, handshake::IO_BYTES_MAX)?;
        let mount_id = MountId::at(&absolute);
        let session = Self { channel: Some(Arc::new(channel)), mountpoint: absolute, mount_id, options };
        session.shake_hands()?;
        Ok(session)
    }

    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    pub fn stopper(&self) -> Stopper {
        Stopper { mountpoint: self.mountpoint.clone() }
    }

    /// Serves until it is unmounted or cut; all threads have ended when this returns, whatever applications still wait for.
    pub fn run<F: Filesystem>(
        mut self,
        make: impl Fn(usize, &Handle) -> Rc<F> + Send + Sync,
    ) -> Result<(), SessionError> {
        let Some(channel) = self.channel.take() else { return Ok(()) };
        let threads = self.options.threads.clamp(1, THREADS_MAX);
        let result = self.serve(channel, threads, &make);
        self.remove_dead_mount(result == Ok(Closed::Unmounted));
        result.map(|_| ())
    }

    fn serve<F: Filesystem>(
        &self,
        first: Arc<Channel>,
        threads: usize,
        make: &(impl Fn(usize, &Handle) -> Rc<F> + Send + Sync),
    ) -> Result<Closed, SessionError> {
        let mut channels = vec![Arc::clone(&first)];
        for index in 1..threads {
            let clone = Channel::clone_of(&first);
            let clone = clone.map_err(|errno| SessionError::Thread { index, reason: format!("cloning: {errno}") })?;
            channels.push(Arc::new(clone));
        }
        drop(first);
        let peers = Arc::new(Peers::new(threads));
        std::thread::scope(|scope| {
            let mut running = Vec::new();
            let mut failure = None;
            for (index, channel) in channels.into_iter().enumerate() {
                let peers = Arc::clone(&peers);
                let name = format!("weft-fuse-{index}");
                let options = &self.options;
                let body = move || serve_thread(index, channel, peers, options, make);
                match std::thread::Builder::new().name(name).spawn_scoped(scope, body) {
                    Ok(thread) => running.push(thread),
                    Err(error) => failure = Some(SessionError::Thread { index, reason: error.to_string() }),
                }
            }
            if failure.is_some() {
                peers.close();
            }
            let mut closed = Closed::Unmounted;
            for (index, thread) in running.into_iter().enumerate() {
                match thread.join() {
                    Ok(Ok(Some(Closed::Aborted))) => closed = Closed::Aborted,
                    // Unmounted, or told to end by the thread that knows why.
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => {
                        let (mountpoint, reason) = (self.mountpoint.clone(), error.to_string());
                        failure.get_or_insert(SessionError::Failed { index, mountpoint, reason });
                    }
                    Err(_) => {
                        let mountpoint = self.mountpoint.clone();
                        failure = Some(SessionError::Panicked { index, mountpoint });
                    }
                }
            }
            failure.map_or(Ok(closed), Err)
        })
    }

    /// `umount -f` of a busy mount cuts the connection and leaves the mount, dead; so does a failure of ours.
    fn remove_dead_mount(&self, said_unmounted: bool) {
        let is_ours = match self.mount_id {
            Some(ours) => MountId::at(&self.mountpoint) == Some(ours),
            // Somebody else's mount may be there by now: better a dead mount of ours than a live one of theirs.
            None => !said_unmounted,
        };
        if is_ours {
            // It may go at this moment; then there is nothing to do.
            let _ = mount::unmount_lazily(&self.mountpoint);
        }
    }

    fn shake_hands(&self) -> Result<(), MountError> {
        let Some(channel) = &self.channel else { return Ok(()) };
        let nonsense = |errno| MountError::Handshake { mountpoint: self.mountpoint.clone(), errno };
        let mut message = vec![0; abi_buffer_bytes()];
        loop {
            let len = match channel.receive(&mut message).map_err(nonsense)? {
                Received::Message(len) => len,
                Received::Closed(_) => return Err(nonsense(Errno::ENODEV)),
                Received::Empty => {
                    let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
                    match nix::poll::poll(&mut fds, PollTimeout::from(INIT_WAIT_MS)) {
                        Ok(0) => return Err(MountError::Silent { mountpoint: self.mountpoint.clone() }),
                        Ok(_) | Err(Errno::EINTR) => continue,
                        Err(errno) => return Err(nonsense(errno)),
                    }
                }
            };
            let (header, body) = crate::request::header(&message[..len]).map_err(|_| nonsense(Errno::EPROTO))?;
            if header.opcode != abi::opcode::INIT {
                channel.send(header.unique, Err(Errno::EIO));
                continue;
            }
            let (offer, _) = abi::InitIn::read_from_prefix(body).map_err(|_| nonsense(Errno::EPROTO))?;
            let out = handshake::negotiate(&offer, self.options.readdirplus, self.options.locks).inspect_err(|_| {
                channel.send(header.unique, Err(Errno::EPROTO));
            })?;
            channel.send(header.unique, Ok(Answer::init(&out)));
            return Ok(());
        }
    }
}

impl Drop for Session {
    /// A session that was mounted but never served, or whose handshake failed, leaves no dead mount behind.
    fn drop(&mut self) {
        if self.channel.is_some() {
            let _ = mount::unmount_lazily(&self.mountpoint);
        }
    }
}

/// The only source of randomness from the system in the standard library: the key of a hasher.
pub fn system_random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Before the handshake the kernel wants room for the writes that it may allow itself.
fn abi_buffer_bytes() -> usize {
    size_of::<abi::InHeader>() + size_of::<abi::WriteIn>() + handshake::IO_BYTES_MAX as usize
}

fn serve_thread<F: Filesystem>(
    index: usize,
    channel: Arc<Channel>,
    peers: Arc<Peers>,
    options: &SessionOptions,
    make: &(impl Fn(usize, &Handle) -> Rc<F> + Send + Sync),
) -> std::io::Result<Option<Closed>> {
    /// Whatever ends this thread ends the session.
    struct EndsAll(Arc<Peers>);
    impl Drop for EndsAll {
        fn drop(&mut self) {
            self.0.close();
        }
    }
    let _ends_all = EndsAll(Arc::clone(&peers));
    let mut core =
        Core::new(CoreOptions { name: format!("fuse-{index}"), idle: options.idle, seed: system_random(), pin: None })?;
    let handle = core.handle();
    peers.join(index, core.mailbox());
    let filesystem = make(index, &handle);
    let worker = Rc::new(Worker::new(index, handle, filesystem, channel, peers, options.destroy_wait));
    core.add_poller(Box::new(Reader::new(Rc::clone(&worker))?))?;
    core.run()?;
    Ok(worker.end()?)
}
