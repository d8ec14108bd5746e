//! The supervisor's word: which life of the node has ended, told to the managers the moment the supervisor sees it.
//!
//! The daemon leaves a file with what has to be said and to whom ([`Word`]); its supervisor sends it when the daemon has died:
//! one datagram to the control address of each manager, with the command that `weft` would send over TCP, token first. A datagram,
//! because a supervisor never waits for anyone. Sent twice, and lost without harm: a refused port and silence tell the same, later.

use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use weft_wire::control::{Command, Envelope};
use weft_wire::map::Map;
use weft_wire::{Incarnation, NodeId};

const FILE: &str = "supervisor.word";
/// Larger datagrams say nothing.
pub const DATAGRAM_BYTES_MAX: usize = 1024;

/// What a supervisor has to say when its daemon dies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// The cluster's.
    pub token: String,
    pub node: NodeId,
    pub incarnation: Incarnation,
    /// The managers' control addresses.
    pub to: Vec<SocketAddr>,
}

impl Word {
    pub fn new(map: &Map, token: String, node: NodeId, incarnation: Incarnation) -> Self {
        let others = map.managers.iter().filter(|manager| **manager != node);
        let to = others.filter_map(|manager| Some(map.nodes.get(manager)?.control)).collect();
        Self { token, node, incarnation, to }
    }

    /// Leaves the word for the supervisor. Whoever reads it may speak for the cluster, so only its owner can.
    pub fn leave(&self, state_dir: &Path) -> io::Result<()> {
        let fresh = state_dir.join(format!("{FILE}.new"));
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        std::fs::rename(fresh, state_dir.join(FILE))
    }

    /// Takes what the daemon left: it is said for one life.
    pub fn take(state_dir: &Path) -> Option<Self> {
        let path = state_dir.join(FILE);
        let text = std::fs::read(&path).ok()?;
        let _ = std::fs::remove_file(path);
        serde_json::from_slice(&text).ok()
    }

    /// Says it, without waiting for anyone.
    pub fn say(&self) {
        let command = Command::Died { node: self.node, incarnation: self.incarnation };
        let Ok(datagram) = serde_json::to_vec(&Envelope { token: Some(self.token.clone()), command }) else { return };
        for to in &self.to {
            let any: IpAddr = match to {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            // A manager that can't be told hears it from the others.
            let _ = UdpSocket::bind((any, 0)).and_then(|socket| {
                socket.set_nonblocking(true)?;
                socket.send_to(&datagram, to)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_left_taken_once_and_said() {
        let listener = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let directory = std::env::temp_dir().join(format!("weftd-word-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("made");
        let to = vec![listener.local_addr().expect("bound")];
        let word = Word { token: "secret".into(), node: NodeId(3), incarnation: Incarnation(7), to };
        word.leave(&directory).expect("left");
        assert_eq!(Word::take(&directory), Some(word.clone()));
        assert_eq!(Word::take(&directory), None);
        std::fs::remove_dir_all(&directory).expect("there");
        word.say();
        let mut datagram = [0; DATAGRAM_BYTES_MAX];
        let bytes = listener.recv(&mut datagram).expect("said");
        let envelope: Envelope = serde_json::from_slice(&datagram[..bytes]).expect("an envelope");
        assert_eq!(envelope.token.as_deref(), Some("secret"));
        let Command::Died { node, incarnation } = envelope.command else { panic!("{envelope:?}") };
        assert_eq!((node, incarnation), (NodeId(3), Incarnation(7)));
    }
}
