//! `weft scrub` and `weft fs check`: passes over everything that all nodes lead.

use crate::connection::{Access, CallError, Endpoint, unexpected};
use crate::gather::{at_once, endpoints, needs_cluster};
use crate::output::{Output, progress};
use crate::table::{Table, plain};
use crate::time;
use anyhow::{Result, bail};
use serde::Serialize;
use std::time::Duration;
use weft_wire::control::{Answer, Command, PassKind, PassPhase, PassState};

const POLL: Duration = Duration::from_millis(500);
/// Silent looks in a row after which a node is waited for no longer.
const SILENT_MAX: u32 = 10;

/// What one node says of its part.
#[derive(Debug, Serialize)]
struct Part {
    node: String,
    #[serde(flatten)]
    state: Option<PassState>,
    /// Why it is not told.
    #[serde(skip_serializing_if = "Option::is_none")]
    silent: Option<String>,
}

/// What a pass says of the cluster; also the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Clean,
    Problems,
    /// Nothing was found, and not everything was seen.
    Incomplete,
}

impl Verdict {
    fn exit_code(self) -> u8 {
        match self {
            Self::Clean => 0,
            Self::Problems => 1,
            Self::Incomplete => 2,
        }
    }
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    verdict: Verdict,
    nodes: &'a [Part],
}

/// `weft scrub start`.
pub fn start(access: &mut Access, output: Output, timeout: Duration, pace_mib: Option<u32>, wait: bool) -> Result<u8> {
    let nodes = nodes(access, timeout)?;
    let pace_bytes = pace_mib.map(|mib| u64::from(mib) << 20);
    begin(access, timeout, &nodes, PassKind::Scrub, pace_bytes)?;
    match wait {
        true => report(access, output, timeout, &nodes, PassKind::Scrub),
        false => {
            show(output, &ask(access, timeout, &nodes, PassKind::Scrub))?;
            Ok(0)
        }
    }
}

/// `weft scrub status`.
pub fn status(access: &mut Access, output: Output, timeout: Duration) -> Result<u8> {
    let nodes = nodes(access, timeout)?;
    let parts = ask(access, timeout, &nodes, PassKind::Scrub);
    show(output, &parts)?;
    let known = parts.iter().any(|part| part.state.is_some());
    Ok(if known { 0 } else { Verdict::Incomplete.exit_code() })
}

/// `weft scrub stop`.
pub fn stop(access: &mut Access, output: Output, timeout: Duration) -> Result<u8> {
    let nodes = nodes(access, timeout)?;
    let command = Command::StopPass { kind: PassKind::Scrub };
    each(access, timeout, &nodes, &command)?;
    show(output, &ask(access, timeout, &nodes, PassKind::Scrub))?;
    Ok(0)
}

/// `weft fs check`: goes through everything and tells what contradicts itself.
pub fn check(access: &mut Access, output: Output, timeout: Duration) -> Result<u8> {
    let nodes = nodes(access, timeout)?;
    begin(access, timeout, &nodes, PassKind::Check, None)?;
    report(access, output, timeout, &nodes, PassKind::Check)
}

fn nodes(access: &mut Access, timeout: Duration) -> Result<Vec<(String, Endpoint)>> {
    let first = access.status(&access.first, timeout)?;
    needs_cluster(&first, &access.first)?;
    access.adopt_cluster_token(timeout);
    Ok(endpoints(access, &first))
}

fn begin(
    access: &Access,
    timeout: Duration,
    nodes: &[(String, Endpoint)],
    kind: PassKind,
    pace_bytes: Option<u64>,
) -> Result<()> {
    each(access, timeout, nodes, &Command::BeginPass { kind, pace_bytes })
}

/// Gives every node the same command. Nodes that don't answer are named; if none takes it, that is an error.
fn each(access: &Access, timeout: Duration, nodes: &[(String, Endpoint)], command: &Command) -> Result<()> {
    let answers = at_once(nodes, |(_, endpoint)| access.call(endpoint, command.clone(), timeout));
    let mut taken = 0;
    for ((name, _), answer) in nodes.iter().zip(answers) {
        match answer {
            Ok(_) => taken += 1,
            Err(error) => progress(&format!("{name} does not take part: {error}")),
        }
    }
    if taken == 0 {
        bail!("no node took the command");
    }
    Ok(())
}

fn ask(access: &Access, timeout: Duration, nodes: &[(String, Endpoint)], kind: PassKind) -> Vec<Part> {
    let answers = at_once(nodes, |(_, endpoint)| match access.call(endpoint, Command::Pass { kind }, timeout)? {
        Answer::Pass(state) => Ok(*state),
        _ => Err(unexpected(endpoint)),
    });
    let part = |((name, _), answer): (&(String, Endpoint), Result<PassState, CallError>)| match answer {
        Ok(state) => Part { node: name.clone(), state: Some(state), silent: None },
        Err(error) => Part { node: name.clone(), state: None, silent: Some(error.to_string()) },
    };
    nodes.iter().zip(answers).map(part).collect()
}

