//! Tables for `docs/design`: how rebuilds and growth scale.

use crate::flow::{self, Balance, FlowOptions, Flowed};
use crate::many;
use crate::scale::{self, ScaleOptions};
use std::str::FromStr;
use std::time::Duration;
use weft_drive::format::geometry::ZONE_BYTES_MIN;
use weft_wire::map::Protection;

/// Larger clusters are not simulated whole: that takes minutes.
const WHOLE_NODES_MAX: usize = 64;
/// Ports of simulated clusters have no limit.
const NO_LIMIT: u64 = 1 << 50;

/// From so many nodes to so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    pub from: usize,
    pub to: usize,
}

impl FromStr for Growth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':').and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
        let growth = parts.map(|(from, to)| Self { from, to }).filter(|growth| growth.from < growth.to);
        growth.ok_or_else(|| format!("{text:?} is not of the form FROM:TO, for example 100:110"))
    }
}

/// What a whole cluster did, and the model of it with the same numbers; then the model of real servers.
pub fn rebuild(seed: u64, nodes: &[usize], protection: Protection) -> Result<(), String> {
    let whole: Vec<usize> = nodes.iter().copied().filter(|nodes| *nodes <= WHOLE_NODES_MAX).collect();
    if !whole.is_empty() {
        println!("Whole clusters, and what the model says of them:\n");
        println!(
            "| nodes | buckets | rebuilt MiB | moved, of that | not in zones | s | of the ideal | busiest / mean | map ms | CPU s | model: s | busiest / mean |"
        );
        println!("|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    }
    for nodes in whole {
        let before = cpu_seconds();
        let options = ScaleOptions::new(seed, nodes, protection);
        let done = scale::rebuild(&options).map_err(|error| format!("{nodes} nodes: {error}"))?;
        let cpu = cpu_seconds() - before;
        let same = FlowOptions {
            node_bytes: options.node_bytes,
            bucket_bits: Some(options.bucket_bits),
            set_bytes: ZONE_BYTES_MIN,
            drive_rate: options.bytes_per_second,
            port_rate: NO_LIMIT,
            ..FlowOptions::new(protection)
        };
        let model = flow::rebuild(nodes, &same)?;
        let rebuilt = done.bytes.max(1) as f64;
        println!(
            "| {nodes} | {} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.1} | {cpu:.0} | {:.2} | {:.2} |",
            done.buckets,
            done.bytes >> 20,
            done.moved as f64 / rebuilt,
            done.beside as f64 / rebuilt,
            done.took.as_secs_f64(),
            done.took.as_secs_f64() / done.ideal().as_secs_f64(),
            done.busiest_to_mean(),
            done.map_took.as_secs_f64() * 1e3,
            model.took.as_secs_f64(),
            busiest_to_mean(&model, nodes - 1),
        );
    }
    let options = FlowOptions::new(protection);
    println!("\nThe model of servers: {}\n", said(&options));
    println!(
        "| nodes | buckets | shared by two nodes | rebuilt GiB | moved, of that | s | s x survivors | of the ideal | busiest / mean | CPU s |"
    );
    println!("|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    for nodes in nodes.iter().copied() {
        let before = cpu_seconds();
        let done = flow::rebuild(nodes, &options)?;
        let pairs = Balance::of(&flow::formed(nodes, &options)?).pairs;
        println!(
            "| {nodes} | {} | {}..{} | {:.1} | {:.2} | {:.2} | {:.1} | {:.2} | {:.2} | {:.0} |",
            done.buckets,
            pairs.0,
            pairs.2,
            gib(done.bytes),
            done.moved as f64 / done.bytes.max(1) as f64,
            done.took.as_secs_f64(),
            done.took.as_secs_f64() * (nodes - 1) as f64,
            of_the_ideal(&done),
            busiest_to_mean(&done, nodes - 1),
            cpu_seconds() - before,
        );
    }
    Ok(())
}

/// The model alone: what moves follows from the map.
pub fn grow(growth: Growth, protection: Protection) -> Result<(), String> {
    let options = FlowOptions::new(protection);
    let before = cpu_seconds();
    let grown = flow::grow(growth.from, growth.to, &options)?;
    let least = (growth.to - growth.from) as f64 / growth.to as f64;
    println!("The model of servers: {}\n", said(&options));
    println!(
        "| nodes | buckets | moved, of all | of the least | s | of the ideal | maps | fullest / mean, before and after | shared by two nodes, before and after | CPU s |"
    );
    println!("|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    let shown = |balance: &Balance| format!("{}..{}", balance.pairs.0, balance.pairs.2);
    println!(
        "| {} -> {} | {} | {:.2} % | {:.3} | {:.0} | {:.2} | {} | {:.3}, {:.3} | {}, {} | {:.0} |",
        growth.from,
        growth.to,
        grown.flowed.buckets,
        grown.share * 100.0,
        grown.share / least,
        grown.flowed.took.as_secs_f64(),
        of_the_ideal(&grown.flowed),
        grown.flowed.maps,
        grown.before.fill,
        grown.after.fill,
        shown(&grown.before),
        shown(&grown.after),
        cpu_seconds() - before,
    );
    Ok(())
}

fn said(options: &FlowOptions) -> String {
    format!(
        "{}, each with a drive of {} MiB/s and a port of {} MB/s, holding {} GiB",
        options.protection,
        options.drive_rate >> 20,
        options.port_rate / 1_000_000,
        options.node_bytes >> 30
    )
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

fn of_the_ideal(done: &Flowed) -> f64 {
    let ideal = done.ideal.max(Duration::from_nanos(1));
    done.took.as_secs_f64() / ideal.as_secs_f64()
}

fn busiest_to_mean(done: &Flowed, drives: usize) -> f64 {
    done.busiest as f64 * drives as f64 / done.moved.max(1) as f64
}

/// What this process has used. 0 where the system doesn't tell.
pub fn cpu_seconds() -> f64 {
    many::spent("self").as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_from_fewer_to_more() {
        assert_eq!("100:110".parse(), Ok(Growth { from: 100, to: 110 }));
        for wrong in ["", "100", "110:100", "7:7", "a:b"] {
            assert!(wrong.parse::<Growth>().is_err(), "{wrong}");
        }
    }
}
