//! Runs a node on this machine: real cores, drives and sockets.

use crate::config::{self, Config};
use crate::control::{self, Tokens};
use crate::drives::Device;
use crate::node::{MakeNetwork, Node, NodeEnd, NodeParams};
use crate::notify::{State, notify};
use crate::passes::PassOptions;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::cell::RefCell;
use std::io::Read;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use weft_drive::uring::{ClaimError, UringDrive};
use weft_drive::volatile::VolatileCache;
use weft_drive::{Drive, DriveOptions};
use weft_link::udp::UdpLink;
use weft_reactor::{Core, CoreOptions, Handle, Idle};
use weft_transport::rpc::{Network, Rpc, RpcOptions};

/// An adaptive core goes on polling for this long after something came.
const SPIN: Duration = Duration::from_micros(20);
/// The dead process' lock on a drive goes with its last I/O: a restart waits that long for it.
const CLAIM_TRIES: u32 = 100;
const CLAIM_PAUSE: Duration = Duration::from_millis(50);
/// How often the core looks for the cluster's token until it is known.
const TOKEN_PAUSE: Duration = Duration::from_millis(200);

const DAY: Duration = Duration::from_secs(24 * 3600);

fn seed() -> Result<u64> {
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context("/dev/urandom")?;
    Ok(u64::from_le_bytes(bytes))
}

/// Serves until told to stop. The error says what to do.
pub fn run(config: &Config) -> Result<()> {
    if config.cores.len() > 1 {
        bail!("the configuration names {} cores: a node runs on one core for now", config.cores.len());
    }
    let core_config = &config.cores[0];
    let control_listen = TcpListener::bind(config.control_listen)
        .with_context(|| format!("control_listen {}: is another node running?", config.control_listen))?;
    let tokens = Tokens::default();
    let token_file = config.control_token();
    tokens.add(control::token(&token_file).with_context(|| format!("control_token {}", token_file.display()))?);
    // Blocked before any thread starts, so that only the descriptor hears of them.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("blocking signals")?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;

    let idle = match config.idle {
        config::Idle::Busy => Idle::Busy,
        config::Idle::Adaptive => Idle::Adaptive { spin: SPIN },
    };
    let mut core = Core::new(CoreOptions { name: "core0".into(), idle, seed: seed()?, pin: core_config.pin })?;
    let handle = core.handle();
    let mut devices = Vec::new();
    for drive in &config.drives {
        let uring = claim(drive)?;
        core.add_poller(uring.poller())?;
        let mut device: Rc<dyn Drive> = uring;
        if drive.volatile_cache {
            device = VolatileCache::new(device, handle.clone());
        }
        devices.push(Device { path: drive.path.display().to_string(), core: drive.core as u8, drive: device });
    }
    let params = NodeParams {
        name: config.name.clone(),
        domain: config.domain.clone(),
        cores: config.cores.iter().map(|core| core.listen).collect(),
        control: config.control_listen,
        devices,
        manager: weft_manager::Tunables {
            away_after: Duration::from_millis(config.away_after_ms.into()),
            failed_after: Duration::from_secs(config.failed_after_s.into()),
            ..Default::default()
        },
        lead: crate::lead::Tunables {
            namespace: weft_namespace::Tunables { page_entries_max: config.page_entries_max },
            ..Default::default()
        },
        drive: DriveOptions::default(),
        passes: PassOptions {
            scrub_period: DAY * config.scrub_days,
            scrub_pace_bytes: u64::from(config.scrub_mib_max) << 20,
        },
    };
    let node = Node::new(handle.clone(), params);
    control::attach(Rc::clone(&node));
    control::serve(&config.control_socket(), control_listen, tokens.clone(), core.mailbox())
        .with_context(|| format!("control_socket {}", config.control_socket().display()))?;

    let stopping = Rc::clone(&node);
    let signal_fd = signals.as_raw_fd();
    let _signals = handle.register_fd(
        signal_fd,
        Rc::new(move || {
            if matches!(signals.read_signal(), Ok(Some(_))) {
                notify(&State::Stopping);
                stopping.stop();
            }
        }),
    )?;
    handle.spawn("learn the token", learn_token(Rc::clone(&node), handle.clone(), tokens)).detach();
    handle.spawn("leave a word", leave_word(Rc::clone(&node), handle.clone(), config.state_dir.clone())).detach();
    let end: Rc<RefCell<Option<NodeEnd>>> = Rc::default();
    let life = {
        let (node, end, handle) = (Rc::clone(&node), Rc::clone(&end), handle.clone());
        let network = make_network(handle.clone(), core_config.listen);
        async move {
            *end.borrow_mut() = Some(node.run(network).await);
            handle.shutdown();
        }
    };
    handle.spawn("node", life).detach();
    notify(&State::Ready);
    core.run()?;
    let ended = end.borrow_mut().take();
    match ended {
        Some(NodeEnd::Stopped) | None => Ok(()),
        Some(end @ NodeEnd::Removed) => {
            // Nothing to start again for.
            tracing::warn!("{end}");
            Ok(())
        }
        Some(end) => bail!("{end}"),
    }
}

async fn learn_token(node: Rc<Node>, handle: Handle, tokens: Tokens) {
    loop {
        if let Some(token) = node.token() {
            tokens.add(token);
            return;
        }
        handle.sleep(TOKEN_PAUSE).await;
    }
}

/// Leaves with the supervisor what it has to say when this process dies, again whenever that changes.
async fn leave_word(node: Rc<Node>, handle: Handle, state_dir: PathBuf) {
    let mut left = None;
    loop {
        let (Some(word), Some(watch)) = (node.word(), node.map_watch()) else {
            handle.sleep(TOKEN_PAUSE).await;
            continue;
        };
        let version = watch.version();
        if left.as_ref() != Some(&word) {
            if let Err(error) = word.leave(&state_dir) {
                tracing::warn!(%error, "the supervisor can't be told whom to tell: a death is noticed later");
            }
            left = Some(word);
        }
        watch.changed_since(version).await;
    }
}

fn make_network(handle: Handle, listen: std::net::SocketAddr) -> MakeNetwork {
    Box::new(move |core| {
        let link = UdpLink::bind(listen).map_err(|error| format!("UDP address {listen}: {error}"))?;
        let rpc = Rpc::new(handle.clone(), Box::new(link), RpcOptions { local: Some(core), ..RpcOptions::default() });
        handle.add_poller(rpc.poller());
        let network: Rc<dyn Network> = rpc;
        Ok(network)
    })
}

/// Opens a drive for this process alone; makes the file if the configuration says how large.
fn claim(drive: &config::DriveConfig) -> Result<Rc<UringDrive>> {
    if !drive.path.exists() {
        let Some(size_bytes) = drive.size_bytes else {
            bail!("drive {} does not exist: give its size_bytes to have a file made", drive.path.display());
        };
        UringDrive::create(&drive.path, size_bytes)?;
    }
    let mut tries = 0;
    let opened = loop {
        match UringDrive::open(&drive.path) {
            Err(ClaimError::InUse { .. }) if tries < CLAIM_TRIES => {
                tries += 1;
                std::thread::sleep(CLAIM_PAUSE);
            }
            opened => break opened?,
        }
    };
    if let Some(size_bytes) = drive.size_bytes
        && size_bytes != opened.capacity_bytes()
    {
        bail!(
            "drive {} has {} bytes, the configuration says size_bytes = {size_bytes}: a drive is used whole for now",
            drive.path.display(),
            opened.capacity_bytes()
        );
    }
    Ok(opened)
}
