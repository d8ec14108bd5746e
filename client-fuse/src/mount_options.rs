//! Options of a mount as mount(8) passes them to a helper: `-o a,b=c,...`.

use crate::session::THREADS_MAX;
use nix::mount::MsFlags;
use std::path::PathBuf;
use std::time::Duration;

/// What the options of one mount say. Later ones override earlier ones, as with mount(8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Flags for mount(2), `MS_REMOUNT` not among them.
    pub flags: MsFlags,
    pub action: MountAction,
    /// Give an error to the application after this long without an answer; `None`: wait.
    pub fail_after: Option<Duration>,
    /// Log filter, in the syntax of `RUST_LOG`.
    pub log: Option<String>,
    /// Where the log goes once it is mounted.
    pub log_file: Option<PathBuf>,
    /// Threads that serve; `None`: as many as suit.
    pub threads: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountAction {
    Mount,
    Remount,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    #[error("unknown mount option '{0}'; known are {KNOWN}")]
    Unknown(String),
    #[error("mount option '{0}' takes no value")]
    TakesNoValue(String),
    #[error("mount option '{name}' needs a value: {name}={what}")]
    NeedsValue { name: &'static str, what: &'static str },
    #[error("mount option '{name}={value}': {what} was expected")]
    BadValue { name: &'static str, value: String, what: &'static str },
}

const KNOWN: &str = "ro, rw, remount, allow_other, default_permissions, dev, nodev, suid, nosuid, exec, noexec, atime, \
                     noatime, diratime, nodiratime, relatime, norelatime, strictatime, nostrictatime, lazytime, nolazytime, sync, async, dirsync, \
                     fail-after=SECONDS, log=FILTER, log-file=PATH, threads=NUMBER, and those for mount(8) alone (defaults, auto, noauto, user, users, owner, group, nofail, _netdev, x-*)";

/// Of `fail-after`, seconds.
const FAIL_AFTER_S_MAX: u64 = 7 * 24 * 3600;

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            flags: MsFlags::empty(),
            action: MountAction::Mount,
            fail_after: None,
            log: None,
            log_file: None,
            threads: None,
        }
    }
}

impl MountOptions {
    /// Parses one or several `-o` lists, in order.
    pub fn parse<'a>(lists: impl IntoIterator<Item = &'a str>) -> Result<Self, OptionError> {
        let mut options = Self::default();
        for item in lists.into_iter().flat_map(|list| list.split(',')) {
            options.apply(item.trim())?;
        }
        Ok(options)
    }

    fn apply(&mut self, item: &str) -> Result<(), OptionError> {
        let (name, value) = match item.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (item, None),
        };
        match name {
            "fail-after" => {
                self.fail_after = Some(parse_fail_after(value)?);
                return Ok(());
            }
            "log" => {
                let filter = value.filter(|value| !value.is_empty());
                let filter = filter.ok_or(OptionError::NeedsValue { name: "log", what: "FILTER" })?;
                self.log = Some(filter.to_owned());
                return Ok(());
            }
            "log-file" => {
                let path = value.filter(|value| !value.is_empty());
                let path = path.ok_or(OptionError::NeedsValue { name: "log-file", what: "PATH" })?;
                self.log_file = Some(PathBuf::from(path));
                return Ok(());
            }
            "threads" => {
                self.threads = Some(parse_threads(value)?);
                return Ok(());
            }
            // Comments for other programs that read fstab (x-systemd.automount, X-mount.mkdir=0755).
            _ if name.starts_with("x-") || name.starts_with("X-") => return Ok(()),
            _ => {}
        }
        let known = self.apply_plain(name);
        match (known, value) {
            (true, None) => Ok(()),
            (true, Some(_)) => Err(OptionError::TakesNoValue(name.to_owned())),
            (false, _) => Err(OptionError::Unknown(item.to_owned())),
        }
    }

    /// Applies an option without a value; false if there is no such option.
    fn apply_plain(&mut self, name: &str) -> bool {
        match name {
            "ro" => self.flags.insert(MsFlags::MS_RDONLY),
            "rw" => self.flags.remove(MsFlags::MS_RDONLY),
            "remount" => self.action = MountAction::Remount,
            // Always so: everybody may come in, and the kernel checks permissions by mode, owner and ACL.
            "allow_other" | "default_permissions" => {}
            "dev" => self.flags.remove(MsFlags::MS_NODEV),
            "nodev" => self.flags.insert(MsFlags::MS_NODEV),
            "suid" => self.flags.remove(MsFlags::MS_NOSUID),
            "nosuid" => self.flags.insert(MsFlags::MS_NOSUID),
            "exec" => self.flags.remove(MsFlags::MS_NOEXEC),
            "noexec" => self.flags.insert(MsFlags::MS_NOEXEC),
            "atime" => self.flags.remove(MsFlags::MS_NOATIME),
            "noatime" => self.flags.insert(MsFlags::MS_NOATIME),
            "diratime" => self.flags.remove(MsFlags::MS_NODIRATIME),
            "nodiratime" => self.flags.insert(MsFlags::MS_NODIRATIME),
            "relatime" => self.flags.insert(MsFlags::MS_RELATIME),
            "norelatime" => self.flags.remove(MsFlags::MS_RELATIME),
            "strictatime" => self.flags.insert(MsFlags::MS_STRICTATIME),
            "nostrictatime" => self.flags.remove(MsFlags::MS_STRICTATIME),
            "lazytime" => self.flags.insert(MsFlags::MS_LAZYTIME),
            "nolazytime" => self.flags.remove(MsFlags::MS_LAZYTIME),
            "sync" => self.flags.insert(MsFlags::MS_SYNCHRONOUS),
            "async" => self.flags.remove(MsFlags::MS_SYNCHRONOUS),
            "dirsync" => self.flags.insert(MsFlags::MS_DIRSYNC),
            // What mount(8) itself understands "user" to mean: nobody else's devices, set-id bits or programs.
            "user" | "users" => self.flags.insert(MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC),
            "owner" | "group" => self.flags.insert(MsFlags::MS_NODEV | MsFlags::MS_NOSUID),
            "defaults" | "auto" | "noauto" | "nouser" | "nofail" | "_netdev" | "" => {}
            _ => return false,
        }
        true
    }
}

