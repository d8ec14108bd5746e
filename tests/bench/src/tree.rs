//! A source tree that is the same in each run: as a tar archive and as a git repository.

use crate::systems::succeed;
use anyhow::{Context, Result};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const FILES_PER_DIRECTORY: usize = 20;
const WORDS: [&str; 16] =
    ["let", "value", "=", "match", "index", "{", "}", "return", "self", "buffer", "(", ")", "if", "bytes", "for", "fn"];

pub struct Tree {
    pub archive: PathBuf,
    pub repository: PathBuf,
}

impl Tree {
    /// Writes it below `place`.
    pub fn make(place: &Path, files: usize) -> Result<Tree> {
        let root = place.join("tree");
        if root.exists() {
            std::fs::remove_dir_all(&root).with_context(|| format!("can't delete {}", root.display()))?;
        }
        for number in 0..files {
            let directory = root.join(format!("part{:03}/source", number / FILES_PER_DIRECTORY));
            std::fs::create_dir_all(&directory).with_context(|| format!("can't create {}", directory.display()))?;
            std::fs::write(directory.join(format!("file{number:05}.rs")), text(number))?;
        }
        let archive = place.join("tree.tar");
        succeed(Command::new("tar").arg("cf").arg(&archive).arg("-C").arg(&root).arg("."))?;
        let git = |arguments: &[&str]| {
            let mut command = Command::new("git");
            command.arg("-C").arg(&root).args(["-c", "user.name=bench", "-c", "user.email=bench@localhost"]);
            succeed(command.args(["-c", "gc.auto=0"]).args(arguments))
        };
        git(&["init", "--quiet"])?;
        git(&["add", "."])?;
        git(&["commit", "--quiet", "-m", "all"])?;
        // One pack, as a server would send.
        git(&["repack", "-a", "-d", "--quiet"])?;
        Ok(Tree { archive, repository: root })
    }
}

/// Half a KiB to 32 KiB, 8 in the mean; it compresses about as source does.
fn text(number: usize) -> String {
    let bytes = 512 << ((number * 7) % 6) | ((number * 631) % 512);
    let mut text = String::with_capacity(bytes + 64);
    let mut state = number as u32 + 1;
    while text.len() < bytes {
        for _ in 0..9 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let word = WORDS[(state >> 28) as usize];
            // A String takes whatever is written.
            let _ = if state & 0x70_0000 == 0 { write!(text, "{:x} ", state >> 12) } else { write!(text, "{word} ") };
        }
        text.push('\n');
    }
    text
}
