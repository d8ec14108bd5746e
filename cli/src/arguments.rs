//! The command line.

use crate::connection::Endpoint;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;
use weft_wire::map::Protection;

/// Talks to the nodes of a Weft cluster.
#[derive(Debug, Parser)]
#[command(name = "weft", version, arg_required_else_help = true, propagate_version = true)]
pub struct Arguments {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Args)]
pub struct Global {
    /// The Unix socket of the node to ask
    #[arg(long, global = true, value_name = "PATH", default_value = "/run/weft/control.sock")]
    pub socket: PathBuf,
    /// Ask the node with this control address instead of the one behind --socket
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub control: Option<Endpoint>,
    /// The file with the token that nodes want over TCP [default: control.token beside --socket]
    #[arg(long, global = true, value_name = "PATH")]
    pub token_file: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// How long to wait for the answer of a node
    #[arg(long, global = true, value_name = "SECONDS", default_value = "3", value_parser = seconds)]
    pub timeout: Duration,
}

impl Global {
    pub fn endpoint(&self) -> Endpoint {
        self.control.clone().unwrap_or_else(|| Endpoint::Unix(self.socket.clone()))
    }

    pub fn token_file(&self) -> PathBuf {
        self.token_file.clone().unwrap_or_else(|| self.socket.with_file_name("control.token"))
    }
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a cluster, and set what holds for all of it
    #[command(subcommand)]
    Cluster(ClusterVerb),
    /// Show how the cluster is; exits with 0 if healthy, 1 if not, 2 if that can't be told
    Status,
    /// Show what happened on all nodes, in order of time
    Events {
        /// Go on showing what happens, until interrupted
        #[arg(long, short)]
        follow: bool,
    },
    /// Read everything that is stored, and compare it with its checksums
    #[command(subcommand)]
    Scrub(ScrubVerb),
    /// Create, list, delete and check filesystems
    #[command(subcommand)]
    Fs(FsVerb),
    /// Add, drain and remove nodes
    #[command(subcommand)]
    Node(NodeVerb),
    /// List, add, drain and remove drives, and look at what is on them
    #[command(subcommand)]
    Drive(DriveVerb),
    /// Mount a filesystem
    Mount(Mount),
    /// Print the completion script of a shell
    Completion { shell: clap_complete::Shell },
    /// Write the manual pages into a directory
    Man { directory: PathBuf },
}