fn parse_fail_after(value: Option<&str>) -> Result<Duration, OptionError> {
    const NAME: &str = "fail-after";
    let value = value.ok_or(OptionError::NeedsValue { name: NAME, what: "SECONDS" })?;
    match value.parse::<u64>() {
        Ok(seconds @ 1..=FAIL_AFTER_S_MAX) => Ok(Duration::from_secs(seconds)),
        _ => Err(OptionError::BadValue {
            name: NAME,
            value: value.to_owned(),
            what: "a whole number of seconds, from 1 to 604800,",
        }),
    }
}

fn parse_threads(value: Option<&str>) -> Result<usize, OptionError> {
    const NAME: &str = "threads";
    let value = value.ok_or(OptionError::NeedsValue { name: NAME, what: "NUMBER" })?;
    match value.parse::<usize>() {
        Ok(threads @ 1..=THREADS_MAX) => Ok(threads),
        _ => Err(OptionError::BadValue { name: NAME, value: value.to_owned(), what: "a number from 1 to 64" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> Result<MountOptions, OptionError> {
        MountOptions::parse([list])
    }

    #[test]
    fn what_mount_passes_is_understood() -> Result<(), OptionError> {
        let options = parse("rw,nodev,nosuid,noatime,_netdev,x-systemd.automount,fail-after=30,log=weft=debug")?;
        assert_eq!(options.flags, MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOATIME);
        assert_eq!(options.fail_after, Some(Duration::from_secs(30)));
        assert_eq!(options.log.as_deref(), Some("weft=debug"));
        assert_eq!(options.action, MountAction::Mount);
        Ok(())
    }

    #[test]
    fn the_last_one_counts() -> Result<(), OptionError> {
        assert!(MountOptions::parse(["ro,dev", "rw,nodev"])?.flags == MsFlags::MS_NODEV);
        assert!(parse("remount,ro")?.flags == MsFlags::MS_RDONLY);
        assert_eq!(parse("remount,ro")?.action, MountAction::Remount);
        assert_eq!(parse("user,exec")?.flags, MsFlags::MS_NODEV | MsFlags::MS_NOSUID);
        Ok(())
    }

    #[test]
    fn an_unknown_option_is_refused_by_name() {
        assert_eq!(parse("rw,wsize=65536"), Err(OptionError::Unknown("wsize=65536".to_owned())));
        assert_eq!(parse("ro=1"), Err(OptionError::TakesNoValue("ro".to_owned())));
        assert!(parse("nosuch").is_err_and(|error| error.to_string().contains("'nosuch'")));
    }

    #[test]
    fn values_are_checked() {
        for bad in [
            "fail-after",
            "fail-after=",
            "fail-after=0",
            "fail-after=-1",
            "fail-after=soon",
            "log",
            "log=",
            "log-file=",
            "threads=0",
            "threads=65",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
