//! A whole cluster of local processes.

use crate::layout::Layout;
use crate::mount;
use crate::node::Node;
use crate::ports::Claims;
use crate::programs::Programs;
use crate::wait;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub const READY_DEADLINE: Duration = Duration::from_secs(60);
/// An orderly stop writes a checkpoint.
pub const STOP_DEADLINE: Duration = Duration::from_secs(60);

pub struct Cluster {
    pub programs: Programs,
    pub state: PathBuf,
    pub layout: Layout,
    pub nodes: Vec<Node>,
}

impl Cluster {
    /// Writes the state directory of a new cluster. Nothing is started yet.
    pub fn create(programs: Programs, state: &Path, layout: Layout) -> Result<Cluster> {
        std::fs::create_dir_all(state).with_context(|| format!("can't create {}", state.display()))?;
        let state = state.canonicalize()?;
        if Layout::load(&state)?.is_some() {
            bail!("there is a cluster in {} already", state.display());
        }
        layout.store(&state)?;
        Cluster::open(programs, &state)?.context("the cluster just written is not there")
    }

    /// A cluster made earlier, running or not. None: there is none in this directory.
    pub fn open(programs: Programs, state: &Path) -> Result<Option<Cluster>> {
        let Some(layout) = Layout::load(state)? else { return Ok(None) };
        let state = state.canonicalize()?;
        Claims::of_this_user().keep(layout.base_port, &state)?;
        let nodes: Vec<Node> = (1..=layout.nodes).map(|number| Node::new(&layout, &state, number)).collect();
        for node in &nodes {
            std::fs::create_dir_all(&node.directory)
                .with_context(|| format!("can't create {}", node.directory.display()))?;
            std::fs::write(node.config(), layout.config(&state, node.number))
                .with_context(|| format!("can't write {}", node.config().display()))?;
        }
        Ok(Some(Cluster { programs, state, layout, nodes }))
    }

    /// Starts the nodes that do not run, and waits until all take commands.
    pub fn start(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.start(&self.programs)?;
        }
        self.nodes.iter_mut().try_for_each(|node| node.wait_ready(READY_DEADLINE))
    }

    /// Forms the cluster and creates the filesystem, as far as that was not done before.
    pub fn form(&mut self, filesystem: &str) -> Result<()> {
        if !self.layout.formed {
            let mut arguments = vec!["cluster".to_string(), "create".into()];
            arguments.extend(["--name".into(), self.layout.name.clone()]);
            arguments.extend(["--protection".into(), self.layout.protection.clone()]);
            for node in &self.nodes {
                // By their sockets: over TCP each node has a token of its own until it is in the cluster.
                arguments.extend(["--node".into(), node.socket().to_string_lossy().into_owned()]);
            }
            self.weft(&arguments)?;
            self.layout.formed = true;
            self.layout.store(&self.state)?;
        }
        if self.layout.filesystem.is_none() {
            // The managers may still be electing.
            wait::until_ok(READY_DEADLINE, || self.weft(&["fs", "create", filesystem]))?;
            self.layout.filesystem = Some(filesystem.into());
            self.layout.store(&self.state)?;
        }
        Ok(())
    }

    /// A node more: configured, started, and added to the cluster.
    pub fn grow(&mut self) -> Result<()> {
        self.layout.nodes += 1;
        self.layout.store(&self.state)?;
        let mut node = Node::new(&self.layout, &self.state, self.layout.nodes);
        std::fs::create_dir_all(&node.directory)?;
        std::fs::write(node.config(), self.layout.config(&self.state, node.number))?;
        node.start(&self.programs)?;
        node.wait_ready(READY_DEADLINE)?;
        let socket = node.socket().to_string_lossy().into_owned();
        self.nodes.push(node);
        self.weft(&["node", "add", &socket])?;
        Ok(())
    }

    /// A node that does not run gets blank drives, and takes its own place again.
    pub fn replace(&mut self, number: usize) -> Result<()> {
        let node = self.nodes.iter_mut().find(|node| node.number == number).context("no such node")?;
        std::fs::remove_file(node.drive())?;
        node.start(&self.programs)?;
        node.wait_ready(READY_DEADLINE)?;
        let socket = node.socket().to_string_lossy().into_owned();
        self.weft(&["node", "add", &socket, "--replace"])?;
        Ok(())
    }

    /// Runs `weft` against the first node that runs, and returns what it printed.
    pub fn weft<A: AsRef<std::ffi::OsStr>>(&self, arguments: &[A]) -> Result<String> {
        let node = self.nodes.iter().find(|node| node.supervisor().is_some()).context("no node runs")?;
        let mut command = Command::new(&self.programs.weft);
        command.arg("--socket").arg(node.socket()).args(arguments).stdin(Stdio::null());
        let output = command.output().with_context(|| format!("can't start {}", self.programs.weft.display()))?;
        if !output.status.success() {
            let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            bail!("{command:?} failed ({}): {}{}", output.status, said, complained.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What to mount: all nodes' addresses and the filesystem's name.
    pub fn source(&self) -> Result<String> {
        let filesystem = self.layout.filesystem.as_deref().context("no filesystem was created yet")?;
        let addresses: Vec<String> = self.nodes.iter().map(|node| node.data.to_string()).collect();
        Ok(format!("{}/{filesystem}", addresses.join(",")))
    }

    /// Mounts the filesystem; `down` finds it again.
    pub fn mount(&mut self, mountpoint: &Path, options: &str) -> Result<()> {
        mount::mount(&self.programs, &self.source()?, mountpoint, options, &self.state.join("mount.log"))?;
        self.layout.mount = Some(mountpoint.into());
        self.layout.store(&self.state)
    }

    /// kill -9 of everything but the mounts, as nearly at once as one program can.
    pub fn kill_all(&mut self) -> Result<()> {
        std::thread::scope(|scope| {
            let kills: Vec<_> = self.nodes.iter_mut().map(|node| scope.spawn(|| node.kill())).collect();
            kills.into_iter().try_for_each(|kill| kill.join().unwrap_or_else(|_| bail!("killing a node panicked")))
        })
    }

    /// Asks all nodes to stop in order, waits, and kills those that do not. Returns the numbers of the killed.
    pub fn stop(&mut self) -> Result<Vec<usize>> {
        for node in &self.nodes {
            node.terminate()?;
        }
        let mut killed = Vec::new();
        let started = Instant::now();
        for node in &mut self.nodes {
            if node.wait_stopped(STOP_DEADLINE.saturating_sub(started.elapsed())).is_err() {
                node.kill()?;
                killed.push(node.number);
            }
        }
        Ok(killed)
    }

    pub fn running(&self) -> usize {
        self.nodes.iter().filter(|node| node.supervisor().is_some()).count()
    }

    /// Deletes the state directory with all data. The cluster must have been stopped and unmounted.
    pub fn wipe(self) -> Result<()> {
        if self.running() > 0 {
            bail!("the cluster still runs: stop it before its state is deleted");
        }
        if let Some(place) = mount::below(&self.state)?.first() {
            bail!("{} is still mounted: unmount it before the state is deleted", place.display());
        }
        std::fs::remove_dir_all(&self.state).with_context(|| format!("can't delete {}", self.state.display()))
    }
}
