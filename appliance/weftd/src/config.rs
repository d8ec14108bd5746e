//! The configuration file of `weftd`: one TOML file per node, every key documented here, unknown keys refused.
//!
//! Checking has two steps. `Config::parse` looks at the text alone and reports all problems at once.
//! `Config::check_host` compares it with the machine: directories, drives, lengths of paths.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

pub const NAME_BYTES_MAX: usize = 63;
pub const CORES_MAX: usize = 128;
pub const DRIVES_MAX: usize = 256;
/// Beyond a year, damage adds up faster than it is found.
pub const SCRUB_DAYS_MAX: u32 = 366;
/// Less is not told from a busy machine; more is no fail-over.
pub const AWAY_AFTER_MS: RangeInclusive<u32> = 1000..=60_000;
/// Less would make shards again for each restart; at most 30 days.
pub const FAILED_AFTER_S: RangeInclusive<u32> = 5..=30 * 86_400;
/// Below this the format's fixed regions leave too few zones for data.
pub const DRIVE_BYTES_MIN: u64 = 64 << 20;
/// Drives are read and written in blocks of this size.
const BLOCK_BYTES: u64 = 4096;
/// `sun_path` has 108 bytes, one of them the final zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The node's name: unique in the cluster, 1 to 63 of `a-z`, `0-9`, `-`, `.`.
    pub name: String,
    /// Where the node keeps what is not on its drives: locks, tokens, events. Nothing in it is needed to serve data.
    /// Must exist; relative paths in this file start here.
    pub state_dir: PathBuf,
    /// The failure domain, for example the rack. Default: the node is its own domain.
    #[serde(default)]
    pub domain: Option<String>,
    /// The Unix socket on which `weft` talks to this node. Default: `control.sock` in `state_dir`.
    #[serde(default)]
    pub control_socket: Option<PathBuf>,
    /// The TCP address on which other nodes and `weft` talk to this node. Supervisors of other nodes send datagrams to the
    /// same address and port when their daemon has died.
    pub control_listen: SocketAddr,
    /// The file with the token that `weft` must show over TCP before the node is in a cluster; made with a random one if
    /// it isn't there. Nodes of one cluster may share it. Default: `control.token` in `state_dir`.
    #[serde(default)]
    pub control_token: Option<PathBuf>,
    /// What a core does when it has nothing to do. Default: `adaptive`.
    #[serde(default)]
    pub idle: Idle,
    /// What to log: a level (`error`, `warn`, `info`, `debug`, `trace`), or a filter such as
    /// `info,weft_journal=debug`. Default: `info`.
    #[serde(default = "default_log")]
    pub log: String,
    /// Within so many days everything on the drives is read and compared with its checksums once; 0: only when
    /// `weft scrub start` asks for it. Default: 7.
    #[serde(default = "default_scrub_days")]
    pub scrub_days: u32,
    /// What a scrub may read of this node's buckets a second, in MiB. Default: 64.
    #[serde(default = "default_scrub_mib_max")]
    pub scrub_mib_max: u32,
    /// A part of a directory (a page) with more names than this splits in two, in other buckets. The nodes of a cluster
    /// should agree. Default: 4096.
    #[serde(default = "default_page_entries_max")]
    pub page_entries_max: u64,
    /// A node that is silent for so long, in milliseconds, is away, and others lead what it led. The managers' leader decides by its
    /// own number, so the nodes of a cluster should agree. Default: 1500.
    #[serde(default = "default_away_after_ms")]
    pub away_after_ms: u32,
    /// A node that is away for so long, in seconds, is given up, and its shards are made again elsewhere. The nodes of a
    /// cluster should agree. Default: 30.
    #[serde(default = "default_failed_after_s")]
    pub failed_after_s: u32,
    /// The polling threads, numbered from 0 in the order of this file.
    pub cores: Vec<CoreConfig>,
    /// The node's drives.
    pub drives: Vec<DriveConfig>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Idle {
    /// Polls for ever: lowest latency, takes the whole processor.
    Busy,
    /// Polls a little, then sleeps until something happens.
    #[default]
    Adaptive,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CoreConfig {
    /// The UDP address of this core: other nodes and clients must reach it, so neither 0.0.0.0 nor port 0.
    pub listen: SocketAddr,
    /// The processor to run on. Default: wherever the kernel puts it.
    #[serde(default)]
    pub pin: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DriveConfig {
    /// A block device or a file.
    pub path: PathBuf,
    /// How much of it to use, a multiple of 4096. Default: all of it. A file that does not exist is created with this size.
    #[serde(default)]
    pub size_bytes: Option<u64>,
    /// The core that owns the drive. Default: 0.
    #[serde(default)]
    pub core: usize,
    /// For tests: keeps writes in the memory of the process until they are flushed, so that a missing flush loses them
    /// when the process is killed. Default: false.
    #[serde(default)]
    pub volatile_cache: bool,
}

/// Which addresses the node may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// Only loopback addresses: there is no encryption yet.
    Loopback,
    /// Any address: whoever reaches the network can read and change data.
    Insecure,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("can't read the configuration {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration {path} can't be understood: {message}")]
    Syntax { path: PathBuf, message: String },
    #[error("the configuration {path} is wrong:\n  {}", problems.join("\n  "))]
    Wrong { path: PathBuf, problems: Vec<String> },
}

