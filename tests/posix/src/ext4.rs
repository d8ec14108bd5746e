//! What Weft is compared with.

use crate::process;
use crate::scene::Scene;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;
use weft_cluster_tests::mount::privileged;

const BYTES: u64 = 256 << 20;
const TIME: Duration = Duration::from_secs(60);

/// A filesystem of the kind that everybody knows, in a file.
pub struct Ext4(PathBuf);

impl Ext4 {
    pub fn mount(scene: &Scene) -> Result<Ext4> {
        let (image, place) = (scene.scratch.join("ext4.image"), scene.scratch.join("ext4"));
        std::fs::File::create(&image)?.set_len(BYTES)?;
        std::fs::create_dir_all(&place)?;
        let log = scene.log("ext4");
        let mut make = privileged(Path::new("mkfs.ext4"));
        // As many inodes as the suite makes links and files at once.
        make.args(["-q", "-F", "-N", "4096"]).arg(&image);
        process::run(make, &log, TIME).context("can't make an ext4 to compare with")?;
        let mut mount = privileged(Path::new("mount"));
        mount.args(["-o", "loop"]).arg(&image).arg(&place);
        process::run(mount, &log, TIME).context("can't mount an ext4 to compare with; that needs loop devices")?;
        Ok(Ext4(place))
    }

    pub fn place(&self) -> &Path {
        &self.0
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = weft_cluster_tests::mount::unmount(&self.0, true);
    }
}
