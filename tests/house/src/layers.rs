//! A crate uses what stands above it, never what stands below.

use crate::Violations;
use crate::metadata::Package;

/// From the ground up. The first group is shared by appliance and clients.
const SHARED: [&str; 7] =
    ["weft-wire", "weft-erasure", "weft-placement", "weft-reactor", "weft-link", "weft-transport", "weft-client"];
const APPLIANCE: [&str; 6] = ["weft-drive", "weft-journal", "weft-bucket", "weft-namespace", "weft-manager", "weftd"];
const FACES: [&str; 2] = ["weft-cli", "weft-fuse"];
/// They test and build the others and may use all of them; nobody uses them but they each other.
const TOOLS: [&str; 7] =
    ["weft-sim", "weft-models", "weft-cluster-tests", "weft-posix-tests", "weft-bench", "weft-house", "xtask"];

/// Needs of the faces in the appliance: the CLI prints what is on a drive.
const EXCEPTIONS: [(&str, &str); 1] = [("weft-cli", "weft-drive")];

fn floor(name: &str) -> Option<usize> {
    let all = SHARED.iter().chain(&APPLIANCE).chain(&FACES);
    all.clone().position(|n| *n == name).or_else(|| TOOLS.contains(&name).then(|| all.count()))
}

pub fn violations(members: &[Package]) -> Violations {
    let mut found = Violations::new();
    for package in members {
        let Some(own) = floor(&package.name) else {
            found.push(format!("{} has no place in the order of crates: give it one here", package.name));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|d| d.path.is_some() && d.name != package.name) {
            let pair = (package.name.as_str(), dependency.name.as_str());
            let across = FACES.contains(&pair.0) && APPLIANCE.contains(&pair.1) && !EXCEPTIONS.contains(&pair);
            let both_tools = TOOLS.contains(&pair.0) && TOOLS.contains(&pair.1);
            match floor(pair.1) {
                _ if across => found.push(format!("{} is a client's and uses {} of the appliance", pair.0, pair.1)),
                Some(other) if other < own || both_tools => {}
                _ => found.push(format!("{} uses {}, which does not stand above it", pair.0, pair.1)),
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::{members, sample};

    #[test]
    fn holds() {
        crate::none(violations(&members().unwrap().packages));
    }

    #[test]
    fn sees_a_crate_that_uses_one_below() {
        crate::one(violations(&[sample("weft-journal", &["weft-bucket", "weft-wire"])]), "does not stand above");
    }

    #[test]
    fn sees_a_product_crate_that_uses_a_tool() {
        crate::one(violations(&[sample("weftd", &["weft-sim"])]), "does not stand above");
    }

    #[test]
    fn sees_a_client_that_uses_the_appliance() {
        crate::one(violations(&[sample("weft-fuse", &["weft-journal"])]), "of the appliance");
    }

    #[test]
    fn sees_a_crate_without_a_place() {
        crate::one(violations(&[sample("weft-novel", &[])]), "no place");
    }
}
