//! Drive files and configurations that can't be right: the daemon says what is wrong and what to do, and changes nothing.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};
use weft_drive::mem::{MemMedia, MemOptions};
use weft_drive::{Drive, FormatOptions, FormattedDrive};
use weft_reactor::testing::VirtualTime;
use weft_wire::control::{Answer, Status};
use weft_wire::{DriveId, NodeId, Uuid};

const DEADLINE: Duration = Duration::from_secs(60);
const DRIVE_BYTES: u64 = 128 << 20;
/// What is compared to see that nothing was written.
const LOOK_BYTES: usize = 1 << 20;

/// A node with one drive file, in a directory of its own.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let path = std::env::temp_dir().join(format!("weftd-bad-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Place(path)
    }

    fn drive(&self) -> PathBuf {
        self.0.join("a.drive")
    }

    /// `more`: what stands in the drive's part besides its path.
    fn configure(&self, head: &str, more: &str) -> PathBuf {
        let config = self.0.join("weftd.toml");
        let text = format!(
            "name = \"node1\"\nstate_dir = {:?}\ncontrol_listen = \"127.0.0.1:{}\"\n{head}\n[[cores]]\nlisten = \
             \"127.0.0.1:{}\"\n[[drives]]\npath = \"a.drive\"\n{more}\n",
            self.0,
            free_port(),
            free_port()
        );
        std::fs::write(&config, text).unwrap();
        config
    }

    fn head(&self) -> Vec<u8> {
        let mut head = vec![0; LOOK_BYTES];
        std::fs::File::open(self.drive()).unwrap().read_exact_at(&mut head, 0).unwrap();
        head
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn weftd(verb: &[&str], config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weftd"));
    command.args(verb).arg(config).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A daemon that runs until this is dropped.
struct Running(Child);

impl Running {
    fn start(config: &Path) -> Running {
        Running(weftd(&["run", "--config"], config).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// What it says of itself, once it has opened its drives.
    fn status(&mut self, place: &Place) -> Status {
        let started = Instant::now();
        loop {
            if let Some(ended) = self.0.try_wait().unwrap() {
                panic!("weftd ended: {ended}");
            }
            match ask(&place.0.join("control.sock")) {
                Some(status) if status.phase != "opening drives" => return status,
                _ => assert!(started.elapsed() < DEADLINE, "no answer"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ask(socket: &Path) -> Option<Status> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.write_all(b"{\"command\":\"status\"}\n").ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    match serde_json::from_str(&line).ok()? {
        Answer::Status(status) => Some(*status),
        other => panic!("{other:?}"),
    }
}

/// Runs it to its end, which must come, and returns its exit code and complaints.
fn complaint(mut command: Command) -> (i32, String) {
    let mut child = command.spawn().unwrap();
    let started = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if started.elapsed() > DEADLINE => {
                let _ = child.kill();
                panic!("weftd runs although it can't");
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (status.code().unwrap_or(-1), said)
}

/// Writes a drive of some cluster.
fn formatted(path: &Path) {
    let time = VirtualTime::new(1);
    let media = MemMedia::new(MemOptions::instant(DRIVE_BYTES));
    let drive: Rc<dyn Drive> = media.open(&time.handle());
    let options = FormatOptions { cluster: Uuid(1), node: NodeId(1), drive: DriveId(1), uuid: Uuid(2), force: false };
    time.block_on(FormattedDrive::format(&drive, options)).unwrap();
    std::fs::write(path, media.peek(0, DRIVE_BYTES as usize)).unwrap();
}

#[test]
fn an_empty_drive_is_not_formatted_before_a_cluster_is_made() {
    let place = Place::new("empty");
    std::fs::File::create(place.drive()).unwrap().set_len(DRIVE_BYTES).unwrap();
    let config = place.configure("", "");
    let status = Running::start(&config).status(&place);
    assert_eq!((status.phase.as_str(), status.drives[0].state.as_str()), ("unclaimed", "blank"));
    assert!(status.waiting.unwrap().contains("weft cluster create"));
    assert!(place.head().iter().all(|byte| *byte == 0));
}

#[test]
fn a_foreign_drive_is_left_alone() {
    let place = Place::new("foreign");
    let file = std::fs::File::create(place.drive()).unwrap();
    file.write_all_at(b"somebody's photographs", 512).unwrap();
    file.set_len(DRIVE_BYTES).unwrap();
    let before = place.head();
    let config = place.configure("", "");
    let status = Running::start(&config).status(&place);
    assert!(status.drives[0].state.contains("isn't Weft's"), "{status:?}");
    let waiting = status.waiting.unwrap();
    assert!(waiting.contains("a.drive") && waiting.contains("isn't Weft's"), "{waiting}");
    assert_eq!(place.head(), before);
}

#[test]
fn a_truncated_drive_is_left_alone() {
    let place = Place::new("truncated");
    formatted(&place.drive());
    let file = std::fs::OpenOptions::new().write(true).open(place.drive()).unwrap();
    file.set_len(DRIVE_BYTES - (32 << 20)).unwrap();
    let before = place.head();
    let config = place.configure("", "");
    let status = Running::start(&config).status(&place);
    assert!(status.drives[0].state.contains("truncated or replaced"), "{status:?}");
    assert_eq!(place.head(), before);

    let (code, said) = complaint(weftd(&["run", "--config"], &place.configure("", "size_bytes = 134217728")));
    assert_ne!(code, 0);
    assert!(said.contains("a.drive") && said.contains("134217728"), "{said}");
    assert_eq!(place.head(), before);
}

#[test]
fn a_stub_of_a_drive_is_refused() {
    let place = Place::new("stub");
    std::fs::write(place.drive(), b"short").unwrap();
    let (code, said) = complaint(weftd(&["run", "--config"], &place.configure("", "")));
    assert_ne!(code, 0);
    assert!(said.contains("a.drive") && said.contains("less than"), "{said}");
    assert_eq!(std::fs::read(place.drive()).unwrap(), b"short");
}

#[test]
fn a_read_only_drive_is_named() {
    let place = Place::new("readonly");
    std::fs::File::create(place.drive()).unwrap().set_len(DRIVE_BYTES).unwrap();
    let config = place.configure("", "");
    // Modes don't stop root: the file is made a mount of its own in a namespace of its own.
    let script = "mount --bind \"$1\" \"$1\" && mount -o remount,ro,bind \"$1\" && exec \"$2\" run --config \"$3\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, "sh"]).arg(place.drive()).arg(env!("CARGO_BIN_EXE_weftd")).arg(&config);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let possible = Command::new("unshare").args(["-m", "true"]).stderr(Stdio::null()).status();
    if !possible.is_ok_and(|status| status.success()) {
        println!("not tested: it takes the right to mount");
        return;
    }
    let (code, said) = complaint(command);
    assert_ne!(code, 0);
    assert!(said.contains("a.drive") && said.to_lowercase().contains("read-only"), "{said}");
}

#[test]
fn a_wrong_configuration_is_explained_and_nothing_is_made() {
    let place = Place::new("config");
    let config = place.configure("nmae = \"x\"", "size_bytes = 134217728");
    for verb in [&["--check-config"][..], &["run", "--config"], &["supervise", "--config"]] {
        let (code, said) = complaint(weftd(verb, &config));
        assert_ne!(code, 0, "{verb:?}");
        assert!(said.contains("nmae") && said.contains("weftd.toml"), "{verb:?}: {said}");
    }
    let missing = place.0.join("missing.toml");
    let (code, said) = complaint(weftd(&["run", "--config"], &missing));
    assert!(code != 0 && said.contains("missing.toml"), "{said}");
    assert!(!place.drive().exists());
}
