//! What we depend on is free to use, comes from crates.io, and is none of what `deny.toml` bans.

use crate::Violations;
use crate::metadata::Package;
use anyhow::{Context, Result};

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The lists of `deny.toml`.
#[derive(Debug, Default)]
pub struct Rules {
    pub licences: Vec<String>,
    pub banned: Vec<String>,
}

impl Rules {
    pub fn parse(text: &str) -> Result<Rules> {
        let table: toml::Table = text.parse().context("deny.toml is no TOML")?;
        let list = |section: &str, key: &str| -> Result<Vec<toml::Value>> {
            let value = table.get(section).and_then(|s| s.get(key)).and_then(|v| v.as_array());
            Ok(value.with_context(|| format!("deny.toml has no list {section}.{key}"))?.clone())
        };
        let licences = list("licenses", "allow")?;
        let banned = list("bans", "deny")?;
        Ok(Rules {
            licences: licences.iter().filter_map(|v| v.as_str().map(String::from)).collect(),
            banned: banned.iter().filter_map(|v| v.get("crate")?.as_str().map(String::from)).collect(),
        })
    }
}

/// Whether a licence expression can be fulfilled with the allowed licences. `/` is an old way to write OR.
fn satisfied(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = tokens.as_slice();
    either(&mut rest, allowed) == Some(true) && rest.is_empty()
}

fn either(tokens: &mut &[&str], allowed: &[String]) -> Option<bool> {
    let mut value = both(tokens, allowed)?;
    while let [first, rest @ ..] = *tokens
        && *first == "OR"
    {
        *tokens = rest;
        value |= both(tokens, allowed)?;
    }
    Some(value)
}

fn both(tokens: &mut &[&str], allowed: &[String]) -> Option<bool> {
    let mut value = single(tokens, allowed)?;
    while let [first, rest @ ..] = *tokens
        && *first == "AND"
    {
        *tokens = rest;
        value &= single(tokens, allowed)?;
    }
    Some(value)
}

fn single(tokens: &mut &[&str], allowed: &[String]) -> Option<bool> {
    let (first, rest) = tokens.split_first()?;
    *tokens = rest;
    if *first != "(" {
        return Some(allowed.iter().any(|a| a == first));
    }
    let value = either(tokens, allowed)?;
    let (last, rest) = tokens.split_first()?;
    *tokens = rest;
    (*last == ")").then_some(value)
}

pub fn violations(packages: &[Package], rules: &Rules) -> Violations {
    let mut found = Violations::new();
    for package in packages {
        let name = format!("{} {}", package.name, package.version);
        match &package.license {
            Some(licence) if satisfied(licence, &rules.licences) => {}
            Some(licence) => found.push(format!("{name} has licence {licence}, which deny.toml does not allow")),
            None => found.push(format!("{name} states no licence")),
        }
        if rules.banned.contains(&package.name) {
            found.push(format!("{name} is banned in deny.toml"));
        }
        if package.source.as_deref().is_some_and(|source| source != CRATES_IO) {
            found.push(format!("{name} does not come from crates.io"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules::parse("[licenses]\nallow = ['MIT', 'Zlib']\n[bans]\ndeny = [{ crate = 'bincode' }]\n").unwrap()
    }

    fn package(name: &str, licence: &str) -> Package {
        Package { license: Some(licence.into()), ..crate::metadata::sample(name, &[]) }
    }

    #[test]
    fn holds() {
        let text = std::fs::read_to_string(crate::tree::root().join("deny.toml")).unwrap();
        crate::none(violations(&crate::metadata::everything().unwrap().packages, &Rules::parse(&text).unwrap()));
    }

    #[test]
    fn reads_expressions() {
        let allowed = rules().licences;
        for good in ["MIT", "GPL-2.0 OR MIT", "MIT/Apache-2.0", "(GPL-2.0 OR MIT) AND Zlib", "MIT AND Zlib OR GPL-2.0"]
        {
            assert!(satisfied(good, &allowed), "{good}");
        }
        for bad in ["GPL-2.0", "MIT AND GPL-2.0", "", "(MIT", "MIT Zlib", "MIT OR", "(GPL-2.0 OR Apache-2.0) AND MIT"] {
            assert!(!satisfied(bad, &allowed), "{bad}");
        }
    }

    #[test]
    fn sees_a_licence_that_is_not_allowed() {
        crate::one(violations(&[package("a", "GPL-3.0")], &rules()), "GPL-3.0");
    }

    #[test]
    fn sees_a_crate_without_licence() {
        crate::one(violations(&[crate::metadata::sample("a", &[])], &rules()), "no licence");
    }

    #[test]
    fn sees_a_banned_crate() {
        crate::one(violations(&[package("bincode", "MIT")], &rules()), "banned");
    }

    #[test]
    fn sees_another_source() {
        let bad = Package { source: Some("git+https://example.org/a".into()), ..package("a", "MIT") };
        crate::one(violations(&[bad], &rules()), "crates.io");
    }
}
