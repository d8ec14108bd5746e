//! Waiting for a condition with a deadline.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Looks until `condition` gives something; beyond the deadline the error names what was waited for.
pub fn until<T>(what: &str, deadline: Duration, condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    until_seen(what, LOOK_INTERVAL, deadline, condition)
}

/// The same for what costs so much to look at that it is done less often.
pub fn until_seen<T>(
    what: &str,
    interval: Duration,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if started.elapsed() >= deadline {
            bail!("{what}: not within {} s", deadline.as_secs());
        }
        // Nothing tells of the condition from outside.
        std::thread::sleep(interval);
    }
}

/// The same for something that fails until it works; the error is the last one.
pub fn until_ok<T>(deadline: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        match attempt() {
            Err(_) if started.elapsed() < deadline => std::thread::sleep(LOOK_INTERVAL * 10),
            result => return result,
        }
    }
}
