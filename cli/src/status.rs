//! `weft status` as text.

use crate::connection::Access;
use crate::gather::gather;
use crate::health::Health;
use crate::output::Output;
use crate::overview::{Drive, Node, Overview};
use crate::table::{Table, plain};
use crate::{filesystems, size};
use anyhow::Result;
use std::fmt::Write;
use std::time::Duration;

pub fn status(access: &mut Access, output: Output, timeout: Duration) -> Result<Health> {
    let overview = Overview::new(&gather(access, timeout)?);
    output.show(&overview, || text(&overview))?;
    Ok(overview.health)
}

/// `weft drive list`.
pub fn drives(access: &mut Access, output: Output, timeout: Duration) -> Result<()> {
    let gathered = gather(access, timeout)?;
    for answered in &gathered.nodes {
        if let (Some(entry), Err(error)) = (&answered.entry, &answered.status) {
            crate::output::progress(&format!("the drives of {} are missing: {error}", entry.name));
        }
    }
    let drives = crate::overview::drives(&gathered);
    output.show(&drives, || drive_table(&drives))
}

fn text(overview: &Overview) -> String {
    let mut text = String::new();
    head(overview, &mut text);
    text.push('\n');
    text.push_str(&node_table(&overview.nodes));
    if !overview.drives.is_empty() {
        text.push('\n');
        text.push_str(&drive_table(&overview.drives));
    }
    if !overview.filesystems.is_empty() {
        text.push('\n');
        text.push_str(&filesystems::table(&overview.filesystems));
    }
    text
}

fn head(overview: &Overview, text: &mut String) {
    let mut line = |name: &str, value: &str| {
        // Writing to a string can't fail.
        let _ = writeln!(text, "{name:<10}{}", plain(value));
    };
    if let Some(cluster) = &overview.cluster {
        line("cluster", &format!("{} ({}), {}, map {}", cluster.name, cluster.id, cluster.protection, cluster.map));
    }
    line("health", overview.health.word());
    for problem in &overview.problems {
        line("", &format!("- {problem}"));
    }
    for unknown in &overview.unknown {
        line("", &format!("? {unknown}"));
    }
    for note in &overview.notes {
        line("note", note);
    }
    if let Some(managers) = &overview.managers {
        let leader = managers.leader.as_ref().map_or("no leader".into(), |leader| format!("led by {leader}"));
        line(
            "managers",
            &format!("{} of {} answer, {leader}, term {}", managers.answered, managers.total, managers.term),
        );
    }
    if overview.cluster.is_some() {
        let (buckets, counters) = (&overview.buckets, &overview.counters);
        line("buckets", &format!("{} of {} serving", buckets.serving, buckets.total));
        line("clients", &overview.clients.to_string());
        let stripes = format!("{} stripes, {} of journal", counters.stripes, size::show(counters.journal_bytes));
        line("data", &stripes);
        line("exposed", &exposed(&counters.stripes_by_missing));
        if counters.rebuild_bytes_left > 0 {
            let time =
                overview.rebuild_seconds_left.map_or("no telling how long".into(), |left| format!("about {left} s"));
            let (done, left) = (size::show(counters.rebuild_bytes_done), size::show(counters.rebuild_bytes_left));
            line("rebuild", &format!("{done} done, {left} left, {time}"));
        }
        if let Some(moves) = &overview.moves {
            let time = moves.seconds_left.map_or("no telling how long".into(), |left| format!("about {left} s"));
            line(
                "moves",
                &format!(
                    "{} shards under way, {} waiting, about {}, {time}",
                    moves.under_way,
                    moves.waiting,
                    size::show(moves.bytes_left)
                ),
            );
        }
        if overview.hot_spare > 0 {
            line("hot spare", &format!("the capacity of {} is kept free", crate::room::nodes(overview.hot_spare)));
        }
        line(
            "counters",
            &format!(
                "repaired stripes {}, checksum errors {}, reconstructions {}",
                counters.repaired_stripes, counters.checksum_errors, counters.reconstructions
            ),
        );
    }
}

/// How many stripes lack how many of their shards.
fn exposed(stripes_by_missing: &[u64]) -> String {
    let most = stripes_by_missing.len().saturating_sub(1);
    let lacking = stripes_by_missing.iter().enumerate().skip(1).filter(|(_, stripes)| **stripes > 0);
    let parts: Vec<String> = lacking
        .map(|(missing, stripes)| match missing == most {
            true => format!("{stripes} stripes lack {missing} or more shards"),
            false => format!("{stripes} stripes lack {missing}"),
        })
        .collect();
    if parts.is_empty() { "no stripe lacks a shard".into() } else { parts.join(", ") }
}

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

fn node_table(nodes: &[Node]) -> String {
    let mut table = Table::new(&["NODE", "PHASE", "MAP SAYS", "BUCKETS", "SHARDS", "MANAGER", "DOMAIN", "CONTROL"]);
    for node in nodes {
        let manager = match (&node.manager_role, node.manager) {
            (Some(role), true) => role.clone(),
            (None, true) => "yes".into(),
            (_, false) => "-".into(),
        };
        table.row([
            node.name.clone(),
            node.phase.clone().unwrap_or_else(|| "no answer".into()),
            or_dash(node.state.as_ref()),
            format!("{} of {}", node.serves, node.leads),
            or_dash(node.holds.map(|holds| holds.shards)),
            manager,
            or_dash(node.domain.as_ref()),
            node.control.clone(),
        ]);
    }
    table.render()
}