#[derive(Debug, Subcommand)]
pub enum ClusterVerb {
    /// Make one cluster of nodes that are in none. Their drives are formatted
    Create(Create),
    /// Keep the capacity of some nodes free, so that everything can be made again when they are lost
    HotSpare {
        /// Of how many nodes; 0 gives it back
        nodes: u16,
        /// Show the arithmetic, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum NodeVerb {
    /// Make a node that is in no cluster part of this one. Its drives are formatted, and get their share of the data
    Add(AddNode),
    /// Move everything away from a node, while it and all programs go on
    Drain {
        /// Its name, or nodeN
        node: String,
        #[command(flatten)]
        drain: DrainHow,
    },
    /// Take a node that holds nothing any more out of the cluster
    Remove {
        /// Its name, or nodeN
        node: String,
        /// Show what it still holds, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
pub struct AddNode {
    /// The new node's control address, HOST:PORT; or the path of its Unix socket
    #[arg(value_name = "ADDR")]
    pub address: Endpoint,
    /// It takes the place of the node of the same name, which is away and whose drives are lost
    #[arg(long)]
    pub replace: bool,
    /// Show the arithmetic, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// How long to wait until it serves
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    pub wait: Duration,
}

#[derive(Clone, Copy, Debug, Args)]
pub struct DrainHow {
    /// Not after all: it stays, and gets its share back
    #[arg(long)]
    pub cancel: bool,
    /// Show the arithmetic, and change nothing
    #[arg(long, conflicts_with = "cancel")]
    pub dry_run: bool,
    /// Wait until it holds nothing any more
    #[arg(long, conflicts_with_all = ["cancel", "dry_run"])]
    pub wait: bool,
}

#[derive(Debug, Args)]
pub struct Create {
    /// The cluster's name
    #[arg(long, value_parser = name)]
    pub name: String,
    /// Data and parity shards of each stripe: D is 3 to 16, P is 2 or 4; P failures lose nothing
    #[arg(long, value_name = "D+P")]
    pub protection: Protection,
    /// Divide the cluster into 2^K buckets instead of as many as fit the cores and drives
    #[arg(long, value_name = "K")]
    pub bucket_bits: Option<u8>,
    /// Control addresses of all nodes, HOST:PORT; or the paths of their Unix sockets
    #[arg(long = "node", value_name = "ADDR", num_args = 1.., required = true)]
    pub nodes: Vec<Endpoint>,
    /// Where to keep the plan until all nodes have it [default: NAME.forming beside the token file]
    #[arg(long, value_name = "PATH")]
    pub plan: Option<PathBuf>,
    /// How long to wait until all nodes serve
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    pub wait: Duration,
}

#[derive(Debug, Subcommand)]
pub enum FsVerb {
    /// Create a filesystem; does nothing if there is one of that name
    Create {
        name: String,
        /// The most it may hold, in bytes or for example 10GiB; without it the cluster is the limit
        #[arg(long, value_name = "SIZE", value_parser = size)]
        size: Option<u64>,
    },
    /// List the filesystems
    List,
    /// Delete a filesystem with everything in it
    Delete {
        name: String,
        /// Really delete it
        #[arg(long)]
        yes: bool,
    },
    /// Compare what all nodes say of their buckets with each other and with the drives, and wait for the result;
    /// exits with 0 if all is well, 1 if something is wrong, 2 if not everything could be seen
    Check,
}

#[derive(Debug, Subcommand)]
pub enum ScrubVerb {
    /// Begin a pass over everything on all nodes; what is damaged is repaired
    Start {
        /// What each node may read a second, in MiB [default: its scrub_mib_max]
        #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..))]
        pace: Option<u32>,
        /// Wait for the end; exits with 0 if all is well, 1 if something was damaged, 2 if not all was seen
        #[arg(long)]
        wait: bool,
    },
    /// Show how the newest pass goes or went, what it found, and when the next is due
    Status,
    /// End the pass that runs
    Stop,
}

#[derive(Debug, Subcommand)]
pub enum DriveVerb {
    /// List the drives of all nodes
    List,
    /// Format a blank drive that a node's configuration names, and make it part of the cluster
    Add {
        /// The node's name, or nodeN
        node: String,
        /// As its configuration names it
        path: String,
        /// Show the arithmetic, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Move everything away from a drive, while it and all programs go on
    Drain {
        /// driveN, or N
        drive: String,
        #[command(flatten)]
        drain: DrainHow,
    },
    /// Take a drive that holds nothing any more out of the cluster
    Remove {
        /// driveN, or N
        drive: String,
        /// Show what it still holds, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Show what is on a drive, without writing to it
    Inspect {
        /// The file or block device
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct Mount {
    /// HOST:PORT[,HOST:PORT...]/FILESYSTEM
    pub source: String,
    /// The directory on which to mount
    pub directory: PathBuf,
    /// Options, for example ro,allow_other
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Option<String>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u32>() {
        Ok(seconds @ 1..) => Ok(Duration::from_secs(seconds.into())),
        _ => Err("expected a whole number of seconds, 1 or more".into()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    match crate::size::parse(text).map_err(|error| error.to_string())? {
        0 => Err("a size of 0 would hold nothing; leave --size out for no limit".into()),
        bytes => Ok(bytes),
    }
}

fn name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match text.len() {
        1..=63 if text.chars().all(fits) && !text.starts_with(['.', '-']) => Ok(text.into()),
        _ => Err("expected 1 to 63 letters, digits, '-', '_' and '.', the first no '.' or '-'".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_cluster_is_described_in_one_line() {
        let line =
            "weft cluster create --name a --protection 4+2 --node 127.0.0.1:1 127.0.0.1:2 --node n/c.sock --json";
        let parsed = parse(line).unwrap();
        assert!(parsed.global.json);
        assert_eq!(parsed.global.token_file(), PathBuf::from("/run/weft/control.token"));
        let Verb::Cluster(ClusterVerb::Create(create)) = parsed.verb else { panic!("{parsed:?}") };
        assert_eq!(create.nodes.len(), 3);
        assert_eq!(create.protection, Protection { data: 4, parity: 2 });
    }

    #[test]
    fn wrong_arguments_say_what_is_expected() {
        let create = "weft cluster create --name a --node h:1 --protection";
        for (line, part) in [
            (format!("{create} 4"), "D+P"),
            (format!("{create} 2+2"), "outside 3..16"),
            ("weft cluster create --name .. --protection 4+2 --node h:1".into(), "1 to 63"),
            (format!("{create} 4+2 --node nowhere"), "HOST:PORT"),
            ("weft fs create a --size 10GB".into(), "is no unit"),
            ("weft fs create a --size 0".into(), "leave --size out"),
            ("weft node drain a --cancel --wait".into(), "cannot be used with"),
            ("weft status --timeout 0".into(), "1 or more"),
        ] {
            let said = parse(&line).unwrap_err();
            assert!(said.contains(part), "{line}: {said}");
        }
    }
}
