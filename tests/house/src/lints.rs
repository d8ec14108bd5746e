//! Every crate takes lints and versions from the workspace, and forbids unsafe code unless it is named here.

use crate::Violations;
use crate::tree::File;

/// Crates that touch hardware, C or raw memory; each block there says why it is sound.
const UNSAFE: [&str; 5] = ["crates/erasure", "crates/reactor", "crates/link", "appliance/drive", "client-fuse"];

/// Keys of `[package]` that every member inherits.
const INHERITED: [&str; 5] = ["version", "edition", "rust-version", "license", "publish"];

pub fn manifest_violations(path: &str, text: &str) -> Violations {
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(error) => return vec![format!("{path}: {error}")],
    };
    let inherits = |section: Option<&toml::Value>| {
        section.and_then(|s| s.get("workspace")).and_then(toml::Value::as_bool) == Some(true)
    };
    let mut found = Violations::new();
    if !inherits(table.get("lints")) {
        found.push(format!("{path} does not inherit the workspace's lints"));
    }
    for key in INHERITED {
        if !inherits(table.get("package").and_then(|p| p.get(key))) {
            found.push(format!("{path}: {key} does not come from the workspace"));
        }
    }
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        for (name, value) in table.get(section).and_then(toml::Value::as_table).into_iter().flatten() {
            if !inherits(Some(value)) {
                found.push(format!("{path}: the version of {name} does not come from the workspace"));
            }
        }
    }
    found
}

/// `roots` are the first files of libraries and programs.
pub fn unsafe_violations(roots: &[File]) -> Violations {
    let named = |path: &str| UNSAFE.iter().any(|d| path.strip_prefix(d).is_some_and(|rest| rest.starts_with('/')));
    let bare = roots.iter().filter(|f| !f.text.trim().is_empty() && !f.text.contains("#![forbid(unsafe_code)]"));
    bare.filter(|f| !named(&f.path)).map(|f| format!("{} lacks #![forbid(unsafe_code)]", f.path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{root, sample};

    #[test]
    fn holds() {
        let mut found = Violations::new();
        for package in crate::metadata::members().unwrap().packages {
            let text = std::fs::read_to_string(&package.manifest_path).unwrap();
            found.extend(manifest_violations(&package.manifest_path, &text));
        }
        crate::none(found);
    }

    #[test]
    fn unsafe_code_is_where_it_is_named() {
        let packages = crate::metadata::members().unwrap().packages;
        let targets = packages.into_iter().flat_map(|p| p.targets);
        let products = targets.filter(|t| t.kind.iter().any(|k| k == "lib" || k == "bin"));
        let read = |path: String| {
            let relative = std::path::Path::new(&path).strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            sample(&relative, &std::fs::read_to_string(&path).unwrap())
        };
        let roots: Vec<File> = products.map(|t| read(t.src_path)).collect();
        assert!(roots.len() > 10);
        crate::none(unsafe_violations(&roots));
    }

    #[test]
    fn sees_a_manifest_that_goes_its_own_way() {
        let good = "[package]\nname = 'a'\nversion.workspace = true\nedition.workspace = true\n\
            rust-version.workspace = true\nlicense.workspace = true\npublish.workspace = true\n\
            [lints]\nworkspace = true\n";
        crate::none(manifest_violations("Cargo.toml", good));
        crate::one(manifest_violations("Cargo.toml", &good.replace("[lints]", "[metadata]")), "lints");
        crate::one(
            manifest_violations("Cargo.toml", &good.replace("edition.workspace = true", "edition = '2021'")),
            "edition",
        );
        crate::one(manifest_violations("Cargo.toml", &format!("{good}[dependencies]\nbytes = '1'\n")), "bytes");
        crate::one(manifest_violations("Cargo.toml", "no toml"), "Cargo.toml");
    }

    #[test]
    fn sees_a_crate_that_allows_unsafe_code() {
        let files =
            [sample("crates/wire/src/lib.rs", "pub fn f() {}\n"), sample("crates/link/src/lib.rs", "fn f() {}\n")];
        crate::one(unsafe_violations(&files), "crates/wire/src/lib.rs");
    }
}