fn drive_table(drives: &[Drive]) -> String {
    let mut table = Table::new(&["DRIVE", "NODE", "STATE", "SIZE", "USED", "JOURNAL", "ERRORS", "PATH"]);
    for drive in drives {
        let state = &drive.state;
        table.row([
            or_dash(state.id),
            drive.node.clone(),
            drive.word().into(),
            size::show(state.capacity_bytes),
            drive.used_percent().map_or_else(|| "-".into(), |percent| format!("{percent} %")),
            size::show(state.ring_used_bytes),
            state.errors.to_string(),
            state.path.clone(),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use weft_wire::control::{DriveEntry, Holding};

    #[test]
    fn a_healthy_cluster_fits_one_screen() {
        let shown = text(&Overview::new(&sample::gathered(3)));
        for part in [
            "cluster   weft1 (0000000000000000000000000000002a), 4+2, map 7\n",
            "health    healthy\n",
            "managers  3 of 3 answer, led by node1, term 4\n",
            "buckets   6 of 6 serving\n",
            "clients   2\n",
            "node2  serving  up        2 of 2   6       follower  node2   127.0.0.1:7102\n",
            "drive2  node2  in use  4 GiB  25 %  1 MiB    0       node2.drive\n",
            "home        ready  10 GiB\n",
        ] {
            assert!(shown.contains(part), "{part:?} is missing in\n{shown}");
        }
    }

    #[test]
    fn what_is_exposed_and_rebuilt_is_told() {
        let mut gathered = sample::gathered(3);
        assert!(text(&Overview::new(&gathered)).contains("exposed   no stripe lacks a shard\n"));
        for stats in sample::stats(&mut gathered) {
            stats.stripes_by_missing = vec![10, 5, 1, 0];
            (stats.rebuild_bytes_done, stats.rebuild_bytes_left) = (1 << 20, 10 << 20);
            stats.rebuild_bytes_per_second = 2 << 20;
            stats.slow_drives.insert(weft_wire::DriveId(4));
        }
        let shown = text(&Overview::new(&gathered));
        assert!(shown.contains("exposed   30 stripes lack 1, 6 stripes lack 2\n"), "{shown}");
        assert!(shown.contains("rebuild   6 MiB done, 60 MiB left, about 5 s\n"), "{shown}");
        assert!(shown.contains("note      drive4 answers much later than others do"), "{shown}");
        for stats in sample::stats(&mut gathered) {
            stats.stripes_by_missing = vec![10, 0, 0, 2];
        }
        let shown = text(&Overview::new(&gathered));
        assert!(shown.contains("exposed   12 stripes lack 3 or more shards\n"), "{shown}");
        assert!(shown.contains("health    UNHEALTHY\n          - 12 stripes lack more shards"), "{shown}");
    }

    #[test]
    fn what_comes_and_goes_is_told_and_no_problem() {
        let mut gathered = sample::gathered(3);
        for stats in sample::stats(&mut gathered) {
            stats.rebuild_bytes_per_second = 1 << 20;
        }
        sample::map(&mut gathered, |cluster| {
            (cluster.moves_under_way, cluster.moves_waiting, cluster.hot_spare) = (2, 7, 1);
            cluster.nodes[1].state = "draining".into();
            cluster.nodes[2].state = "drained".into();
            cluster.drives = vec![DriveEntry {
                drive: weft_wire::DriveId(9),
                node: weft_wire::NodeId(1),
                state: "failed".into(),
                holds: Holding::default(),
            }];
        });
        let shown = text(&Overview::new(&gathered));
        for part in [
            "health    healthy\n",
            "note      node2 is being drained: 6 shards to move, 0 moving, 4 journals, leads 2 buckets, is a manager\n",
            "note      node3 holds nothing any more: `weft node remove node3`\n",
            "note      drive9 of node1 is given up and holds nothing any more: `weft drive remove drive9`",
            "moves     2 shards under way, 7 waiting, about 767.9 MiB, about 127 s\n",
            "hot spare the capacity of 1 node is kept free\n",
        ] {
            assert!(shown.contains(part), "{part:?} is missing in\n{shown}");
        }
        sample::map(&mut gathered, |cluster| cluster.drives[0].holds.former = 3);
        let shown = text(&Overview::new(&gathered));
        assert!(shown.contains("- drive9 of node1 is given up: 3 shards of it are to be made again"), "{shown}");
        sample::map(&mut gathered, |cluster| cluster.drives[0].drive = weft_wire::DriveId(2));
        let shown = text(&Overview::new(&gathered));
        assert!(shown.contains("drive2  node2  failed  4 GiB"), "{shown}");
    }

    #[test]
    fn problems_come_first() {
        let mut gathered = sample::gathered(3);
        sample::silence(&mut gathered, 1);
        let shown = text(&Overview::new(&gathered));
        assert!(shown.contains("health    UNHEALTHY\n          - node2 does not answer"), "{shown}");
        assert!(shown.contains("buckets   4 of 6 serving"), "{shown}");
        assert!(shown.contains("node2  no answer  up"), "{shown}");
    }
}
