//! Which cluster of this user has which ports. Ports of nodes that are down look free, and two clusters that are made at
//! once see the same free ones: so a range is claimed by a file before it is used, and stays claimed while its cluster
//! exists. Claims outlive a reboot, as the clusters do.

use crate::process;
use anyhow::{Context, Result};
use nix::unistd::{Pid, getuid};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Not the temporary directory, which a reboot empties.
const PARENT: &str = "/var/tmp";

/// Who has a range.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    /// Its cluster is being made.
    Process(Pid),
    /// The state directory of its cluster.
    State(PathBuf),
}

impl Owner {
    fn parse(text: &str) -> Option<Owner> {
        match text.trim_end_matches('\n').split_once(' ')? {
            ("process", pid) => Some(Owner::Process(Pid::from_raw(pid.parse().ok()?))),
            ("state", path) => Some(Owner::State(path.into())),
            _ => None,
        }
    }

    fn line(&self) -> String {
        match self {
            Owner::Process(pid) => format!("process {pid}\n"),
            Owner::State(path) => format!("state {}\n", path.display()),
        }
    }
}

/// The claims of one user on one machine.
pub struct Claims {
    directory: PathBuf,
}

impl Claims {
    pub fn of_this_user() -> Claims {
        Claims { directory: Path::new(PARENT).join(format!("weft-ports-{}", getuid())) }
    }

    /// The first of `bases` that nobody has and that is `fit`, for this process until [`Self::keep`] is called.
    /// `has`: whether the cluster in a state directory still has this base.
    pub fn take(
        &self,
        mut bases: impl Iterator<Item = u16>,
        fit: impl Fn(u16) -> bool,
        has: impl Fn(&Path, u16) -> bool,
    ) -> Result<Option<u16>> {
        let _lock = self.lock()?;
        let free = |base: &u16| match self.owner(*base) {
            Some(Owner::Process(pid)) => !process::alive(pid),
            Some(Owner::State(state)) => !has(&state, *base),
            None => true,
        };
        let Some(base) = bases.find(|base| free(base) && fit(*base)) else { return Ok(None) };
        self.write(base, &Owner::Process(Pid::this()))?;
        Ok(Some(base))
    }

    /// The cluster in this directory has the range from now on.
    pub fn keep(&self, base: u16, state: &Path) -> Result<()> {
        let owner = Owner::State(state.to_path_buf());
        if self.owner(base).as_ref() == Some(&owner) {
            return Ok(());
        }
        let _lock = self.lock()?;
        self.write(base, &owner)
    }

    fn lock(&self) -> Result<File> {
        std::fs::create_dir_all(&self.directory)
            .with_context(|| format!("can't create {}", self.directory.display()))?;
        let path = self.directory.join("lock");
        let file = File::create(&path).with_context(|| format!("can't write {}", path.display()))?;
        file.lock().with_context(|| format!("can't lock {}", path.display()))?;
        Ok(file)
    }

    fn path(&self, base: u16) -> PathBuf {
        self.directory.join(base.to_string())
    }

    fn owner(&self, base: u16) -> Option<Owner> {
        Owner::parse(&std::fs::read_to_string(self.path(base)).ok()?)
    }

    fn write(&self, base: u16, owner: &Owner) -> Result<()> {
        let path = self.path(base);
        std::fs::write(&path, owner.line()).with_context(|| format!("can't write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(name: &str) -> Claims {
        Claims { directory: std::env::temp_dir().join(format!("weft-claims-{name}-{}", std::process::id())) }
    }

    #[test]
    fn a_range_belongs_to_a_cluster_as_long_as_that_exists() {
        let claims = claims("kept");
        let bases = || [100u16, 200, 300].into_iter();
        let state = Path::new("/some where/state");
        let nobody = |_: &Path, _| false;
        assert_eq!(claims.take(bases(), |base| base > 100, nobody).unwrap(), Some(200), "the first that fits");
        assert_eq!(claims.take(bases(), |base| base > 100, nobody).unwrap(), Some(300), "this process has the other");
        claims.keep(200, state).unwrap();
        let exists = |found: &Path, base| found == state && base == 200;
        assert_eq!(claims.take(bases(), |base| base > 100, exists).unwrap(), None);
        assert_eq!(claims.take(bases(), |base| base > 100, nobody).unwrap(), Some(200), "its cluster was deleted");
        std::fs::write(claims.path(300), "process 999999999\n").unwrap();
        assert_eq!(claims.take(bases(), |base| base > 200, exists).unwrap(), Some(300), "its process is gone");
        std::fs::remove_dir_all(&claims.directory).unwrap();
    }

    #[test]
    fn those_who_ask_at_once_get_different_ranges() {
        let claims = claims("race");
        let taken = std::thread::scope(|scope| {
            let ask = || claims.take((1..=8u16).map(|n| n * 100), |_| true, |_, _| false).unwrap();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            let taken = threads.into_iter().filter_map(|thread| thread.join().unwrap());
            taken.collect::<std::collections::BTreeSet<u16>>()
        });
        assert_eq!(taken.len(), 8);
        std::fs::remove_dir_all(&claims.directory).unwrap();
    }
}
