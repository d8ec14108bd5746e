//! Becoming a client: a map, the filesystem, an id.

use crate::follow::Follower;
use crate::tunables::{PROPOSE_TIMEOUT, RETRY_FIRST, RETRY_MOST, UNKNOWN_FILESYSTEM_WAIT, WAIT_LOG_AFTER};
use crate::waiting::{Wait, Waits};
use bytes::Bytes;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use weft_reactor::{Either, Handle, select};
use weft_transport::rpc::Network;
use weft_wire::manager::{ManagerReply, ManagerRequest, Proposal};
use weft_wire::map::{FilesystemState, Map};
use weft_wire::{ClientId, CoreId, FsId, InodeId, NodeId, Service, decode, encode};

#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Data addresses of any nodes; one that answers is enough.
    pub addresses: Vec<SocketAddr>,
    pub fs_name: String,
    /// Who we are, for people.
    pub host: String,
    /// Give an application an error after waiting this long; `None`: wait.
    pub fail_after: Option<Duration>,
}

/// Why there is no client. Waiting would not help, except after [`ConnectError::TimedOut`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    #[error("no address of a node was given")]
    NoAddress,
    #[error("the cluster has no filesystem '{name}'; it has {known}")]
    NoSuchFilesystem { name: String, known: String },
    #[error("the filesystem '{0}' is being deleted")]
    Deleting(String),
    #[error("the managers refuse this client: {0}")]
    Refused(String),
    #[error("gave up after {seconds} s: {reason}")]
    TimedOut { seconds: u64, reason: String },
}

/// What was found on the way.
pub(crate) struct Joined {
    pub follower: Follower,
    pub client: ClientId,
    pub fs: FsId,
    pub root: InodeId,
}

/// Finds the filesystem without becoming a client: what a mount checks before it mounts.
pub async fn probe(network: Rc<dyn Network>, handle: Handle, options: &ConnectOptions) -> Result<(), ConnectError> {
    let waits = Waits::new(handle.clone());
    let find = async |wait: &mut Wait| {
        let follower = Follower::start(Rc::clone(&network), handle.clone(), options.addresses.clone());
        find_filesystem(&follower, &handle, options, wait).await.map(|_| ())
    };
    limited(&handle, &waits, options, find).await
}

pub(crate) async fn join(
    network: &Rc<dyn Network>,
    handle: &Handle,
    waits: &Rc<Waits>,
    options: &ConnectOptions,
) -> Result<Joined, ConnectError> {
    let join = async |wait: &mut Wait| {
        let follower = Follower::start(Rc::clone(network), handle.clone(), options.addresses.clone());
        let (fs, root) = find_filesystem(&follower, handle, options, wait).await?;
        let client = new_client(network, handle, &follower, options, wait).await?;
        Ok(Joined { follower, client, fs, root })
    };
    limited(handle, waits, options, join).await
}

/// Runs `work` for as long as the options allow.
async fn limited<T>(
    handle: &Handle,
    waits: &Rc<Waits>,
    options: &ConnectOptions,
    work: impl AsyncFnOnce(&mut Wait) -> Result<T, ConnectError>,
) -> Result<T, ConnectError> {
    if options.addresses.is_empty() {
        return Err(ConnectError::NoAddress);
    }
    let mut wait = waits.begin();
    let Some(limit) = options.fail_after else { return work(&mut wait).await };
    match handle.timeout(limit, work(&mut wait)).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let reason = wait.reason().unwrap_or_else(|| "nothing answered".into());
            Err(ConnectError::TimedOut { seconds: limit.as_secs(), reason })
        }
    }
}

