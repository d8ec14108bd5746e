//! Exactly once: the result of each mutating request is committed with its effects. A request that comes again gets
//! the same answer and changes nothing.
//!
//! Errors are not kept: a request that failed changed nothing, and may as well be tried again.

use crate::errno;
use crate::inode::result_key;
use bytes::Bytes;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use weft_bucket::{Batch, Bucket, BucketError};
use weft_wire::ClientId;
use weft_wire::fs::{FsError, FsReply};
use weft_wire::limits::CLIENT_WINDOW_MAX;

/// Results of one client, as the index has them.
#[derive(Default)]
struct Window {
    results: BTreeMap<u64, Bytes>,
    /// Requests below this were answered: they can't come again.
    unanswered: u64,
}

#[derive(Default)]
pub struct Results {
    clients: RefCell<BTreeMap<ClientId, Window>>,
    /// Clients of former leaders whose results are in the index; they may be gone without ever asking again.
    inherited: RefCell<BTreeSet<ClientId>>,
}

/// A mutating request as exactly-once sees it.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    pub client: ClientId,
    pub sequence: u64,
    unanswered: u64,
}

impl Ticket {
    /// `None` for requests that the node makes itself.
    pub fn new(client: ClientId, sequence: u64, unanswered: u64) -> Result<Option<Self>, FsError> {
        if sequence == 0 {
            return Ok(None);
        }
        if unanswered > sequence || sequence - unanswered >= CLIENT_WINDOW_MAX {
            return Err(errno::EINVAL);
        }
        Ok(Some(Self { client, sequence, unanswered }))
    }
}

/// Where all keys of a client's results begin.
fn client_prefix(client: ClientId) -> Bytes {
    let key = result_key(client, 0);
    key.slice(..key.len() - size_of::<u64>())
}

impl Results {
    /// The answer that the request got before, if it ran before.
    pub async fn find(&self, bucket: &Bucket, ticket: &Ticket) -> Result<Option<FsReply>, FsError> {
        if !self.clients.borrow().contains_key(&ticket.client) {
            self.load(bucket, ticket.client).await?;
        }
        let mut clients = self.clients.borrow_mut();
        let Some(window) = clients.get_mut(&ticket.client) else { return Ok(None) };
        window.unanswered = window.unanswered.max(ticket.unanswered);
        if ticket.sequence < window.unanswered {
            // A stray copy of a request whose answer arrived long ago.
            return Err(errno::EINVAL);
        }
        window.results.get(&ticket.sequence).map(|result| crate::inode::decode(result)).transpose()
    }

    async fn load(&self, bucket: &Bucket, client: ClientId) -> Result<(), FsError> {
        let found = bucket.scan_prefix(&client_prefix(client), usize::MAX).await.map_err(errno::of_bucket)?;
        let mut results = BTreeMap::new();
        for (key, value) in found {
            if let Some(sequence) = crate::inode::dentry_cookie(&key) {
                results.insert(sequence, value);
            }
        }
        // Another request of the client may have loaded it meanwhile, and gone on.
        self.clients.borrow_mut().entry(client).or_insert(Window { results, unanswered: 0 });
        Ok(())
    }

    /// Adds the result to the batch of its effects, and drops those that nobody will ask for. Whether nothing was known of
    /// the client.
    pub fn record(&self, batch: &mut Batch, ticket: &Ticket, reply: &FsReply) -> bool {
        let mut clients = self.clients.borrow_mut();
        let unheard_of = !clients.contains_key(&ticket.client);
        let window = clients.entry(ticket.client).or_default();
        window.unanswered = window.unanswered.max(ticket.unanswered);
        let kept = window.results.split_off(&window.unanswered);
        for sequence in std::mem::replace(&mut window.results, kept).into_keys() {
            batch.delete(result_key(ticket.client, sequence));
        }
        let encoded = weft_wire::encode(reply);
        batch.put(result_key(ticket.client, ticket.sequence), encoded.clone());
        window.results.insert(ticket.sequence, encoded);
        unheard_of
    }

    /// A result of the client is in the index now. Whether the client was dropped after that was recorded.
    pub fn keep(&self, client: ClientId) -> bool {
        !self.knows(client) && self.inherited.borrow_mut().insert(client)
    }

    /// Looks up whose results former leaders have left, with one look for each client.
    pub async fn load_inherited(&self, bucket: &Bucket) -> Result<(), BucketError> {
        let end = result_key(ClientId(u64::MAX), u64::MAX);
        let mut from = client_prefix(ClientId(0));
        while let Some((key, _)) = bucket.scan(&from, &end, 1).await?.into_iter().next() {
            let client = key.get(..key.len().saturating_sub(size_of::<u64>())).and_then(crate::inode::dentry_cookie);
            let Some(client) = client else { return Err(BucketError::Corrupt("the key of a result".into())) };
            self.inherited.borrow_mut().insert(ClientId(client));
            from = client_prefix(ClientId(client.saturating_add(1)));
        }
        Ok(())
    }

    /// The client is gone for good: nobody will ask for its results any more.
    pub async fn drop_client(&self, bucket: &Bucket, client: ClientId, batch: &mut Batch) -> Result<(), BucketError> {
        self.clients.borrow_mut().remove(&client);
        self.inherited.borrow_mut().remove(&client);
        for (key, _) in bucket.scan_prefix(&client_prefix(client), usize::MAX).await? {
            batch.delete(key);
        }
        Ok(())
    }

    pub fn knows(&self, client: ClientId) -> bool {
        self.clients.borrow().contains_key(&client)
    }

    /// Clients that have results here.
    pub fn clients(&self) -> Vec<ClientId> {
        self.clients.borrow().keys().chain(&*self.inherited.borrow()).copied().collect()
    }

    /// The batch was not taken after all.
    pub fn forget(&self, ticket: &Ticket) {
        if let Some(window) = self.clients.borrow_mut().get_mut(&ticket.client) {
            window.results.remove(&ticket.sequence);
        }
    }
}
