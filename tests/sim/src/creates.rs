//! What making a file costs in a directory that has many already: messages, and work of the whole cluster and the client.

use crate::calm;
use crate::node::NodeTunables;
use crate::world::World;
use std::rc::Rc;
use std::time::Duration;
use weft_client::{Client, Errno};
use weft_reactor::join_all;
use weft_wire::InodeId;
use weft_wire::fs::FileKind;
use weft_wire::map::Protection;

const FS: &str = "data";
const DIRECTORY: &[u8] = b"many";
const DIRECTORY_MODE: u16 = 0o700;
const BUCKET_BITS: u8 = 6;
const DRIVE_BYTES: u64 = 8 << 30;
/// Creates at a time while the directory is filled.
const AT_ONCE: u64 = 64;
/// One after the other, to be counted.
const COUNTED: u64 = 500;
const PHASE_MAX: Duration = Duration::from_secs(3600);
/// What is put off comes to an end, and what an idle cluster says is counted.
const QUIET: Duration = Duration::from_secs(10);

/// With so many names in the directory.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub entries: u64,
    /// Datagrams for one create, without what an idle cluster sends meanwhile.
    pub packets: f64,
    /// Processor time of everything, for one create, in microseconds.
    pub cpu_us: f64,
    /// Virtual time of one create, in microseconds.
    pub took_us: f64,
}

/// Makes files in one directory until it has each of `sizes`, ascending, and counts there. `cpu_seconds` tells what this process has used.
pub fn costs(
    seed: u64,
    nodes: usize,
    protection: Protection,
    sizes: &[u64],
    cpu_seconds: impl Fn() -> f64,
) -> Result<Vec<Cost>, String> {
    let mut world = World::new(seed);
    let drive = calm::drive(DRIVE_BYTES);
    for _ in 0..nodes {
        world.add_node(1, drive, NodeTunables::default());
    }
    world.form(protection, BUCKET_BITS)?;
    world.create_filesystem(FS)?;
    let (process, client) = world.connect(FS)?;
    let run = |world: &mut World, work: Work| {
        let done = world.block_on_client(process, PHASE_MAX, work.run(Rc::clone(&client)));
        done.map_err(|_| "it takes too long".to_string())?.map_err(|errno| format!("a create fails: {errno}"))
    };
    let directory = run(&mut world, Work::Directory)?;
    let mut made = 0;
    let mut costs = Vec::new();
    for entries in sizes {
        run(&mut world, Work::Fill { directory, from: made, to: *entries })?;
        world.run_for(QUIET);
        let (idle_from, idle_began) = (world.net.stats().sent, world.now());
        world.run_for(QUIET);
        let idle = (world.net.stats().sent - idle_from) as f64 / world.now().since(idle_began).as_secs_f64();
        let (from, began, cpu) = (world.net.stats().sent, world.now(), cpu_seconds());
        made = entries + COUNTED;
        mark("begin");
        run(&mut world, Work::OneByOne { directory, from: *entries, to: made })?;
        mark("end");
        let took = world.now().since(began).as_secs_f64();
        let sent = (world.net.stats().sent - from) as f64 - idle * took;
        costs.push(Cost {
            entries: *entries,
            packets: sent / COUNTED as f64,
            cpu_us: (cpu_seconds() - cpu) * 1e6 / COUNTED as f64,
            took_us: took * 1e6 / COUNTED as f64,
        });
    }
    Ok(costs)
}

/// Where the counted creates begin and end, for `valgrind --tool=callgrind --dump-before='*creates::mark*'`.
#[inline(never)]
fn mark(what: &str) {
    std::hint::black_box(what);
}

enum Work {
    Directory,
    Fill { directory: InodeId, from: u64, to: u64 },
    OneByOne { directory: InodeId, from: u64, to: u64 },
}

impl Work {
    async fn run(self, client: Rc<Client>) -> Result<InodeId, Errno> {
        match self {
            Work::Directory => {
                let node = calm::roots(FileKind::Directory, DIRECTORY_MODE);
                client.make(client.root(), DIRECTORY, node).await.map(|made| made.inode)
            }
            Work::Fill { directory, from, to } => {
                for first in (from..to).step_by(AT_ONCE as usize) {
                    let numbers = first..to.min(first + AT_ONCE);
                    let creates = numbers.map(|number| create(&client, directory, number));
                    join_all(creates).await.into_iter().collect::<Result<Vec<()>, Errno>>()?;
                }
                Ok(directory)
            }
            Work::OneByOne { directory, from, to } => {
                for number in from..to {
                    create(&client, directory, number).await?;
                }
                Ok(directory)
            }
        }
    }
}

async fn create(client: &Client, directory: InodeId, number: u64) -> Result<(), Errno> {
    let name = format!("file{number}");
    client.make(directory, name.as_bytes(), calm::roots_file()).await.map(drop)
}
