//! `weft fs`.

use crate::connection::{Access, CallError};
use crate::gather::needs_cluster;
use crate::output::Output;
use crate::size;
use crate::table::{Table, plain};
use anyhow::{Result, bail};
use std::time::{Duration, Instant};
use weft_wire::control::{Command, FilesystemEntry, Status};

/// The node waits for the managers and then for the root directory.
const CREATE_MAX: Duration = Duration::from_secs(120);
const DELETE_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(250);

const READY: &str = "ready";
const CREATING: &str = "creating";

#[derive(Debug, PartialEq, Eq)]
enum Present {
    No,
    Ready,
    Creating,
    /// Present, but not what is wanted.
    Unfit(String),
}

/// Success if a filesystem of that name is there in the end, whoever made it.
pub fn create(access: &Access, output: Output, timeout: Duration, name: &str, size_bytes: Option<u64>) -> Result<()> {
    let deadline = Instant::now() + CREATE_MAX;
    let before = status(access, timeout)?;
    let mut present = present(&before, name, size_bytes);
    let mut created = false;
    if present == Present::No {
        let command = Command::CreateFilesystem { name: name.into(), size_bytes: size_bytes.unwrap_or(0) };
        match access.call(&access.first, command, CREATE_MAX) {
            Ok(_) => created = true,
            Err(error) => {
                // Somebody else may have been quicker.
                present = self::present(&status(access, timeout)?, name, size_bytes);
                if present == Present::No || matches!(error, CallError::NoAnswer(_)) {
                    bail!("filesystem {} was not created: {error}", plain(name));
                }
            }
        }
    }
    while !created && present != Present::Ready {
        if let Present::Unfit(reason) = &present {
            bail!("{reason}");
        }
        if Instant::now() >= deadline {
            bail!("{} has no root directory yet; `weft status` shows which bucket waits and why", plain(name));
        }
        std::thread::sleep(POLL);
        present = self::present(&status(access, timeout)?, name, size_bytes);
    }
    #[derive(serde::Serialize)]
    struct Created<'a> {
        name: &'a str,
        created: bool,
    }
    let name = plain(name);
    let text = match created {
        true => format!("filesystem {name} was created\n"),
        false => format!("filesystem {name} is there already: nothing was changed\n"),
    };
    output.show(&Created { name: &name, created }, || text)
}

fn status(access: &Access, timeout: Duration) -> Result<Status> {
    let status = access.status(&access.first, timeout)?;
    needs_cluster(&status, &access.first)?;
    Ok(status)
}

fn present(status: &Status, name: &str, size_bytes: Option<u64>) -> Present {
    let Some(entry) = entries(status).iter().find(|entry| entry.name == name) else { return Present::No };
    let name = plain(name);
    if let Some(wanted) = size_bytes
        && wanted != entry.size_bytes
    {
        return Present::Unfit(format!(
            "filesystem {name} is there already with {}, not with {}; choose another name, or leave --size out to keep it",
            limit(entry.size_bytes),
            limit(wanted)
        ));
    }
    match entry.state.as_str() {
        READY => Present::Ready,
        CREATING => Present::Creating,
        state => Present::Unfit(format!(
            "a filesystem {name} is there and {state}; wait until `weft fs list` shows it no more, or choose another name"
        )),
    }
}

fn entries(status: &Status) -> &[FilesystemEntry] {
    status.cluster.as_ref().map_or(&[], |cluster| &cluster.filesystems)
}

pub fn limit(size_bytes: u64) -> String {
    match size_bytes {
        0 => "no limit".into(),
        bytes => size::show(bytes),
    }
}

pub fn list(access: &Access, output: Output, timeout: Duration) -> Result<()> {
    let status = status(access, timeout)?;
    let entries = entries(&status);
    output.show(entries, || match entries {
        [] => "no filesystem yet: make one with `weft fs create NAME`\n".into(),
        entries => table(entries),
    })
}

pub fn table(entries: &[FilesystemEntry]) -> String {
    let mut table = Table::new(&["FILESYSTEM", "STATE", "SIZE"]);
    for entry in entries {
        table.row([entry.name.clone(), entry.state.clone(), limit(entry.size_bytes)]);
    }
    table.render()
}

pub fn delete(access: &Access, output: Output, timeout: Duration, name: &str, yes: bool) -> Result<()> {
    let status = status(access, timeout)?;
    let (entries, shown) = (entries(&status), plain(name));
    if !entries.iter().any(|entry| entry.name == name) {
        let others: Vec<String> = entries.iter().map(|entry| plain(&entry.name)).collect();
        match others.is_empty() {
            true => bail!("there is no filesystem {shown}, and no other"),
            false => bail!("there is no filesystem {shown}; there are: {}", others.join(", ")),
        }
    }
    if !yes {
        bail!("this deletes filesystem {shown} with everything in it, for ever: say so with --yes");
    }
    match access.call(&access.first, Command::DeleteFilesystem { name: name.into() }, DELETE_MAX) {
        Ok(_) => {}
        Err(error) => bail!("filesystem {shown} was not deleted: {error}"),
    }
    #[derive(serde::Serialize)]
    struct Deleted<'a> {
        name: &'a str,
        deleted: bool,
    }
    output.show(&Deleted { name: &shown, deleted: true }, || {
        format!("filesystem {shown} is being deleted; its space becomes free bit by bit\n")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn what_is_there_decides() {
        let mut status = sample::status(1);
        assert_eq!(present(&status, "home", None), Present::Ready);
        assert_eq!(present(&status, "home", Some(10 << 30)), Present::Ready);
        assert_eq!(present(&status, "other", None), Present::No);
        let Present::Unfit(said) = present(&status, "home", Some(1 << 40)) else {
            panic!("another size is not the same")
        };
        assert!(said.contains("with 10 GiB, not with 1 TiB"), "{said}");
        status.cluster.as_mut().unwrap().filesystems[0].state = "deleting".into();
        assert!(matches!(present(&status, "home", None), Present::Unfit(_)));
    }
}
