//! What the README tells people to type exists.

use crate::Violations;

/// Commands of other people that the README may use.
const OTHERS: [&str; 14] =
    ["git", "cd", "ls", "cat", "cp", "echo", "mkdir", "dd", "df", "umount", "printf", "sync", "sudo", "kill"];

/// Lines of the blocks marked `sh`.
fn commands(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut inside = false;
    for (index, line) in text.lines().enumerate() {
        if let Some(kind) = line.strip_prefix("```") {
            inside = kind == "sh";
        } else if inside {
            let command = line.split('#').next().unwrap_or_default().trim();
            if !command.is_empty() {
                found.push((index + 1, command));
            }
        }
    }
    found
}

/// `verbs` are those of xtask, `programs` what the workspace builds, `exists` tells of files by relative path.
pub fn violations(text: &str, verbs: &[String], programs: &[String], exists: impl Fn(&str) -> bool) -> Violations {
    let mut found = Violations::new();
    for (line, command) in commands(text) {
        let mut words = command.split_whitespace().skip_while(|word| *word == "sudo");
        let good = match (words.next(), words.next()) {
            (Some("cargo"), Some("xtask")) => words.next().is_some_and(|verb| verbs.iter().any(|v| v == verb)),
            (Some("cargo"), Some(verb)) => ["build", "test", "nextest", "install"].contains(&verb),
            (Some(program), _) if program.starts_with("target/") => {
                program.rsplit('/').next().is_some_and(|name| programs.iter().any(|p| p == name))
            }
            (Some(program), _) if program.contains('/') => exists(program),
            (Some(program), _) => programs.iter().any(|p| p == program) || OTHERS.contains(&program),
            (None, _) => true,
        };
        if !good {
            found.push(format!("README.md:{line}: `{command}` does not exist"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds() {
        let root = crate::tree::root();
        let text = std::fs::read_to_string(root.join("README.md")).unwrap();
        let main = std::fs::read_to_string(root.join("xtask/src/main.rs")).unwrap();
        let verbs: Vec<String> =
            main.lines().filter_map(|l| Some(l.strip_prefix("mod ")?.trim_end_matches(';').into())).collect();
        let packages = crate::metadata::members().unwrap().packages;
        let targets = packages.into_iter().flat_map(|p| p.targets);
        let programs: Vec<String> = targets.filter(|t| t.kind.iter().any(|k| k == "bin")).map(|t| t.name).collect();
        assert!(!commands(&text).is_empty());
        crate::none(violations(&text, &verbs, &programs, |path| root.join(path).exists()));
    }

    #[test]
    fn sees_commands_that_do_not_exist() {
        let verbs = ["test".to_string()];
        let programs = ["weft".to_string()];
        let check =
            |line: &str| violations(&format!("```sh\n{line}\n```\n"), &verbs, &programs, |path| path == ".ci/run");
        for good in [
            "cargo xtask test  # all",
            "weft status",
            "sudo target/ci/weft status",
            ".ci/run",
            "git clone x",
            "# only this",
        ] {
            crate::none(check(good));
        }
        for bad in ["cargo xtask fly", "cargo fly", "loom status", "target/ci/loom", ".ci/walk"] {
            crate::one(check(bad), "does not exist");
        }
    }
}
