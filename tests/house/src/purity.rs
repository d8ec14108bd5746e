//! Pure crates know nothing of time, files, sockets, threads or chance; sans-IO crates get them as arguments.
//!
//! This looks for words in sources. It can be outwitted, and is for those who would forget, not for those who would.

use crate::Violations;
use crate::metadata::Package;
use crate::tree::File;

/// Whole directories of sources, as far as they are named.
const PURE: [&str; 3] = ["crates/wire/", "crates/erasure/", "crates/placement/"];
/// What the simulator runs: time, chance and effects come through the reactor's handle, links and drives alone.
const SIMULATED: [&str; 6] = [
    "crates/transport/",
    "crates/client/",
    "appliance/journal/",
    "appliance/bucket/",
    "appliance/namespace/",
    "appliance/manager/",
];
/// Files in these directories that are allowed an effect, and why.
const EXCEPTIONS: [(&str, &str); 0] = [];

const FORBIDDEN: [&str; 25] = [
    "std::time::Instant",
    "std::time::SystemTime",
    "SystemTime::now",
    "Instant::now",
    "std::fs",
    "std::thread",
    "std::process",
    "std::env::",
    "FromRawFd",
    "std::os::unix",
    "std::io::stdin",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "UnixStream",
    "UnixListener",
    "UnixDatagram",
    "thread_rng",
    "rand::",
    "getrandom",
    "RandomState",
    "nix::",
    "libc::",
    "socket2::",
    "tokio::",
];

/// Crates that bring effects with them. Normal and build dependencies of pure and simulated crates avoid them.
const EFFECTS: [&str; 12] = [
    "nix",
    "libc",
    "rustix",
    "socket2",
    "quinn-udp",
    "io-uring",
    "rand",
    "getrandom",
    "fastrand",
    "tokio",
    "mio",
    "memmap2",
];

fn concerned(path: &str) -> bool {
    PURE.iter().chain(&SIMULATED).any(|d| path.strip_prefix(d).is_some_and(|rest| rest.starts_with("src/")))
}

/// The part of a source that is not its tests, without comments.
fn product(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut test_attribute = false;
    text.lines()
        .enumerate()
        .take_while(move |(_, line)| {
            let ends = test_attribute && line.starts_with("mod ") && line.trim_end().ends_with('{');
            test_attribute = line.starts_with("#[cfg(test)]") || (test_attribute && line.starts_with("#["));
            !ends
        })
        .map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default()))
}

/// A word of the list, not as the tail of a longer one (`rand::` in `operand::`).
fn contains_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line.get(..at).and_then(|s| s.chars().next_back());
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

pub fn violations(files: &[File]) -> Violations {
    let mut found = Violations::new();
    for file in files.iter().filter(|f| f.path.ends_with(".rs") && concerned(&f.path)) {
        let test_file = file.path.ends_with("/tests.rs") || file.path.contains("/tests/");
        if test_file || EXCEPTIONS.iter().any(|(path, _)| *path == file.path) {
            continue;
        }
        for (number, line) in product(&file.text) {
            for word in FORBIDDEN.iter().filter(|word| contains_word(line, word)) {
                let path = &file.path;
                found.push(format!("{path}:{number}: {word} in a crate that gets such things as arguments"));
            }
        }
    }
    found
}

/// The same for what these crates depend on.
pub fn dependency_violations(members: &[(String, Package)]) -> Violations {
    let mut found = Violations::new();
    for (directory, package) in members {
        let inside = PURE.iter().chain(&SIMULATED).any(|d| d.trim_end_matches('/') == directory);
        for dependency in package.dependencies.iter().filter(|d| d.kind.as_deref() != Some("dev")) {
            if inside && EFFECTS.contains(&dependency.name.as_str()) {
                found.push(format!("{} depends on {}, which has effects", package.name, dependency.name));
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
    fn holds_for_dependencies() {
        let root = crate::tree::root();
        let members = crate::metadata::members().unwrap().packages;
        let named: Vec<_> = members.into_iter().map(|p| (p.directory(&root), p)).collect();
        assert!(named.iter().any(|(directory, _)| directory == "crates/wire"));
        crate::none(dependency_violations(&named));
    }

    #[test]
    fn sees_a_clock() {
        let bad = sample("crates/wire/src/a.rs", "fn f() {\n    let t = std::time::Instant::now();\n}\n");
        assert_eq!(violations(&[bad]).len(), 2);
    }

    #[test]
    fn sees_what_stands_after_a_test_only_import() {
        let bad = sample("crates/wire/src/a.rs", "#[cfg(test)]\nuse x::y;\nfn f() { std::fs::read(p) }\n");
        crate::one(violations(&[bad]), "a.rs:3: std::fs");
    }

    #[test]
    fn leaves_tests_comments_and_other_crates_alone() {
        let files = [
            sample("crates/wire/src/a.rs", "// not std::fs\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n"),
            sample("crates/wire/src/b.rs", "let x = operand::of(y);\n"),
            sample("crates/reactor/src/clock.rs", "std::time::Instant::now()\n"),
            sample("crates/wire/benches/c.rs", "std::time::Instant::now()\n"),
        ];
        crate::none(violations(&files));
    }

    #[test]
    fn sees_a_dependency_with_effects() {
        let bad = ("crates/wire".to_string(), crate::metadata::sample("weft-wire", &["nix"]));
        crate::one(dependency_violations(&[bad]), "depends on nix");
    }
}
