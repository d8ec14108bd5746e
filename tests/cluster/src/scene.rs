//! A cluster of a test's own: in a directory below the temporary one, gone when the test has passed.

use crate::cluster::Cluster;
use crate::layout::Layout;
use crate::mount;
use crate::programs::Programs;
use anyhow::Result;
use std::path::PathBuf;

pub struct Scene {
    pub root: PathBuf,
    pub cluster: Cluster,
}

impl Scene {
    /// A cluster as the layout says, not started yet.
    pub fn new(name: &str, layout: Layout) -> Result<Scene> {
        let root = std::env::temp_dir().join(format!("weft-{name}-{}", std::process::id()));
        let cluster = Cluster::create(Programs::beside_this_test()?, &root.join("state"), layout)?;
        std::fs::create_dir_all(root.join("mnt"))?;
        Ok(Scene { root, cluster })
    }

    /// The same, started and formed.
    pub fn formed(name: &str, layout: Layout) -> Result<Scene> {
        let mut scene = Scene::new(name, layout)?;
        scene.cluster.start()?;
        scene.cluster.form("main")?;
        Ok(scene)
    }

    pub fn mountpoint(&self) -> PathBuf {
        self.root.join("mnt")
    }

    pub fn mount(&mut self) -> Result<()> {
        let place = self.mountpoint();
        self.cluster.mount(&place, "")
    }
}

impl Drop for Scene {
    /// A failed test leaves no processes and no mounts, and its state to look at.
    fn drop(&mut self) {
        let _ = mount::unmount(&self.mountpoint(), true);
        let _ = self.cluster.kill_all();
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.root);
        }
    }
}
