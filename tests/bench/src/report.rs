//! Rows as a table for people and as JSON for plots.

use crate::measure::Measured;
use crate::rows::{Row, Sizes};
use serde::Serialize;
use std::fmt::Write;

/// One row on all filesystems, each with all its repetitions.
pub struct Result {
    pub row: Row,
    pub weft: Vec<Measured>,
    pub passthrough: Vec<Measured>,
    pub gluster: Vec<Measured>,
}

/// Where a row's CPU times are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The machine's busy time.
    Machine,
    /// Sums over processes, because others kept the machine busy.
    Processes,
}

#[derive(Debug, Serialize)]
pub struct Line {
    name: &'static str,
    unit: &'static str,
    weft: Option<f64>,
    passthrough: Option<f64>,
    gluster: Option<f64>,
    /// Above 1: Weft is cheaper.
    ratio_gluster: Option<f64>,
    source: Source,
    /// Of the machine's time, the most that was used by others during one of the cells.
    foreign_share: f64,
    details: Vec<Detail>,
}

/// CPU seconds and wall time of one cell.
#[derive(Debug, Serialize)]
struct Detail {
    system: &'static str,
    wall_s: f64,
    machine_s: f64,
    servers_s: f64,
    client_s: f64,
    kernel_threads_s: f64,
    load_s: f64,
    foreign_s: f64,
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub rows: Vec<Line>,
}

impl Report {
    pub fn new(results: &[Result], sizes: &Sizes) -> Report {
        Report { rows: results.iter().map(|result| result.line(sizes)).collect() }
    }

    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<13}{:<11}{:>9}{:>14}{:>11}{:>8}   wall, s: {:>7} {:>7} {:>7}\n",
            "", "", "Weft", "pass-through", "GlusterFS", "ratio", "Weft", "pass", "Gluster"
        );
        for line in &self.rows {
            let wall = |system| line.details.iter().find(|d| d.system == system).map(|d| d.wall_s);
            let mark = if line.source == Source::Processes { " ~" } else { "" };
            // A String takes whatever is written.
            let _ = writeln!(
                text,
                "{:<13}{:<11}{:>9}{:>14}{:>11}{:>8}            {:>7} {:>7} {:>7}{mark}",
                line.name,
                line.unit,
                number(line.weft),
                number(line.passthrough),
                number(line.gluster),
                number(line.ratio_gluster),
                number(wall(WEFT)),
                number(wall(PASSTHROUGH)),
                number(wall(GLUSTER)),
            );
        }
        if self.rows.iter().any(|line| line.source == Source::Processes) {
            text += "~ others kept the machine busy: CPU of the filesystem's processes alone\n";
        }
        text
    }

    /// Where each cell's CPU seconds are.
    pub fn details(&self) -> String {
        let mut text = format!(
            "{:<13}{:<13}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}\n",
            "CPU s", "", "machine", "servers", "client", "kernel", "load", "others"
        );
        for line in &self.rows {
            for d in &line.details {
                let _ = writeln!(
                    text,
                    "{:<13}{:<13}{:>9.2}{:>9.2}{:>9.2}{:>9.2}{:>9.2}{:>9.2}",
                    line.name,
                    d.system,
                    d.machine_s,
                    d.servers_s,
                    d.client_s,
                    d.kernel_threads_s,
                    d.load_s,
                    d.foreign_s
                );
            }
        }
        text
    }
}

const WEFT: &str = "weft";
const PASSTHROUGH: &str = "passthrough";
const GLUSTER: &str = "gluster";

impl Result {
    fn line(&self, sizes: &Sizes) -> Line {
        let unit = self.row.unit(sizes);
        let all = || [&self.weft, &self.passthrough, &self.gluster].into_iter().flatten();
        // One row is measured in one way.
        let source = if all().any(Measured::disturbed) { Source::Processes } else { Source::Machine };
        let cpu = |measured: &Measured| match source {
            Source::Machine => measured.machine_s(),
            Source::Processes => measured.processes_s(),
        };
        let middle = |cells: &[Measured]| {
            let mut cells = cells.to_vec();
            cells.sort_by(|a, b| cpu(a).total_cmp(&cpu(b)));
            cells.get(cells.len() / 2).copied()
        };
        let (weft, passthrough, gluster) = (middle(&self.weft), middle(&self.passthrough), middle(&self.gluster));
        let value = |cell: Option<Measured>| cell.map(|measured| unit.value(cpu(&measured)));
        let details = [(WEFT, weft), (PASSTHROUGH, passthrough), (GLUSTER, gluster)];
        Line {
            name: self.row.name(),
            unit: unit.name(),
            weft: value(weft),
            passthrough: value(passthrough),
            gluster: value(gluster),
            ratio_gluster: value(weft).zip(value(gluster)).map(|(ours, theirs)| unit.ratio(ours, theirs)),
            source,
            foreign_share: all().map(|measured| measured.spent.foreign_share()).fold(0.0, f64::max),
            details: details.into_iter().filter_map(|(name, cell)| cell.map(|cell| detail(name, &cell))).collect(),
        }
    }
}

fn detail(system: &'static str, cell: &Measured) -> Detail {
    Detail {
        system,
        wall_s: cell.wall_s,
        machine_s: cell.machine_s(),
        servers_s: cell.spent.servers,
        client_s: cell.spent.client,
        kernel_threads_s: cell.spent.kernel,
        load_s: cell.spent.load,
        foreign_s: cell.spent.foreign,
    }
}

fn number(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Spent;
    use crate::measure::Idle;

    fn cell(busy: f64, servers: f64, foreign: f64) -> Measured {
        let spent = Spent { elapsed: 10.0, busy, servers, foreign, ..Spent::default() };
        Measured { spent, wall_s: 1.0, idle_s: Idle::default() }
    }

    fn result(weft: Vec<Measured>, gluster: Measured) -> Result {
        Result { row: Row::Untar, weft, passthrough: vec![cell(0.5, 0.4, 0.0)], gluster: vec![gluster] }
    }

    #[test]
    fn shows_the_middle_of_all_repetitions() {
        let weft = vec![cell(3.0, 1.0, 0.0), cell(1.0, 1.0, 0.0), cell(2.0, 1.0, 0.0)];
        let report = Report::new(&[result(weft, cell(10.0, 9.0, 0.0))], &Sizes::QUICK);
        let line = &report.rows[0];
        assert_eq!((line.weft, line.ratio_gluster, line.source), (Some(2.0), Some(5.0), Source::Machine));
        let parsed: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        let row = parsed["rows"][0].as_object().unwrap();
        for key in ["name", "unit", "weft", "passthrough", "gluster", "ratio_gluster"] {
            assert!(!row[key].is_null(), "{key} is empty");
        }
        assert!(report.table().lines().nth(1).unwrap().starts_with("untar"));
    }

    #[test]
    fn a_disturbed_row_shows_processes_only() {
        let report = Report::new(&[result(vec![cell(9.0, 2.0, 4.0)], cell(10.0, 8.0, 0.0))], &Sizes::QUICK);
        let line = &report.rows[0];
        assert_eq!((line.weft, line.gluster, line.source), (Some(2.0), Some(8.0), Source::Processes));
        assert!(report.table().contains('~'));
    }
}
