//! The repository says nothing about the machine that it was written on.

use crate::Violations;
use crate::tree::File;

/// Built at run time, so that this file does not name them either.
fn forbidden() -> Vec<String> {
    ["work", "root", "home", "Users", "tmp/bash_jobs"].iter().map(|name| format!("/{name}/")).collect()
}

pub fn violations(files: &[File]) -> Violations {
    let forbidden = forbidden();
    let mut found = Violations::new();
    for file in files {
        for (index, line) in file.text.lines().enumerate() {
            for path in &forbidden {
                // `a/work/b` is a part of some other path.
                let starts = line.match_indices(path.as_str()).any(|(at, _)| {
                    let before = line.get(..at).and_then(|s| s.chars().next_back());
                    !before.is_some_and(|c| c.is_alphanumeric() || "_.-}>)$~*".contains(c))
                });
                if starts {
                    found.push(format!("{}:{}: names {path}, a place on one machine", file.path, index + 1));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::sample;

    #[test]
    fn holds() {
        crate::none(violations(&crate::tree::files().unwrap()));
    }

    #[test]
    fn sees_a_path_of_a_machine() {
        for path in forbidden() {
            crate::one(violations(&[sample("a.toml", &format!("x = \"{path}x\"\n"))]), "a place on one machine");
        }
    }

    #[test]
    fn leaves_relative_paths_alone() {
        crate::none(violations(&[sample("a.md", "crates/work/src, $HOME/work/x\n")]));
    }
}
