//! What a cluster is made of, as it stands in `cluster.json` of its state directory.

use crate::ports::Claims;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

const FILE: &str = "cluster.json";
const VERSION: u32 = 1;
/// Control ports are this far above data ports.
const CONTROL_OFFSET: u16 = 50;
pub const NODES_MAX: usize = CONTROL_OFFSET as usize;
/// Clusters on one machine take ranges of this size, below the ports that the kernel gives out by itself.
const PORT_RANGE: u16 = 100;
const PORT_FIRST: u16 = 7400;
const PORT_LAST: u16 = 31_900;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    version: u32,
    pub name: String,
    pub nodes: usize,
    pub protection: String,
    pub drive_bytes: u64,
    pub base_port: u16,
    /// Lines for the top of each node's configuration: what a test sets besides.
    pub extra_config: String,
    /// Drives lose unflushed writes when their process is killed.
    #[serde(default)]
    pub volatile_cache: bool,
    /// The cluster was formed.
    pub formed: bool,
    /// The filesystem that was created.
    pub filesystem: Option<String>,
    /// Where it is mounted.
    pub mount: Option<PathBuf>,
}

impl Layout {
    pub fn new(name: &str, nodes: usize, protection: &str, drive_bytes: u64) -> Result<Layout> {
        if !(1..=NODES_MAX).contains(&nodes) {
            bail!("{nodes} nodes: on one machine there can be 1 to {NODES_MAX}");
        }
        Ok(Layout {
            version: VERSION,
            name: name.into(),
            nodes,
            protection: protection.into(),
            drive_bytes,
            base_port: free_ports(nodes)?,
            extra_config: String::new(),
            volatile_cache: false,
            formed: false,
            filesystem: None,
            mount: None,
        })
    }

    /// None: there is no cluster in this directory.
    pub fn load(state: &Path) -> Result<Option<Layout>> {
        let path = state.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("can't read {}", path.display())),
        };
        let layout: Layout =
            serde_json::from_str(&text).with_context(|| format!("can't understand {}", path.display()))?;
        if layout.version != VERSION {
            bail!("{} has version {}, and this program knows {VERSION}", path.display(), layout.version);
        }
        Ok(Some(layout))
    }

    /// Replaces the file at once, so that a crash leaves the old one or the new one.
    pub fn store(&self, state: &Path) -> Result<()> {
        let (path, new) = (state.join(FILE), state.join("cluster.json.new"));
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(&new, text).with_context(|| format!("can't write {}", new.display()))?;
        std::fs::rename(&new, &path).with_context(|| format!("can't write {}", path.display()))?;
        Claims::of_this_user().keep(self.base_port, &state.canonicalize()?)
    }

    /// Nodes count from 1.
    pub fn data_address(&self, node: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.base_port + node as u16).into()
    }

    pub fn control_address(&self, node: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.base_port + CONTROL_OFFSET + node as u16).into()
    }

    pub fn node_directory(&self, state: &Path, node: usize) -> PathBuf {
        state.join(format!("node{node}"))
    }

    /// The node's configuration.
    pub fn config(&self, state: &Path, node: usize) -> String {
        let directory = self.node_directory(state, node);
        let (data, control) = (self.data_address(node), self.control_address(node));
        let (extra, bytes, volatile) = (&self.extra_config, self.drive_bytes, self.volatile_cache);
        format!(
            "name = \"node{node}\"\nstate_dir = {directory:?}\ncontrol_listen = \"{control}\"\n{extra}\n\
             [[cores]]\nlisten = \"{data}\"\n\n[[drives]]\npath = \"node{node}.drive\"\nsize_bytes = {bytes}\nvolatile_cache = {volatile}\n"
        )
    }
}

/// What keeps the cluster from listening on its ports, if anything.
pub fn busy_port(base: u16, nodes: usize) -> Option<String> {
    (1..=nodes as u16).find_map(|node| {
        let data = (Ipv4Addr::LOCALHOST, base + node);
        let control = (Ipv4Addr::LOCALHOST, base + CONTROL_OFFSET + node);
        let udp = UdpSocket::bind(data).err().map(|error| format!("UDP port {}: {error}", data.1));
        udp.or_else(|| TcpListener::bind(control).err().map(|error| format!("TCP port {}: {error}", control.1)))
    })
}

fn free_ports(nodes: usize) -> Result<u16> {
    let bases = (PORT_FIRST..=PORT_LAST).step_by(PORT_RANGE as usize);
    let fit = |base| busy_port(base, nodes).is_none();
    let has = |state: &Path, base| matches!(Layout::load(state), Ok(Some(layout)) if layout.base_port == base);
    Claims::of_this_user().take(bases, fit, has)?.with_context(|| {
        format!(
            "no free range of ports between {PORT_FIRST} and {PORT_LAST}: delete clusters that you do not need \
             (`cargo xtask down --wipe --state DIR`)"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_as_it_was_stored() {
        let state = std::env::temp_dir().join(format!("weft-layout-{}", std::process::id()));
        std::fs::create_dir_all(&state).unwrap();
        assert_eq!(Layout::load(&state).unwrap(), None);
        let mut layout = Layout::new("test", 6, "4+2", 1 << 28).unwrap();
        layout.formed = true;
        layout.store(&state).unwrap();
        assert_eq!(Layout::load(&state).unwrap(), Some(layout.clone()));
        let newer = serde_json::to_string(&Layout { version: 2, ..layout }).unwrap();
        std::fs::write(state.join(FILE), newer).unwrap();
        assert!(Layout::load(&state).unwrap_err().to_string().contains("version 2"));
        std::fs::remove_dir_all(&state).unwrap();
    }

    #[test]
    fn weftd_takes_the_configuration() {
        use weftd::config::{Config, Exposure};
        let layout = Layout::new("test", 6, "4+2", 1 << 28).unwrap();
        let state = Path::new("/var/lib/a \"quoted\" place");
        let config = Config::parse(&layout.config(state, 3), Path::new("weftd.toml"), Exposure::Loopback).unwrap();
        assert_eq!(config.name, "node3");
        assert_eq!(config.cores.first().map(|core| core.listen), Some(layout.data_address(3)));
        assert_eq!(config.control_listen, layout.control_address(3));
        assert_eq!(config.control_socket(), layout.node_directory(state, 3).join("control.sock"));
        let drive = layout.node_directory(state, 3).join("node3.drive");
        assert_eq!(config.drives.first().map(|drive| drive.path.clone()), Some(drive));
    }

    #[test]
    fn sees_a_busy_port() {
        let taken = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert!(busy_port(port - 1, 1).unwrap().contains(&port.to_string()));
    }
}
