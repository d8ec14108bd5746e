//! A file is about one idea, so it is not long.

use crate::Violations;
use crate::tree::File;

const LINES_MAX: usize = 700;

pub fn violations(files: &[File]) -> Violations {
    let sources = files.iter().filter(|f| f.path.ends_with(".rs"));
    let counted = sources.map(|f| (&f.path, f.text.lines().count()));
    let long = counted.filter(|(_, lines)| *lines > LINES_MAX);
    long.map(|(path, lines)| format!("{path} has {lines} lines, more than {LINES_MAX}: split it by ideas")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds() {
        crate::none(violations(&crate::tree::files().unwrap()));
    }

    #[test]
    fn sees_a_long_file() {
        crate::one(violations(&[crate::tree::sample("a.rs", &"\n".repeat(LINES_MAX + 1))]), "split it");
    }
}
