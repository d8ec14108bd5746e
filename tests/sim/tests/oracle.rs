//! What the oracle takes for explained, and what it doesn't, where seeds meet it too seldom.

use weft_reactor::Instant;
use weft_sim::history::{Answer, Call, Op, Outcome, Value, value};
use weft_sim::oracle::{Shape, judge};
use weft_wire::InodeId;

const SHAPE: Shape = Shape { slab_cells: 8, names: 1 };
const FILE: InodeId = InodeId(7);

/// One after the other; `None` is never answered.
fn history(calls: Vec<(Call, Option<Outcome>)>) -> Vec<Op> {
    let op = |(at, (call, outcome)): (u64, (Call, Option<Outcome>))| Op {
        client: 0,
        call,
        invoked: 2 * at,
        invoked_at: Instant(0),
        answer: outcome.map(|outcome| Answer { responded: 2 * at + 1, responded_at: Instant(0), outcome }),
    };
    (0..).zip(calls).map(op).collect()
}

/// Whether this may be in the cells 9 to 14 of a file that ended at 12 when they were written, and was made longer since.
fn may_be_left(written: Option<Outcome>, found: [Value; 5]) -> bool {
    let truncate = |size| Call::Truncate { inode: FILE, size };
    let ops = history(vec![
        (truncate(12), Some(Outcome::Done)),
        (Call::Write { inode: FILE, at: 9, cells: 5 }, written),
        (truncate(16), Some(Outcome::Done)),
        (Call::Read { inode: FILE, at: 9, cells: 5 }, Some(Outcome::Data(found.to_vec()))),
    ]);
    let findings = judge(&ops, InodeId(1), SHAPE);
    assert_eq!(findings.undecided, 0);
    findings.violations.is_empty()
}

#[test]
fn a_dead_client_leaves_of_a_write_all_or_nothing_or_what_is_in_front_of_the_files_end() {
    let [a, b, c, d, e] = [0, 1, 2, 3, 4].map(|cell| value(1, cell));
    for left in [[a, b, c, d, e], [0; 5], [a, b, c, 0, 0]] {
        assert!(may_be_left(None, left), "{left:?}");
    }
    for torn in [[a, b, 0, 0, 0], [0, 0, 0, d, e], [a, b, c, d, 0], [a, 0, c, 0, 0]] {
        assert!(!may_be_left(None, torn), "{torn:?}");
    }
    assert!(may_be_left(Some(Outcome::Done), [a, b, c, d, e]));
    assert!(!may_be_left(Some(Outcome::Done), [a, b, c, 0, 0]), "what was answered is there");
}
