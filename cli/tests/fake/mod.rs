//! Nodes that only talk: they answer commands over a Unix socket and over TCP, and keep no data.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use weft_wire::control::{
    Answer, BucketState, ClusterStatus, Command, Description, DriveDescription, DriveState, Envelope, Event,
    FilesystemEntry, ManagerState, NodeState, PassKind, PassPhase, PassState, Status,
};
use weft_wire::map::{Delta, Map};
use weft_wire::{Incarnation, NodeId, Uuid};

const TOKEN: &str = "the token of these nodes";

type Filesystems = Arc<Mutex<Vec<FilesystemEntry>>>;

/// What the program printed, and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub complaints: String,
}

pub struct Fakes {
    pub directory: PathBuf,
    pub nodes: Vec<Fake>,
}

impl Fakes {
    pub fn start(test: &str, nodes: u16) -> Self {
        let directory = std::env::temp_dir().join(format!("weft-cli-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("control.token"), format!("{TOKEN}\n")).unwrap();
        let filesystems = Filesystems::default();
        let nodes = (1..=nodes).map(|number| Fake::start(&directory, number, Arc::clone(&filesystems))).collect();
        Self { directory, nodes }
    }

    pub fn weft(&self, arguments: &[&str]) -> Said {
        let mut command = Process::new(env!("CARGO_BIN_EXE_weft"));
        if !arguments.contains(&"--socket") {
            command.arg("--socket").arg(self.directory.join("node1.sock"));
        }
        let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().unwrap_or(-1);
        Said { code, out: text(&output.stdout), complaints: text(&output.stderr) }
    }

    /// `weft cluster create` of all nodes by their TCP addresses.
    pub fn create(&self, name: &str) -> Said {
        self.create_of(name, self.nodes.len())
    }

    /// The same of the first so many.
    pub fn create_of(&self, name: &str, count: usize) -> Said {
        let addresses: Vec<String> = self.nodes.iter().take(count).map(|node| node.control.to_string()).collect();
        let mut arguments = vec!["cluster", "create", "--name", name, "--protection", "4+2", "--node"];
        arguments.extend(addresses.iter().map(String::as_str));
        self.weft(&arguments)
    }

    pub fn plan(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.forming"))
    }
}

impl Drop for Fakes {
    fn drop(&mut self) {
        self.nodes.iter_mut().for_each(Fake::stop);
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// What a node says to a line; `true`: it came over the Unix socket.
type Reply = Arc<dyn Fn(&str, bool) -> String + Send + Sync>;

pub struct Fake {
    pub control: SocketAddr,
    pub socket: PathBuf,
    refusing: Arc<AtomicBool>,
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Fake {
    fn start(directory: &Path, number: u16, filesystems: Filesystems) -> Self {
        let refusing = Arc::new(AtomicBool::new(false));
        let mut mind =
            Mind { number, control: ([127, 0, 0, 1], 1).into(), map: None, filesystems, passes: BTreeMap::new() };
        let refuses = Arc::clone(&refusing);
        Self::listen(directory, &format!("node{number}.sock"), refusing, move |control| {
            mind.control = control;
            let mind = Mutex::new(mind);
            Arc::new(move |line, trusted| {
                let answer = mind.lock().unwrap().answer(line, trusted, refuses.load(Ordering::SeqCst));
                serde_json::to_string(&answer).unwrap() + "\n"
            })
        })
    }

    fn listen(
        directory: &Path,
        name: &str,
        refusing: Arc<AtomicBool>,
        reply: impl FnOnce(SocketAddr) -> Reply,
    ) -> Self {
        let socket = directory.join(name);
        let (unix, tcp) = (UnixListener::bind(&socket).unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let control = tcp.local_addr().unwrap();
        let stopping = Arc::new(AtomicBool::new(false));
        let reply = reply(control);
        let (reply_unix, stop_unix, stop_tcp) = (Arc::clone(&reply), Arc::clone(&stopping), Arc::clone(&stopping));
        let threads = vec![
            std::thread::spawn(move || {
                for stream in unix.incoming().take_while(|_| !stop_unix.load(Ordering::SeqCst)).flatten() {
                    converse(&stream, &stream, &reply_unix, true);
                }
            }),
            std::thread::spawn(move || {
                for stream in tcp.incoming().take_while(|_| !stop_tcp.load(Ordering::SeqCst)).flatten() {
                    converse(&stream, &stream, &reply, false);
                }
            }),
        ];
        Self { control, socket, refusing, stopping, threads }
    }

    pub fn refuse_forms(&self, refuse: bool) {
        self.refusing.store(refuse, Ordering::SeqCst);
    }

    /// Returns when nobody listens any more.
    pub fn stop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Both threads wake to see it.
        let _ = (UnixStream::connect(&self.socket), TcpStream::connect(self.control));
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.stop();
        }
    }
}

/// Answers everything with `text`.
pub fn babbling(fakes: &Fakes, text: &'static str) -> Fake {
    let reply = move |_| Arc::new(move |_: &str, _| text.to_owned()) as Reply;
    Fake::listen(&fakes.directory, "babble.sock", Arc::default(), reply)
}

fn converse(reader: impl Read, mut writer: impl Write, reply: &Reply, trusted: bool) {
    let mut line = String::new();
    if BufReader::new(reader).read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
        let _ = writer.write_all(reply(&line, trusted).as_bytes());
    }
}

struct Mind {
    number: u16,
    control: SocketAddr,
    map: Option<Map>,
    filesystems: Filesystems,
    passes: BTreeMap<PassKind, PassState>,
}

impl Mind {
    fn name(&self) -> String {
        format!("node{}", self.number)
    }

    fn answer(&mut self, line: &str, trusted: bool, refusing: bool) -> Answer {
        let envelope: Envelope = serde_json::from_str(line).unwrap();
        if !trusted && envelope.token.as_deref() != Some(TOKEN) {
            return Answer::Refused("over TCP the token is needed".into());
        }
        match envelope.command {
            Command::Describe => Answer::Description(self.describe()),
            Command::Form { .. } if refusing => Answer::Refused("the drive can't be written".into()),
            Command::Form { map } => {
                self.map = Some(*map);
                Answer::Done
            }
            Command::Map => {
                self.map.clone().map_or(Answer::Refused("in no cluster yet".into()), |map| Answer::Map(Box::new(map)))
            }
            Command::AddNode { new, replace } => {
                let added = self.change(|map| weft_placement::add_node(map, &new, replace));
                // Its daemon is admitted as soon as it has the map.
                for node in self.map.iter_mut().flat_map(|map| map.nodes.values_mut()) {
                    node.state = node.purpose.present();
                }
                added
            }
            Command::AddDrive { .. } => Answer::Done,
            Command::SetPurpose { part, purpose } => self.change(|map| weft_placement::set_purpose(map, part, purpose)),
            Command::Remove { part } => self.change(|map| weft_placement::remove(map, part).map(Some)),
            Command::HotSpare { nodes } => self.change(|map| weft_placement::hot_spare(map, nodes)),
            Command::Status => Answer::Status(Box::new(self.status())),
            Command::Events => {
                let event =
                    |s: i64, text: &str| Event { time_ns: s * 1_000_000_000, level: "info".into(), text: text.into() };
                let number = i64::from(self.number);
                Answer::Events(vec![event(number, "woke"), event(100 - number, "slept")])
            }
            Command::Token if self.map.is_some() => Answer::Token(TOKEN.into()),
            Command::Token => Answer::Refused("in no cluster yet".into()),
            Command::CreateFilesystem { name, size_bytes } => {
                let entry = FilesystemEntry { name, id: 1, state: "ready".into(), size_bytes };
                self.filesystems.lock().unwrap().push(entry);
                Answer::Done
            }
            Command::DeleteFilesystem { name } => {
                self.filesystems.lock().unwrap().retain(|fs| fs.name != name);
                Answer::Done
            }
            Command::Died { .. } => Answer::Done,
            Command::BeginPass { kind, .. } => {
                self.passes.insert(kind, self.pass(kind));
                Answer::Done
            }
            Command::StopPass { .. } => Answer::Done,
            Command::Pass { kind } => {
                let state = self.passes.get(&kind).cloned();
                Answer::Pass(Box::new(state.unwrap_or_else(|| PassState::never(kind))))
            }
        }
    }

    fn change(&mut self, decide: impl FnOnce(&Map) -> Result<Option<Delta>, weft_placement::Refusal>) -> Answer {
        let Some(map) = &mut self.map else { return Answer::Refused("in no cluster yet".into()) };
        match decide(map) {
            Ok(Some(delta)) => map.apply(&delta).unwrap(),
            Ok(None) => {}
            Err(refusal) => return Answer::Refused(refusal.to_string()),
        }
        Answer::Done
    }

    /// Over before anyone can ask. The second node has damage, and nobody's check finds anything.
    fn pass(&self, kind: PassKind) -> PassState {
        let mut state = PassState { phase: PassPhase::Ended, buckets: 4, buckets_done: 4, ..PassState::never(kind) };
        if kind == PassKind::Scrub && self.number == 2 {
            state.damaged = 1;
            state.problems.push("bucket 3: stripe7 shard 2 on drive4".into());
        }
        state
    }

    fn describe(&self) -> Description {
        let drive = DriveDescription {
            path: format!("node{}.drive", self.number),
            uuid: Uuid(u128::MAX - u128::from(self.number)),
            core: 0,
            capacity_bytes: 4 << 30,
            zone_bytes: 1 << 20,
            zones: 3000,
            problem: None,
        };
        Description {
            name: self.name(),
            domain: None,
            cores: vec![([127, 0, 0, 1], 7000 + self.number).into()],
            control: self.control,
            cluster: self.map.as_ref().map(|map| map.cluster),
            drives: vec![drive],
        }
    }

    fn status(&self) -> Status {
        let map = self.map.as_ref();
        let node = map.map(|_| NodeId(self.number));
        Status {
            name: self.name(),
            node,
            version: "0.1.0".into(),
            phase: if map.is_some() { "serving".into() } else { "unclaimed".into() },
            waiting: None,
            incarnation: node.map(|_| Incarnation(1)),
            cluster: map.map(|map| self.cluster(map)),
            manager: node.map(|_| ManagerState {
                role: "follower".into(),
                leader: Some(NodeId(1)),
                term: 1,
                voters: vec![NodeId(1)],
                waiting: None,
            }),
            drives: vec![self.drive(map)],
            buckets: map.map(|map| self.buckets(map)).unwrap_or_default(),
            unreached: Vec::new(),
        }
    }

    fn drive(&self, map: Option<&Map>) -> DriveState {
        let own = map.and_then(|map| map.drives.values().find(|drive| drive.node.0 == self.number));
        DriveState {
            path: format!("node{}.drive", self.number),
            id: own.map(|drive| drive.id),
            state: if own.is_some() { "in use".into() } else { "blank".into() },
            capacity_bytes: 4 << 30,
            zones: 3000,
            zones_free: 2000,
            ring_used_bytes: 0,
            errors: 0,
            trouble: None,
        }
    }

    fn cluster(&self, map: &Map) -> ClusterStatus {
        let leads = |node| map.buckets.iter().filter(|bucket| bucket.leader.node == node).count();
        let nodes = map.nodes.values().map(|node| NodeState {
            node: node.id,
            name: node.name.clone(),
            state: format!("{:?}", node.state).to_lowercase(),
            control: node.control,
            leads: leads(node.id),
            manager: map.managers.contains(&node.id),
            domain: node.name.clone(),
            holds: Default::default(),
        });
        ClusterStatus {
            name: map.name.clone(),
            id: map.cluster,
            protection: map.protection,
            map: map.version,
            buckets: map.buckets.len(),
            nodes: nodes.collect(),
            filesystems: self.filesystems.lock().unwrap().clone(),
            clients: 0,
            drives: Vec::new(),
            moves_under_way: 0,
            moves_waiting: 0,
            folded: 0,
            journals_lacking: 0,
            hot_spare: map.hot_spare,
        }
    }

    fn buckets(&self, map: &Map) -> Vec<BucketState> {
        let led = (0u32..).zip(&map.buckets).filter(|(_, bucket)| bucket.leader.node.0 == self.number);
        led.map(|(number, bucket)| BucketState {
            bucket: number,
            epoch: bucket.epoch.0,
            state: "serving".into(),
            serving: true,
            stats: None,
        })
        .collect()
    }
}
