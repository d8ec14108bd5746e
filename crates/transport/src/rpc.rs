//! Calls: what the layers above see of the network.

mod over_link;

pub use over_link::{Rpc, RpcOptions};

use bytes::Bytes;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use weft_reactor::sync::Pending;
use weft_wire::limits::{MESSAGE_BODY_BYTES_MAX, MESSAGE_HEAD_BYTES_MAX};
use weft_wire::map::Map;
use weft_wire::{CoreId, Service};

/// The network as one core sees it. Used as `Rc<dyn Network>`.
///
/// A request runs at most once per call; whether to call again after an error is the caller's decision.
/// A caller that drops the [`Pending`] or whose time is over takes its request back as far as it has not started: a handler
/// that runs is never interrupted, since it may hold half of a change; only its response is discarded.
pub trait Network {
    /// Calls a core of the cluster. The core this network belongs to is served without a link.
    fn call(
        &self,
        to: CoreId,
        service: Service,
        head: Bytes,
        body: Bytes,
        timeout: Duration,
    ) -> Pending<Result<Response, CallError>>;

    /// Calls whoever listens at an address, for peers that the map doesn't name yet.
    fn call_addr(
        &self,
        to: SocketAddr,
        service: Service,
        head: Bytes,
        body: Bytes,
        timeout: Duration,
    ) -> Pending<Result<Response, CallError>>;

    /// Sets the handler of a service, in place of the one before.
    fn serve(&self, service: Service, handler: Handler);

    /// The core this network belongs to; clients have none.
    fn local(&self) -> Option<CoreId>;

    /// Takes the addresses of all cores from a map.
    fn set_addresses(&self, map: &Map);

    /// Has `tell` hear of cores at whose address nobody listens any more. Networks that can't know tell nothing.
    fn watch_refusals(&self, _tell: TellCore) {}

    /// Has `tell` hear of cores that gave no answer for so long that they were given up. Networks that can't know tell
    /// nothing.
    fn watch_silence(&self, _tell: TellCore) {}
}

impl dyn Network {
    /// [`Network::call`] for those who wait at once: a lost answer and a network that went away are the same to them.
    pub async fn ask(
        &self,
        to: CoreId,
        service: Service,
        head: Bytes,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Response, CallError> {
        flatten(self.call(to, service, head, body, timeout).await)
    }

    /// [`Network::call_addr`] for those who wait at once.
    pub async fn ask_addr(
        &self,
        to: SocketAddr,
        service: Service,
        head: Bytes,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Response, CallError> {
        flatten(self.call_addr(to, service, head, body, timeout).await)
    }
}

/// The outcome of an awaited call: a network that went away before it answered is a lost session.
pub fn flatten<E>(outcome: Result<Result<Response, CallError>, E>) -> Result<Response, CallError> {
    outcome.unwrap_or(Err(CallError::SessionLost))
}

/// Hears of cores that something is wrong with.
pub type TellCore = Rc<dyn Fn(CoreId)>;

/// Answers the requests of one service.
pub type Handler = Rc<dyn Fn(Request) -> Pin<Box<dyn Future<Output = Response>>>>;

/// Makes a [`Handler`] from an async closure.
pub fn handler<F, R>(function: F) -> Handler
where
    F: Fn(Request) -> R + 'static,
    R: Future<Output = Response> + 'static,
{
    Rc::new(move |request| Box::pin(function(request)))
}

#[derive(Clone, Debug)]
pub struct Request {
    pub from: SocketAddr,
    /// The core at that address by the map; `None` for clients.
    pub from_core: Option<CoreId>,
    pub head: Bytes,
    /// 4096-aligned in memory when at least 4096 bytes long.
    pub body: Bytes,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    pub head: Bytes,
    /// Arrives 4096-aligned in memory when at least 4096 bytes long.
    pub body: Bytes,
}

/// Why a call brought no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CallError {
    /// The caller's time is over. The request may have run, and may still run.
    #[error("no answer in time")]
    Timeout,
    /// Nobody answers at the address. The request may have run if the peer answered before.
    #[error("the peer can't be reached")]
    Unreachable,
    /// The peer restarted or forgot the session. The request may have run.
    #[error("the peer restarted; the session is lost")]
    SessionLost,
    /// Larger than [`MESSAGE_HEAD_BYTES_MAX`] or [`MESSAGE_BODY_BYTES_MAX`]. For a request: it did not run. For a response: it ran.
    #[error("the message is too large")]
    TooLarge,
    /// One of the ends has as much in flight as it allows. The request did not run: try again later.
    #[error("too many requests in flight")]
    Overloaded,
    /// The map names no address for the core. The request was not sent.
    #[error("the core has no known address")]
    NoAddress,
    /// The peer speaks another version of the protocol. The request was not sent.
    #[error("the peer speaks another version of the protocol")]
    VersionMismatch,
    /// The peer has no such service, or not yet. The request did not run.
    #[error("the peer doesn't offer the service")]
    NoService,
}

/// Whether a message is within the limits.
pub(crate) fn fits(head: &Bytes, body: &Bytes) -> bool {
    head.len() <= MESSAGE_HEAD_BYTES_MAX && body.len() <= MESSAGE_BODY_BYTES_MAX
}
