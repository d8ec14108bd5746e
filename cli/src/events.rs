//! `weft events`: what all nodes remember, as one list.

use crate::connection::{Access, CallError, Endpoint, unexpected};
use crate::gather::{at_once, endpoints};
use crate::output::{Output, progress};
use crate::table::plain;
use crate::time;
use anyhow::{Result, bail};
use std::time::Duration;
use weft_wire::control::{Answer, Command, Event};

const POLL: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
struct Line {
    time: String,
    time_ns: i64,
    node: String,
    level: String,
    text: String,
}

/// What was shown of one node.
struct Source {
    name: String,
    endpoint: Endpoint,
    last: Option<Event>,
    away: bool,
}

pub fn events(access: &mut Access, output: Output, timeout: Duration, follow: bool) -> Result<()> {
    let first = access.status(&access.first, timeout)?;
    access.adopt_cluster_token(timeout);
    let mut sources: Vec<Source> = endpoints(access, &first)
        .into_iter()
        .map(|(name, endpoint)| Source { name, endpoint, last: None, away: false })
        .collect();
    let lines = poll(access, timeout, &mut sources);
    if sources.iter().all(|source| source.away) {
        bail!("no node told its events");
    }
    if output == Output::Json && !follow {
        return output.show(&lines, String::new);
    }
    let mut lines = lines;
    loop {
        for line in &lines {
            output.line(line, || text(line))?;
        }
        if !follow {
            return Ok(());
        }
        std::thread::sleep(POLL);
        lines = poll(access, timeout, &mut sources);
    }
}

/// What is new since the last time, over all nodes in order of time.
fn poll(access: &Access, timeout: Duration, sources: &mut [Source]) -> Vec<Line> {
    let answers = at_once(sources, |source| ask(access, timeout, &source.endpoint));
    let mut lines = Vec::new();
    for (source, answer) in sources.iter_mut().zip(answers) {
        match answer {
            Ok(events) => {
                source.away = false;
                let fresh = fresh(source.last.as_ref(), &events);
                lines.extend(fresh.iter().map(|event| line(&source.name, event)));
                source.last = events.last().cloned().or(source.last.take());
            }
            Err(error) => {
                if !source.away {
                    progress(&format!("the events of {} are missing: {error}", source.name));
                }
                source.away = true;
            }
        }
    }
    lines.sort_by_key(|line| line.time_ns);
    lines
}

fn ask(access: &Access, timeout: Duration, endpoint: &Endpoint) -> Result<Vec<Event>, CallError> {
    match access.call(endpoint, Command::Events, timeout)? {
        Answer::Events(events) => Ok(events),
        _ => Err(unexpected(endpoint)),
    }
}

/// What follows `last`; everything if a node forgot it, as it does when it starts anew.
fn fresh<'a>(last: Option<&Event>, events: &'a [Event]) -> &'a [Event] {
    let same = |event: &Event| last.is_some_and(|last| last.time_ns == event.time_ns && last.text == event.text);
    match events.iter().rposition(same) {
        Some(shown) => &events[shown + 1..],
        None => events,
    }
}

fn line(node: &str, event: &Event) -> Line {
    Line {
        time: time::show(event.time_ns),
        time_ns: event.time_ns,
        node: node.into(),
        level: event.level.clone(),
        text: event.text.clone(),
    }
}

fn text(line: &Line) -> String {
    format!("{}  {:<5}  {}: {}\n", line.time, plain(&line.level), plain(&line.node), plain(&line.text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(time_ns: i64, text: &str) -> Event {
        Event { time_ns, level: "info".into(), text: text.into() }
    }

    #[test]
    fn only_what_is_new_is_shown() {
        let texts = |events: &[Event]| events.iter().map(|event| event.text.clone()).collect::<Vec<_>>();
        let events = [event(1, "a"), event(2, "b"), event(2, "c"), event(1, "clock went back")];
        assert_eq!(fresh(None, &events).len(), 4);
        assert_eq!(texts(fresh(Some(&events[1]), &events)), ["c", "clock went back"]);
        assert!(fresh(Some(&events[3]), &events).is_empty());
        assert_eq!(fresh(Some(&event(9, "of another life")), &events).len(), 4);
    }

    #[test]
    fn a_line_is_one_line() {
        let shown = text(&line("node1", &event(0, "two\nlines")));
        assert_eq!(shown, "1970-01-01T00:00:00.000Z  info   node1: two lines\n");
    }
}
