//! Each link to a file leads to one.

use crate::Violations;
use crate::tree::File;
use std::path::Path;

/// Targets of `](target)` and `src="target"`, with their line numbers.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        for (open, close) in [("](", ')'), ("src=\"", '"'), ("href=\"", '"')] {
            for piece in line.split(open).skip(1) {
                if let Some((target, _)) = piece.split_once(close) {
                    found.push((index + 1, target.to_string()));
                }
            }
        }
    }
    found
}

/// What `[text](#anchor)` names: headings, as GitHub derives anchors from them.
fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| -> String {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-' || *c == '_');
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// `read` gives the text of a file by its path relative to the root, or none if there is no such file.
pub fn violations(files: &[File], read: impl Fn(&str) -> Option<String>) -> Violations {
    let mut found = Violations::new();
    for file in files.iter().filter(|f| f.path.ends_with(".md")) {
        for (line, link) in links(&file.text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (target, anchor) = match link.split_once('#') {
                Some((target, anchor)) => (target, Some(anchor)),
                None => (link.as_str(), None),
            };
            let text = if target.is_empty() {
                Some(file.text.clone())
            } else {
                let directory = Path::new(&file.path).parent().unwrap_or(Path::new(""));
                read(&directory.join(target).to_string_lossy())
            };
            let place = format!("{}:{line}: {link}", file.path);
            match (text, anchor) {
                (None, _) => found.push(format!("{place} leads nowhere")),
                (Some(text), Some(anchor)) if !anchors(&text).iter().any(|a| a == anchor) => {
                    found.push(format!("{place} names a heading that is not there"));
                }
                _ => {}
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
        let root = crate::tree::root();
        let read = |path: &str| {
            let path = root.join(path);
            if path.is_dir() {
                Some(String::new())
            } else {
                Some(String::from_utf8_lossy(&std::fs::read(path).ok()?).into())
            }
        };
        crate::none(violations(&crate::tree::files().unwrap(), read));
    }

    #[test]
    fn sees_a_link_that_leads_nowhere() {
        let bad = sample("docs/a.md", "see [b](b.md) and [c](../c.md)\n");
        let read = |path: &str| (path == "docs/../c.md").then(String::new);
        crate::one(violations(&[bad], read), "docs/a.md:1: b.md leads nowhere");
    }

    #[test]
    fn sees_a_missing_heading() {
        let bad = sample("a.md", "# On Weft\nsee [x](#on-weft) and [y](#off-weft)\n");
        crate::one(violations(&[bad], |_| None), "#off-weft names a heading");
    }
}