/// Waits until the pass has ended on all nodes that answer, and says what it found.
fn report(
    access: &Access,
    output: Output,
    timeout: Duration,
    nodes: &[(String, Endpoint)],
    kind: PassKind,
) -> Result<u8> {
    let mut silent = 0;
    let mut said = String::new();
    let parts = loop {
        let parts = ask(access, timeout, nodes, kind);
        let runs = parts.iter().filter_map(|part| part.state.as_ref()).any(|state| state.phase == PassPhase::Running);
        silent = if parts.iter().any(|part| part.state.is_none()) { silent + 1 } else { 0 };
        if !runs && (silent == 0 || silent > SILENT_MAX) {
            break parts;
        }
        let now = how_far(&parts);
        if now != said {
            progress(&now);
            said = now;
        }
        std::thread::sleep(POLL);
    };
    let verdict = judge(&parts);
    output.show(&Report { verdict, nodes: &parts }, || text(&parts))?;
    Ok(verdict.exit_code())
}

fn how_far(parts: &[Part]) -> String {
    let states = || parts.iter().filter_map(|part| part.state.as_ref());
    let (done, all) = (states().map(|state| state.buckets_done).sum(), states().map(|state| state.buckets).sum());
    let (done, all): (u64, u64) = (done, all);
    format!("{done} of {all} buckets")
}

fn judge(parts: &[Part]) -> Verdict {
    let states = || parts.iter().filter_map(|part| part.state.as_ref());
    if states().any(|state| !state.problems.is_empty() || state.more_problems > 0 || state.damaged > 0) {
        return Verdict::Problems;
    }
    let whole = |part: &Part| {
        part.state.as_ref().is_some_and(|state| {
            state.phase == PassPhase::Ended && state.unfinished.is_empty() && state.unreachable_shards == 0
        })
    };
    if parts.iter().all(whole) { Verdict::Clean } else { Verdict::Incomplete }
}

fn show(output: Output, parts: &[Part]) -> Result<()> {
    output.show(parts, || text(parts))
}

fn text(parts: &[Part]) -> String {
    let mut table = Table::new(&["NODE", "STATE", "BUCKETS", "STRIPES", "DAMAGED", "REPAIRED", "TO REPAIR", "NEXT"]);
    let mut lines = Vec::new();
    for part in parts {
        let Some(state) = &part.state else {
            let [a, b, c, d, e, f] = std::array::from_fn(|_| "-".to_owned());
            table.row([part.node.clone(), "no answer".into(), a, b, c, d, e, f]);
            lines.extend(part.silent.iter().map(|silent| format!("{}: {silent}", part.node)));
            continue;
        };
        table.row([
            part.node.clone(),
            phase(state),
            format!("{} of {}", state.buckets_done, state.buckets),
            format!("{} of {}", state.stripes_done, state.stripes.max(state.stripes_done)),
            state.damaged.to_string(),
            state.repaired.to_string(),
            state.waiting_for_repair.to_string(),
            state.next_ns.map_or_else(|| "-".into(), time::show),
        ]);
        lines.extend(state.problems.iter().map(|problem| format!("{}: {problem}", part.node)));
        if state.more_problems > 0 {
            lines.push(format!("{}: and {} more", part.node, state.more_problems));
        }
        if state.unreachable_shards > 0 {
            lines.push(format!(
                "{}: {} shards could not be read: their drives are away",
                part.node, state.unreachable_shards
            ));
        }
        lines.extend(state.unfinished.iter().map(|reason| format!("{}: not to the end: {reason}", part.node)));
    }
    let lines: String = lines.iter().map(|line| plain(line) + "\n").collect();
    let gap = if lines.is_empty() { "" } else { "\n" };
    format!("{}{gap}{lines}", table.render())
}

fn phase(state: &PassState) -> String {
    match state.phase {
        PassPhase::Never => "never ran".into(),
        PassPhase::Running => format!("runs since {}", time::show(state.started_ns)),
        PassPhase::Ended => format!("ended {}", time::show(state.ended_ns)),
        PassPhase::Stopped => format!("stopped {}", time::show(state.ended_ns)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(change: impl FnOnce(&mut PassState)) -> Part {
        let mut state =
            PassState { phase: PassPhase::Ended, buckets: 4, buckets_done: 4, ..PassState::never(PassKind::Scrub) };
        change(&mut state);
        Part { node: "node1".into(), state: Some(state), silent: None }
    }

    #[test]
    fn nothing_found_is_clean_only_when_everything_was_seen() {
        assert_eq!(judge(&[part(|_| {}), part(|_| {})]), Verdict::Clean);
        assert_eq!(judge(&[part(|_| {}), part(|state| state.unreachable_shards = 1)]), Verdict::Incomplete);
        assert_eq!(judge(&[part(|state| state.phase = PassPhase::Stopped)]), Verdict::Incomplete);
        assert_eq!(judge(&[part(|state| state.unfinished.push("bucket 3: busy".into()))]), Verdict::Incomplete);
        let silent = Part { node: "node2".into(), state: None, silent: Some("no answer".into()) };
        assert_eq!(judge(&[part(|_| {}), silent]), Verdict::Incomplete);
        assert_eq!(
            judge(&[part(|state| state.damaged = 1), part(|state| state.unreachable_shards = 1)]),
            Verdict::Problems
        );
    }

    #[test]
    fn what_was_found_is_told_line_by_line() {
        let shown = text(&[
            part(|state| {
                state.problems = vec!["bucket 3: stripe 7 shard 2\x1b on drive4".into()];
                state.more_problems = 5;
            }),
            Part { node: "node2".into(), state: None, silent: Some("no answer".into()) },
        ]);
        assert!(
            shown.contains("node1: bucket 3: stripe 7 shard 2  on drive4\nnode1: and 5 more\nnode2: no answer\n"),
            "{shown}"
        );
        assert!(shown.contains("4 of 4"), "{shown}");
    }
}