async fn find_filesystem(
    follower: &Follower,
    handle: &Handle,
    options: &ConnectOptions,
    wait: &mut Wait,
) -> Result<(FsId, InodeId), ConnectError> {
    let watch = follower.watch();
    let mut unknown_since = None;
    loop {
        let version = watch.version();
        let Some(map) = follower.map() else {
            let addresses: Vec<String> = options.addresses.iter().map(SocketAddr::to_string).collect();
            wait.set(format!("no node with a map answers at {}", addresses.join(", ")));
            let _ = select(watch.changed_since(version), handle.sleep(WAIT_LOG_AFTER)).await;
            continue;
        };
        match map.filesystem_named(&options.fs_name).map(|fs| (fs.state, fs.id, fs.root)) {
            Some((FilesystemState::Ready, fs, root)) => return Ok((fs, root)),
            Some((FilesystemState::Deleting, ..)) => return Err(ConnectError::Deleting(options.fs_name.clone())),
            Some((FilesystemState::Creating, ..)) => {
                wait.set(format!("the filesystem '{}' is being created", options.fs_name));
                let _ = select(watch.changed_since(version), handle.sleep(WAIT_LOG_AFTER)).await;
            }
            None => {
                let now = handle.now();
                let since = *unknown_since.get_or_insert(now);
                let left = UNKNOWN_FILESYSTEM_WAIT.saturating_sub(now.since(since));
                if left.is_zero() {
                    return Err(no_such(&map, &options.fs_name));
                }
                // Another node may know it already.
                follower.refresh(None);
                let _ = select(watch.changed_since(version), handle.sleep(left.min(RETRY_MOST))).await;
            }
        }
    }
}

fn no_such(map: &Map, name: &str) -> ConnectError {
    let names: Vec<&str> = map.filesystems.values().map(|fs| fs.name.as_str()).collect();
    let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    ConnectError::NoSuchFilesystem { name: name.to_owned(), known }
}

async fn new_client(
    network: &Rc<dyn Network>,
    handle: &Handle,
    follower: &Follower,
    options: &ConnectOptions,
    wait: &mut Wait,
) -> Result<ClientId, ConnectError> {
    let proposal = Proposal::NewClient { host: options.host.clone() };
    loop {
        match propose(network, handle, follower, &proposal, wait).await {
            ManagerReply::Committed { client, .. } => return Ok(client),
            ManagerReply::Refused(reason) => return Err(ConnectError::Refused(reason)),
            // Committed or not, unknown: an id that nobody uses does no harm.
            _ => handle.sleep(RETRY_MOST).await,
        }
    }
}

/// Brings a proposal to the managers' leader, for as long as it takes. Answers `Committed` or `Refused`.
pub(crate) async fn propose(
    network: &Rc<dyn Network>,
    handle: &Handle,
    follower: &Follower,
    proposal: &Proposal,
    wait: &mut Wait,
) -> ManagerReply {
    let watch = follower.watch();
    let mut turn = handle.random_u64() as usize;
    let mut pause = RETRY_FIRST;
    let mut next: Option<NodeId> = None;
    loop {
        let version = watch.version();
        let map = follower.map();
        let managers = map.as_ref().map(|map| map.managers.clone()).unwrap_or_default();
        let cluster = map.map(|map| map.cluster).unwrap_or_default();
        let index = turn.checked_rem(managers.len()).unwrap_or_default();
        if let Some(target) = next.take().or_else(|| managers.get(index).copied()) {
            let core = CoreId { node: target, core: 0 };
            let head = encode(&ManagerRequest::Propose { cluster, proposal: proposal.clone() });
            let call = network.ask(core, Service::Manager, head, Bytes::new(), PROPOSE_TIMEOUT).await;
            match call.map(|response| decode::<ManagerReply>(&response.head)) {
                Ok(Ok(reply @ (ManagerReply::Committed { .. } | ManagerReply::Refused(_)))) => return reply,
                Ok(Ok(ManagerReply::NotLeader(Some(leader)))) if leader != target => {
                    next = Some(leader);
                    wait.set(format!("following the managers' leader to {leader}"));
                }
                Ok(Ok(ManagerReply::NoQuorum)) => wait.set("the managers have no quorum".into()),
                Ok(Ok(_)) => wait.set("the managers have no leader".into()),
                Ok(Err(error)) => wait.set(format!("manager {target}: {error}")),
                Err(error) => wait.set(format!("manager {target}: {error}")),
            }
        }
        turn = turn.wrapping_add(1);
        match select(watch.changed_since(version), handle.sleep(pause)).await {
            Either::Left(()) => {}
            Either::Right(()) => pause = (pause * 2).min(RETRY_MOST),
        }
    }
}
