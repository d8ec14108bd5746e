//! What is printed: text for people, or JSON for programs.

use anyhow::{Context, Result};
use serde::Serialize;
use std::io::{ErrorKind, Write};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Text,
    Json,
}

impl Output {
    /// Prints a value as indented JSON, or the text about it.
    pub fn show<T: Serialize + ?Sized>(self, value: &T, text: impl FnOnce() -> String) -> Result<()> {
        match self {
            Self::Text => print(&text()),
            Self::Json => {
                let mut json = serde_json::to_string_pretty(value).context("the answer can't be written as JSON")?;
                json.push('\n');
                print(&json)
            }
        }
    }

    /// One of many: JSON on a line of its own, or the text.
    pub fn line<T: Serialize>(self, value: &T, text: impl FnOnce() -> String) -> Result<()> {
        match self {
            Self::Text => print(&text()),
            Self::Json => {
                let mut json = serde_json::to_string(value).context("the answer can't be written as JSON")?;
                json.push('\n');
                print(&json)
            }
        }
    }
}

/// The reader of the output has seen enough.
#[derive(Debug, thiserror::Error)]
#[error("the output was closed")]
pub struct Closed;

pub fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
        result => result.context("can't write the output"),
    }
}

/// What is going on, beside the output.
pub fn progress(text: &str) {
    // Nobody has to watch.
    let _ = writeln!(std::io::stderr(), "{}", crate::table::plain(text));
}
