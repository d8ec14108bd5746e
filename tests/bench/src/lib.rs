//! The same work on Weft, on a directory mounted again through FUSE, and on GlusterFS, and what it costs in CPU time.
//!
//! One filesystem runs at a time. For each row: prepare what it needs, wait until that is settled, drop the kernel's caches, look
//! at all clocks, do the work, wait until the filesystem has done what it put off, look again.

#![forbid(unsafe_code)]

pub mod cpu;
pub mod measure;
pub mod report;
pub mod rows;
pub mod systems;
pub mod tree;

use anyhow::{Context, Result};
use clap::ValueEnum;
use measure::{Idle, Measured};
use rows::{Place, Row, Sizes};
use std::path::PathBuf;
use systems::{Gluster, Passthrough, System, Weft};
use weft_cluster_tests::programs::Programs;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Contender {
    Weft,
    Passthrough,
    Gluster,
}

pub struct Plan {
    pub contenders: Vec<Contender>,
    pub rows: Vec<Row>,
    pub repetitions: usize,
    pub sizes: Sizes,
    /// Where everything goes.
    pub place: PathBuf,
    pub programs: Programs,
    /// `weft-load`.
    pub load: PathBuf,
    pub passthrough: PathBuf,
    pub drive_bytes: u64,
}

impl Plan {
    /// Results in the order of the rows. What happens is told to stderr.
    pub fn run(&self) -> Result<Vec<report::Result>> {
        std::fs::create_dir_all(&self.place).with_context(|| format!("can't create {}", self.place.display()))?;
        if self.contenders.contains(&Contender::Gluster) {
            Gluster::install()?;
        }
        let tree = tree::Tree::make(&self.place, self.sizes.tree_files)?;
        let empty = |row: &Row| report::Result { row: *row, weft: vec![], passthrough: vec![], gluster: vec![] };
        let mut results: Vec<report::Result> = self.rows.iter().map(empty).collect();
        for contender in &self.contenders {
            let system = self.start(*contender).with_context(|| format!("can't start {contender:?}"))?;
            let idle = Idle::measure(&*system)?;
            eprintln!("{contender:<12?} idle          {:.1} % of a core by its processes", idle.processes * 100.0);
            let place = Place { load: &self.load, mount: system.mount(), tree: &tree, sizes: self.sizes };
            for result in &mut results {
                let cells = match contender {
                    Contender::Weft => &mut result.weft,
                    Contender::Passthrough => &mut result.passthrough,
                    Contender::Gluster => &mut result.gluster,
                };
                for _ in 0..self.repetitions {
                    let measured = measure::measure(result.row, &*system, &place, idle);
                    let measured = measured.with_context(|| format!("{} on {contender:?}", result.row.name()))?;
                    tell(*contender, result.row, &measured, &self.sizes);
                    cells.push(measured);
                }
            }
        }
        Ok(results)
    }

    fn start(&self, contender: Contender) -> Result<Box<dyn System>> {
        let state = |name: &str| self.place.join(name);
        Ok(match contender {
            Contender::Weft => Box::new(Weft::start(self.programs.clone(), &state("weft"), self.drive_bytes)?),
            Contender::Passthrough => Box::new(Passthrough::start(&self.passthrough, &state("passthrough"))?),
            Contender::Gluster => Box::new(Gluster::start(&state("gluster"))?),
        })
    }
}

fn tell(contender: Contender, row: Row, measured: &Measured, sizes: &Sizes) {
    let unit = row.unit(sizes);
    eprintln!(
        "{contender:<12?} {:<13} {:>8.1} {:<10} machine, {:>8.1} its processes; {:.2} s; others {:.0} %",
        row.name(),
        unit.value(measured.machine_s()),
        unit.name(),
        unit.value(measured.processes_s()),
        measured.wall_s,
        measured.spent.foreign_share() * 100.0
    );
}