fn default_log() -> String {
    "info".into()
}

fn default_scrub_days() -> u32 {
    7
}

fn default_scrub_mib_max() -> u32 {
    64
}

fn default_page_entries_max() -> u64 {
    weft_namespace::Tunables::default().page_entries_max
}

fn default_away_after_ms() -> u32 {
    weft_manager::Tunables::default().away_after.as_millis() as u32
}

fn default_failed_after_s() -> u32 {
    weft_manager::Tunables::default().failed_after.as_secs() as u32
}

impl Config {
    /// Reads and checks a file, without looking at anything else of the machine.
    pub fn load(path: &Path, exposure: Exposure) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Config::parse(&text, path, exposure)
    }

    /// `path` is for messages.
    pub fn parse(text: &str, path: &Path, exposure: Exposure) -> Result<Config, ConfigError> {
        let syntax = |error: toml::de::Error| ConfigError::Syntax { path: path.into(), message: error.to_string() };
        let mut config: Config = toml::from_str(text).map_err(syntax)?;
        let problems = config.problems(exposure);
        if !problems.is_empty() {
            return Err(ConfigError::Wrong { path: path.into(), problems });
        }
        config.resolve();
        Ok(config)
    }

    /// What can't be seen in the text: whether the machine has what is named. All problems at once.
    pub fn check_host(&self, path: &Path) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        if !self.state_dir.is_dir() {
            problems.push(format!("state_dir {} is no directory: create it", self.state_dir.display()));
        }
        for drive in &self.drives {
            problems.extend(drive.host_problem());
        }
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::Wrong { path: path.into(), problems }) }
    }

    /// The control socket, also when it is not configured.
    pub fn control_socket(&self) -> PathBuf {
        self.control_socket.clone().unwrap_or_else(|| self.state_dir.join("control.sock"))
    }

    /// The token file, also when it is not configured.
    pub fn control_token(&self) -> PathBuf {
        self.control_token.clone().unwrap_or_else(|| self.state_dir.join("control.token"))
    }

    /// Makes relative paths start at the state directory.
    fn resolve(&mut self) {
        self.control_socket = Some(self.state_dir.join(self.control_socket()));
        self.control_token = Some(self.state_dir.join(self.control_token()));
        for drive in &mut self.drives {
            drive.path = self.state_dir.join(&drive.path);
        }
    }

    fn problems(&self, exposure: Exposure) -> Vec<String> {
        let mut problems = Vec::new();
        problems.extend(name_problem("name", &self.name));
        problems.extend(self.domain.as_deref().and_then(|domain| name_problem("domain", domain)));
        if !self.state_dir.is_absolute() {
            problems.push(format!("state_dir {} must be an absolute path", self.state_dir.display()));
        }
        let socket = self.state_dir.join(self.control_socket());
        if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            let shown = socket.display();
            problems.push(format!("the path of a Unix socket has at most {SOCKET_PATH_BYTES_MAX} bytes: {shown}"));
        }
        if self.scrub_days > SCRUB_DAYS_MAX {
            problems.push(format!("scrub_days {} is more than {SCRUB_DAYS_MAX}", self.scrub_days));
        }
        if self.scrub_mib_max == 0 {
            problems.push("scrub_mib_max 0 would never come to an end: set scrub_days = 0 to have no schedule".into());
        }
        if self.page_entries_max == 0 {
            problems.push("page_entries_max 0: a page of a directory can't have fewer than 1 name".into());
        }
        if !AWAY_AFTER_MS.contains(&self.away_after_ms) {
            let (least, most) = AWAY_AFTER_MS.into_inner();
            problems.push(format!("away_after_ms {} is not between {least} and {most}", self.away_after_ms));
        }
        if !FAILED_AFTER_S.contains(&self.failed_after_s) {
            let (least, most) = FAILED_AFTER_S.into_inner();
            problems.push(format!("failed_after_s {} is not between {least} and {most}", self.failed_after_s));
        } else if u64::from(self.failed_after_s) * 1000 < u64::from(self.away_after_ms) {
            problems.push(format!(
                "failed_after_s {} is less than away_after_ms {}: a node is away first",
                self.failed_after_s, self.away_after_ms
            ));
        }
        if let Err(error) = self.log.parse::<tracing_subscriber::EnvFilter>() {
            problems.push(format!("log {:?} is no filter: {error}", self.log));
        }
        self.address_problems(exposure, &mut problems);
        self.drive_problems(&mut problems);
        problems
    }

    fn address_problems(&self, exposure: Exposure, problems: &mut Vec<String>) {
        match self.cores.len() {
            0 => problems.push("there is no core: add one [[cores]] with a listen address".into()),
            n if n > CORES_MAX => problems.push(format!("{n} cores are more than {CORES_MAX}")),
            _ => {}
        }
        let cores = self.cores.iter().enumerate().map(|(index, core)| (format!("core {index}"), core.listen));
        let all = std::iter::once(("control_listen".to_string(), self.control_listen)).chain(cores);
        let mut data = BTreeSet::new();
        for (what, address) in all {
            if address.port() == 0 {
                problems.push(format!("{what}: {address} has port 0: others must know the port, so name one"));
            }
            if what != "control_listen" {
                if address.ip().is_unspecified() {
                    problems
                        .push(format!("{what}: {address} is no address that others can send to: name one interface"));
                }
                if !data.insert(address) {
                    problems.push(format!("{what}: {address} is taken by another core: each needs its own"));
                }
            }
            if exposure == Exposure::Loopback && !is_loopback(address.ip()) {
                problems.push(format!(
                    "{what}: {address} is not a loopback address, and there is no encryption yet; \
                     with --insecure weftd takes it, and whoever reaches that network can read and change data"
                ));
            }
        }
        let families: BTreeSet<bool> = self.cores.iter().map(|core| core.listen.is_ipv6()).collect();
        if families.len() > 1 {
            problems.push("some cores listen on IPv4 and others on IPv6: use one of them".into());
        }
        let pins: Vec<usize> = self.cores.iter().filter_map(|core| core.pin).collect();
        if pins.iter().collect::<BTreeSet<_>>().len() < pins.len() {
            problems.push("two cores are pinned to the same processor".into());
        }
    }

    fn drive_problems(&self, problems: &mut Vec<String>) {
        match self.drives.len() {
            0 => problems.push("there is no drive: add one [[drives]] with a path".into()),
            n if n > DRIVES_MAX => problems.push(format!("{n} drives are more than {DRIVES_MAX}")),
            _ => {}
        }
        let mut paths = BTreeSet::new();
        for drive in &self.drives {
            let path = drive.path.display();
            if !paths.insert(&drive.path) {
                problems.push(format!("drive {path} is named twice"));
            }
            if drive.core >= self.cores.len() {
                let cores = self.cores.len();
                problems.push(format!("drive {path}: there is no core {}, only {cores}, counted from 0", drive.core));
            }
            match drive.size_bytes {
                Some(size) if size < DRIVE_BYTES_MIN => {
                    problems.push(format!("drive {path}: {size} bytes are less than {DRIVE_BYTES_MIN}"));
                }
                Some(size) if size % BLOCK_BYTES != 0 => {
                    problems.push(format!("drive {path}: {size} bytes are no multiple of {BLOCK_BYTES}"));
                }
                _ => {}
            }
        }
    }
}

