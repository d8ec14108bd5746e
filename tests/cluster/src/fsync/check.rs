//! Compares what is there with what was acknowledged.

use super::plan::{Files, Operation, Plan};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The last acknowledged operation of each thread. Numbers must come in order, without gaps.
pub fn read_log(text: &str) -> Result<BTreeMap<u64, u64>> {
    let mut last = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let (thread, number): (u64, u64) = match words.as_slice() {
            ["ack", thread, number] => (thread.parse()?, number.parse()?),
            _ => bail!("this line of the log is no acknowledgement: {line:?}"),
        };
        let before = last.insert(thread, number).unwrap_or(0);
        if number != before + 1 {
            bail!("thread {thread} acknowledged {number} after {before}");
        }
    }
    Ok(last)
}

/// What is wrong in one thread's directory, given that its operations up to `acknowledged` must stand.
pub fn violations(directory: &Path, seed: u64, thread: u64, acknowledged: u64) -> Result<Vec<String>> {
    let mut plan = Plan::new(seed, thread);
    for _ in 0..acknowledged {
        plan.step();
    }
    let before = plan.files.clone();
    let (_, under_way) = plan.step();
    Ok(compare(&read_files(directory)?, &before, &plan.files, &under_way))
}

fn read_files(directory: &Path) -> Result<Files> {
    let mut files = Files::new();
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(files),
        Err(error) => return Err(error).with_context(|| format!("can't list {}", directory.display())),
    };
    for entry in entries {
        let path = entry?.path();
        let content = std::fs::read(&path).with_context(|| format!("can't read {}", path.display()))?;
        files.insert(path.file_name().unwrap_or_default().to_string_lossy().into_owned(), content);
    }
    Ok(files)
}

fn compare(found: &Files, before: &Files, after: &Files, under_way: &Operation) -> Vec<String> {
    let concerned: Vec<&String> = match under_way {
        Operation::Write { file, .. } | Operation::Truncate { file, .. } | Operation::Remove { file } => vec![file],
        Operation::Rename { from, to } => vec![from, to],
    };
    let mut wrong = Vec::new();
    let names: BTreeSet<&String> = found.keys().chain(before.keys()).collect();
    for name in names.into_iter().filter(|name| !concerned.contains(name)) {
        wrong.extend(difference(name, found.get(name), before.get(name)));
    }
    // All files of an operation show it, or none does.
    let all = |state: &Files| concerned.iter().all(|name| found.get(*name) == state.get(*name));
    if !all(before) && !all(after) && !partly_written(found, before, after, under_way) {
        let differences = concerned.iter().filter_map(|name| difference(name, found.get(*name), before.get(*name)));
        wrong.extend(
            differences.map(|d| format!("{d}; the operation under way, {}, does not explain it", short(under_way))),
        );
    }
    wrong
}

/// Whether a write that was under way explains the file: each of its bytes is old or new.
fn partly_written(found: &Files, before: &Files, after: &Files, under_way: &Operation) -> bool {
    let Operation::Write { file, .. } = under_way else { return false };
    let (Some(found), Some(after)) = (found.get(file), after.get(file)) else { return false };
    let empty = Vec::new();
    let before = before.get(file).unwrap_or(&empty);
    let byte = |content: &[u8], index: usize| content.get(index).copied().unwrap_or(0);
    (before.len()..=after.len()).contains(&found.len())
        && found.iter().enumerate().all(|(index, b)| *b == byte(before, index) || *b == byte(after, index))
}

fn difference(name: &str, found: Option<&Vec<u8>>, expected: Option<&Vec<u8>>) -> Option<String> {
    match (found, expected) {
        (None, None) => None,
        (None, Some(expected)) => Some(format!("{name} is lost; it had {} bytes", expected.len())),
        (Some(found), None) => Some(format!("{name} should not be there; it has {} bytes", found.len())),
        (Some(found), Some(expected)) => {
            let wrong = found.iter().zip(expected).filter(|(f, e)| f != e).count();
            let first = found.iter().zip(expected).position(|(f, e)| f != e);
            match first {
                Some(at) => Some(format!("{name} is wrong in {wrong} bytes, the first at offset {at}")),
                None if found.len() == expected.len() => None,
                None => Some(format!("{name} has {} bytes instead of {}", found.len(), expected.len())),
            }
        }
    }
}

