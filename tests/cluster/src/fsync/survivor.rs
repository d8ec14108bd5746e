//! Keeps what the writer acknowledged where the filesystem under test can't lose it.

use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;

pub struct Survivor {
    writer: Child,
    copier: JoinHandle<std::io::Result<u64>>,
}

impl Survivor {
    /// Starts the writer, whose standard output is acknowledgements, and appends them to `log`.
    pub fn start(mut writer: Command, log: &Path) -> Result<Survivor> {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let mut writer =
            writer.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("can't start the writer")?;
        let pipe = writer.stdout.take().context("the writer has no pipe")?;
        let copier = std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let (mut line, mut count) = (Vec::new(), 0);
            // A line without its end was not fully said, so it does not count.
            while pipe.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
                file.write_all(&line)?;
                line.clear();
                count += 1;
            }
            file.sync_all()?;
            Ok(count)
        });
        Ok(Survivor { writer, copier })
    }

    /// kill -9 of the writer.
    pub fn kill(&mut self) -> Result<()> {
        self.writer.kill().context("can't kill the writer")
    }

    /// Waits for the writer's end; returns how it ended and how many acknowledgements it gave.
    pub fn wait(mut self) -> Result<(ExitStatus, u64)> {
        let status = self.writer.wait().context("can't wait for the writer")?;
        let count = self.copier.join().map_err(|_| anyhow::anyhow!("copying acknowledgements panicked"))?;
        Ok((status, count.context("can't keep acknowledgements")?))
    }
}