impl DriveConfig {
    fn host_problem(&self) -> Option<String> {
        use std::os::unix::fs::FileTypeExt;
        let path = self.path.display();
        match std::fs::metadata(&self.path) {
            Ok(metadata) if metadata.file_type().is_block_device() => None,
            Ok(metadata) if metadata.is_file() => match self.size_bytes {
                Some(size) if metadata.len() < size => {
                    let found = metadata.len();
                    Some(format!("drive {path} is a file of {found} bytes, and size_bytes says {size}"))
                }
                None if metadata.len() < DRIVE_BYTES_MIN => {
                    let found = metadata.len();
                    Some(format!("drive {path} is a file of {found} bytes, less than {DRIVE_BYTES_MIN}"))
                }
                _ => None,
            },
            Ok(_) => Some(format!("drive {path} is neither a block device nor a file")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let parent = self.path.parent().is_some_and(Path::is_dir);
                match (self.size_bytes, parent) {
                    (Some(_), true) => None,
                    (None, true) => Some(format!("drive {path} does not exist: create it, or give its size_bytes")),
                    (_, false) => Some(format!("drive {path} does not exist, nor does its directory")),
                }
            }
            Err(error) => Some(format!("drive {path} can't be looked at: {error}")),
        }
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

fn name_problem(key: &str, name: &str) -> Option<String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(good);
    (!fits).then(|| format!("{key} {name:?} must have 1 to {NAME_BYTES_MAX} characters of a-z, 0-9, `-` and `.`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        name = "node1"
        state_dir = "/var/lib/weft"
        control_listen = "127.0.0.1:7100"
        [[cores]]
        listen = "127.0.0.1:7000"
        [[drives]]
        path = "a.drive"
        size_bytes = 268435456
    "#;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("weftd.toml"), Exposure::Loopback)
    }

    /// The only problem that changing the good file so makes.
    fn problem(from: &str, to: &str) -> String {
        assert!(GOOD.contains(from), "{from}");
        match parse(&GOOD.replace(from, to)) {
            Err(ConfigError::Wrong { problems, .. }) if problems.len() == 1 => problems.concat(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn fills_in_defaults() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.idle, Idle::Adaptive);
        assert_eq!(config.log, "info");
        assert_eq!(config.control_socket(), Path::new("/var/lib/weft/control.sock"));
        assert_eq!(config.drives[0].path, Path::new("/var/lib/weft/a.drive"));
        assert_eq!(config.drives[0].core, 0);
    }

    #[test]
    fn refuses_unknown_keys_by_name() {
        for (place, key) in [
            ("name =", "nmae = 1\nname ="),
            ("path =", "raid = 5\npath ="),
            ("listen = \"127.0.0.1:7000\"", "listen = \"127.0.0.1:7000\"\nport = 1"),
        ] {
            let error = parse(&GOOD.replace(place, key)).unwrap_err().to_string();
            let name = key.split(' ').next().unwrap();
            let named = ["nmae", "raid", "port"].iter().any(|n| error.contains(n));
            assert!(named && error.contains("unknown field"), "{name}: {error}");
        }
    }

    #[test]
    fn says_where_a_mistake_is() {
        let error = parse(&GOOD.replace("size_bytes = 268435456", "size_bytes = \"big\"")).unwrap_err().to_string();
        assert!(error.contains("line 9") && error.contains("weftd.toml"), "{error}");
    }

    #[test]
    fn refuses_what_can_not_work() {
        assert!(problem("node1", "Node 1").contains("name"));
        assert!(problem("/var/lib/weft", "weft").contains("absolute"));
        assert!(problem("127.0.0.1:7000", "127.0.0.1:0").contains("port 0"));
        assert!(problem("\"a.drive\"", "\"a.drive\"\ncore = 1").contains("no core 1"));
        assert!(problem("268435456", "268435457").contains("multiple"));
        assert!(problem("268435456", "4096").contains("less than"));
        assert!(problem("name =", "log = \"=,=\"\nname =").contains("filter"));
        assert!(problem("name =", "away_after_ms = 10\nname =").contains("away_after_ms 10 is not between"));
        assert!(problem("name =", "failed_after_s = 1\nname =").contains("failed_after_s 1 is not between"));
        let swapped = "away_after_ms = 60000\nfailed_after_s = 10\nname =";
        assert!(problem("name =", swapped).contains("a node is away first"));
        let long = format!("control_socket = \"/{}\"\nname =", "x".repeat(SOCKET_PATH_BYTES_MAX));
        assert!(problem("name =", &long).contains("Unix socket"));
        let twice = "127.0.0.1:7000\"\n[[cores]]\nlisten = \"127.0.0.1:7000";
        assert!(problem("127.0.0.1:7000", twice).contains("taken"));
        let mixed = "127.0.0.1:7000\"\n[[cores]]\nlisten = \"[::1]:7000";
        assert!(problem("127.0.0.1:7000", mixed).contains("IPv6"));
        assert!(problem("size_bytes = 268435456", "[[drives]]\npath = \"a.drive\"").contains("twice"));
    }

    #[test]
    fn reports_all_problems_at_once() {
        let text = "name = \"\"\nstate_dir = \"x\"\ncontrol_listen = \"127.0.0.1:0\"\ncores = []\ndrives = []\n";
        match parse(text) {
            Err(ConfigError::Wrong { problems, .. }) => assert_eq!(problems.len(), 5, "{problems:?}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn takes_other_addresses_only_when_told() {
        assert!(problem("127.0.0.1:7000", "192.0.2.1:7000").contains("--insecure"));
        assert!(problem("127.0.0.1:7100", "0.0.0.0:7100").contains("--insecure"));
        let text = GOOD.replace("127.0.0.1", "192.0.2.1");
        assert!(Config::parse(&text, Path::new("x"), Exposure::Insecure).is_ok());
        let text = GOOD.replace("127.0.0.1:7000", "0.0.0.0:7000");
        assert!(Config::parse(&text, Path::new("x"), Exposure::Insecure).is_err());
    }

    #[test]
    fn looks_at_the_host() {
        let state = std::env::temp_dir().join(format!("weftd-config-{}", std::process::id()));
        std::fs::create_dir_all(&state).unwrap();
        let text = GOOD.replace("/var/lib/weft", state.to_str().unwrap());
        let path = Path::new("weftd.toml");
        let missing = parse(&text).unwrap();
        assert!(missing.check_host(path).is_ok());
        let unsized_drive = parse(&text.replace("size_bytes = 268435456", "")).unwrap();
        assert!(unsized_drive.check_host(path).unwrap_err().to_string().contains("does not exist"));
        std::fs::write(state.join("a.drive"), b"short").unwrap();
        assert!(missing.check_host(path).unwrap_err().to_string().contains("file of 5 bytes"));
        assert!(unsized_drive.check_host(path).unwrap_err().to_string().contains("less than"));
        std::fs::remove_dir_all(&state).unwrap();
        assert!(missing.check_host(path).unwrap_err().to_string().contains("state_dir"));
    }

    #[test]
    fn the_example_names_every_key() {
        let text = include_str!("../../../packaging/weftd.toml");
        let config = Config::parse(text, Path::new("packaging/weftd.toml"), Exposure::Insecure).unwrap();
        let shown = toml::Table::try_from(&config).unwrap();
        let example: toml::Table = text.parse().unwrap();
        let keys = |table: &toml::Table| table.keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(keys(&shown), keys(&example));
        for list in ["cores", "drives"] {
            let first = |table: &toml::Table| table[list][0].as_table().map(keys);
            assert_eq!(first(&shown), first(&example), "{list}");
        }
    }
}
