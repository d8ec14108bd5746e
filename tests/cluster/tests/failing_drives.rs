//! Drives that fail everything from one moment to the next under daemons that run: each is a loop device over a file in a
//! filesystem of its own, and the process that serves that is killed. No error, no wrong byte; the drive is given up, and
//! used again after its node was started.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use weft_cluster_tests::layout::Layout;
use weft_cluster_tests::load::{Load, longest};
use weft_cluster_tests::scene::Scene;
use weft_cluster_tests::{mount, wait};

const DRIVE_BYTES: u64 = 512 << 20;
const BEFORE: Duration = Duration::from_secs(2);
/// Long enough for the drive to be given up.
const AFTER: Duration = Duration::from_secs(8);
const MOUNTED_DEADLINE: Duration = Duration::from_secs(20);
const GIVEN_UP_DEADLINE: Duration = Duration::from_secs(30);
const HEALTHY_DEADLINE: Duration = Duration::from_secs(120);

/// A block device over a file behind FUSE.
struct Device {
    source: PathBuf,
    place: PathBuf,
    server: Option<Child>,
    path: Option<PathBuf>,
}

impl Device {
    fn new(root: &Path) -> Device {
        let (source, place) = (root.join("source"), root.join("place"));
        std::fs::create_dir_all(&source).unwrap();
        std::fs::create_dir_all(&place).unwrap();
        std::fs::File::create(source.join("file")).unwrap().set_len(DRIVE_BYTES).unwrap();
        Device { source, place, server: None, path: None }
    }

    /// The node finds the device under the name of its drive.
    fn serve(&mut self, name: &Path) {
        let this = std::env::current_exe().unwrap();
        let program = this.ancestors().nth(2).unwrap().join("examples/passthrough");
        let child = Command::new(&program).arg(&self.source).arg(&self.place).stdin(Stdio::null()).spawn();
        self.server = Some(child.unwrap_or_else(|error| panic!("{}: {error}", program.display())));
        let mounted = || Ok(mount::kind(&self.place)?.map(drop));
        wait::until("the drive's filesystem is mounted", MOUNTED_DEADLINE, mounted).unwrap();
        let file = self.place.join("file");
        let made = Command::new("losetup").args(["--find", "--show"]).arg(&file).output().unwrap();
        assert!(made.status.success(), "losetup {}: {}", file.display(), String::from_utf8_lossy(&made.stderr));
        let path = PathBuf::from(String::from_utf8(made.stdout).unwrap().trim());
        let _ = std::fs::remove_file(name);
        std::os::unix::fs::symlink(&path, name).unwrap();
        self.path = Some(path);
    }

    /// Whatever is under way fails, and all that comes.
    fn fail(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }

    fn take_away(&mut self) {
        self.fail();
        if let Some(path) = self.path.take() {
            let _ = Command::new("losetup").arg("--detach").arg(path).status();
        }
        let _ = mount::unmount(&self.place, true);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.take_away();
    }
}

/// Nodes that lose their drives, one round after the other.
fn plan() -> Vec<Vec<usize>> {
    match std::env::var_os("WEFT_LONG") {
        None => vec![vec![2, 5]],
        Some(_) => vec![vec![1], vec![2, 5], vec![4], vec![1, 3], vec![4, 6], vec![5]],
    }
}

fn given_up(scene: &Scene) -> anyhow::Result<usize> {
    let list: serde_json::Value = serde_json::from_str(&scene.cluster.weft(&["drive", "list", "--json"])?)?;
    let drives = list.as_array().cloned().unwrap_or_default();
    Ok(drives.iter().filter(|drive| drive["in_map"] == "failed").count())
}

#[test]
#[ignore = "starts a cluster: `cargo xtask test cluster`"]
fn drives_fail_under_load_and_come_back() {
    let layout = Layout::new("drives", 6, "4+2", DRIVE_BYTES).unwrap();
    let mut scene = Scene::new("drives", layout).unwrap();
    let mut devices = Vec::new();
    for node in &scene.cluster.nodes {
        let mut device = Device::new(&scene.root.join(format!("device{}", node.number)));
        device.serve(&node.drive());
        devices.push(device);
    }
    scene.cluster.start().unwrap();
    scene.cluster.form("main").unwrap();
    scene.mount().unwrap();
    for (round, victims) in plan().into_iter().enumerate() {
        let load = Load::start(&scene.mountpoint().join(format!("round{round}")));
        std::thread::sleep(BEFORE);
        let struck = Instant::now();
        victims.iter().for_each(|victim| devices[victim - 1].fail());
        std::thread::sleep(AFTER);
        let steps = load.finish().unwrap_or_else(|error| panic!("drives of {victims:?}: {error}"));
        let stall = longest(&steps, struck).as_millis();
        println!("drives of {victims:?} fail: longest step {stall} ms, {} steps", steps.len());
        let all = || Ok((given_up(&scene)? == victims.len()).then_some(()));
        wait::until("the drives are given up", GIVEN_UP_DEADLINE, all).unwrap();

        for victim in victims {
            let node = &mut scene.cluster.nodes[victim - 1];
            node.kill().unwrap();
            devices[victim - 1].take_away();
            devices[victim - 1].serve(&node.drive());
        }
        scene.cluster.start().unwrap();
        wait::until_ok(HEALTHY_DEADLINE, || scene.cluster.weft(&["status"])).unwrap();
    }
    mount::unmount(&scene.mountpoint(), false).unwrap();
}