fn short(operation: &Operation) -> String {
    match operation {
        Operation::Write { file, offset, data } => format!("write of {} bytes to {file} at {offset}", data.len()),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsync::write;
    use std::path::PathBuf;

    const SEED: u64 = 11;
    const COUNT: u64 = 60;

    struct Run(PathBuf);

    impl Run {
        fn new(name: &str) -> Run {
            let root = std::env::temp_dir().join(format!("weft-fsync-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&root).unwrap();
            let mut log = String::new();
            let acknowledge = |number| {
                log.push_str(&write::line(0, number));
                Ok(())
            };
            write::run(&root, SEED, 0, COUNT, acknowledge).unwrap();
            assert_eq!(read_log(&log).unwrap(), BTreeMap::from([(0, COUNT)]));
            Run(root)
        }

        fn check(&self, acknowledged: u64) -> Vec<String> {
            violations(&write::directory(&self.0, 0), SEED, 0, acknowledged).unwrap()
        }

        /// A file that the operation under way does not concern.
        fn victim(&self) -> PathBuf {
            let mut plan = Plan::new(SEED, 0);
            (0..COUNT).for_each(|_| drop(plan.step()));
            let mut files = plan.files.clone();
            files.retain(|_, content| !content.is_empty());
            let under_way = format!("{:?}", plan.step().1);
            let name = files.keys().find(|name| !under_way.contains(&format!("{name:?}"))).unwrap();
            write::directory(&self.0, 0).join(name)
        }
    }

    impl Drop for Run {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn finds_nothing_wrong_where_nothing_is() {
        assert_eq!(Run::new("good").check(COUNT), Vec::<String>::new());
    }

    #[test]
    fn takes_an_operation_that_was_done_and_not_acknowledged() {
        assert_eq!(Run::new("last").check(COUNT - 1), Vec::<String>::new());
    }

    #[test]
    fn sees_a_lost_operation() {
        assert!(!Run::new("lost").check(COUNT + 2).is_empty());
    }

    #[test]
    fn sees_a_flipped_byte() {
        let run = Run::new("flip");
        let mut content = std::fs::read(run.victim()).unwrap();
        content[0] ^= 1;
        std::fs::write(run.victim(), content).unwrap();
        let wrong = run.check(COUNT);
        assert!(wrong.len() == 1 && wrong[0].contains("wrong in 1 bytes, the first at offset 0"), "{wrong:?}");
    }

    #[test]
    fn sees_a_lost_file_a_short_one_and_one_too_many() {
        let run = Run::new("files");
        let length = std::fs::metadata(run.victim()).unwrap().len();
        std::fs::OpenOptions::new().write(true).open(run.victim()).unwrap().set_len(length - 1).unwrap();
        assert!(run.check(COUNT).concat().contains("bytes instead of"));
        std::fs::remove_file(run.victim()).unwrap();
        assert!(run.check(COUNT).concat().contains("is lost"));
        std::fs::write(write::directory(&run.0, 0).join("ghost"), "x").unwrap();
        assert!(run.check(COUNT).concat().contains("ghost should not be there"));
    }

    #[test]
    fn takes_half_a_write_and_no_other_half() {
        let files = |text: &str| Files::from([("f".to_string(), text.as_bytes().to_vec())]);
        let write = Operation::Write { file: "f".into(), offset: 2, data: b"XYZ".to_vec() };
        for (found, good) in [
            ("abcd", true),
            ("abXYZ", true),
            ("abXd", true),
            ("abcYZ", true),
            ("abXQZ", false),
            ("abc", false),
            ("abXYZ!", false),
        ] {
            assert_eq!(compare(&files(found), &files("abcd"), &files("abXYZ"), &write).is_empty(), good, "{found}");
        }
        let cut = Operation::Truncate { file: "f".into(), bytes: 1 };
        for (found, good) in [("abcd", true), ("a", true), ("ab", false)] {
            assert_eq!(compare(&files(found), &files("abcd"), &files("a"), &cut).is_empty(), good, "{found}");
        }
    }

    #[test]
    fn a_rename_is_seen_whole_or_not_at_all() {
        let files = |names: &[&str]| names.iter().map(|n| (n.to_string(), vec![1])).collect::<Files>();
        let rename = Operation::Rename { from: "a".into(), to: "b".into() };
        for (found, good) in [(&["a"][..], true), (&["b"], true), (&["a", "b"], false), (&[], false)] {
            assert_eq!(compare(&files(found), &files(&["a"]), &files(&["b"]), &rename).is_empty(), good, "{found:?}");
        }
    }

    #[test]
    fn refuses_a_log_with_gaps() {
        assert!(read_log("ack 0 1\nack 0 3\n").is_err());
        assert!(read_log("ack 0 1\nnonsense\n").is_err());
    }
}
