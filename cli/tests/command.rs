//! The program itself against nodes that only talk.

mod fake;

use fake::{Fakes, babbling};
use serde_json::Value;

#[track_caller]
fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

#[test]
fn a_cluster_is_formed_from_nothing_to_a_filesystem() {
    let fakes = Fakes::start("whole", 6);
    let created = fakes.create("weft1");
    assert_eq!(created.code, 0, "{created:?}");
    assert!(created.out.contains("cluster weft1 serves: 6 nodes, protection 4+2"), "{created:?}");
    assert!(created.complaints.contains("node6: drives formatted"), "{created:?}");

    let again = fakes.create("weft1");
    assert_eq!(again.code, 0, "{again:?}");
    assert!(again.complaints.contains("stands already"), "{again:?}");
    let other = fakes.create("weft2");
    assert_eq!(other.code, 1);
    assert!(other.complaints.contains("it is named weft1, not weft2"), "{other:?}");

    let fs = fakes.weft(&["fs", "create", "home", "--size", "10GiB", "--json"]);
    assert_eq!((fs.code, json(&fs.out)["created"].as_bool()), (0, Some(true)), "{fs:?}");
    let again = fakes.weft(&["fs", "create", "home"]);
    assert_eq!(again.code, 0);
    assert!(again.out.contains("is there already"), "{again:?}");
    let listed = fakes.weft(&["fs", "list", "--json"]);
    assert_eq!(json(&listed.out)[0]["size_bytes"], 10u64 << 30);

    let status = fakes.weft(&["status", "--json"]);
    assert_eq!(status.code, 0, "{status:?}");
    let status = json(&status.out);
    assert_eq!((&status["health"], &status["buckets"]["total"]), (&json("\"healthy\""), &status["buckets"]["serving"]));
    assert_eq!(status["nodes"].as_array().map(Vec::len), Some(6));
    assert_eq!(json(&fakes.weft(&["drive", "list", "--json"]).out).as_array().map(Vec::len), Some(6));

    let kept = fakes.weft(&["fs", "delete", "home"]);
    assert_eq!(kept.code, 1);
    assert!(kept.complaints.contains("--yes"), "{kept:?}");
    assert_eq!(fakes.weft(&["fs", "delete", "home", "--yes"]).code, 0);
    let gone = fakes.weft(&["fs", "delete", "home", "--yes"]);
    assert!(gone.complaints.contains("there is no filesystem home"), "{gone:?}");
}

#[test]
fn nodes_come_and_go_with_their_arithmetic() {
    let fakes = Fakes::start("grow", 7);
    assert_eq!(fakes.create_of("weft1", 6).code, 0);
    let seventh = fakes.nodes[6].socket.display().to_string();
    let shown = fakes.weft(&["node", "add", &seventh, "--dry-run"]);
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(shown.complaints.contains("27 of 192 shards move to it"), "{shown:?}");
    assert!(shown.complaints.contains("capacity 17.5 GiB -> 20.5 GiB"), "{shown:?}");
    assert!(shown.out.contains("nothing was changed"), "{shown:?}");

    // With six nodes none can go.
    let no = fakes.weft(&["node", "drain", "node3"]);
    assert_eq!(no.code, 1);
    assert!(no.complaints.contains("only 5 failure domains"), "{no:?}");
    let no = fakes.weft(&["cluster", "hot-spare", "1"]);
    assert!(no.complaints.contains("at most 0 nodes can be spared"), "{no:?}");

    let added = fakes.weft(&["node", "add", &seventh, "--json"]);
    assert_eq!(added.code, 0, "{added:?}");
    assert_eq!(json(&added.out)["node"], 7);
    let again = fakes.weft(&["node", "add", &seventh]);
    assert!(again.out.contains("node7 is node7 of weft1 already"), "{again:?}");
    let spare = fakes.weft(&["cluster", "hot-spare", "1"]);
    assert!(spare.out.contains("the capacity of 1 node is kept free"), "{spare:?}");

    let kept = fakes.weft(&["node", "remove", "node7"]);
    assert!(kept.complaints.contains("drain it first"), "{kept:?}");
    let drained = fakes.weft(&["node", "drain", "node3"]);
    assert_eq!(drained.code, 0, "{drained:?}");
    assert!(drained.complaints.contains("node3 leads 5 buckets, is a member of 32 buckets"), "{drained:?}");
    let status = fakes.weft(&["status"]);
    assert!(status.out.contains("node3 is being drained"), "{status:?}");
    let kept = fakes.weft(&["node", "remove", "node3"]);
    assert_eq!(kept.code, 1);
    assert!(kept.complaints.contains("node3 can't be removed yet: it leads 5 buckets"), "{kept:?}");
    let stays = fakes.weft(&["node", "drain", "node3", "--cancel"]);
    assert!(stays.out.contains("node3 stays"), "{stays:?}");
    let unknown = fakes.weft(&["node", "drain", "node9"]);
    assert!(unknown.complaints.contains("has no node node9; it has node1, node2"), "{unknown:?}");

    let added = fakes.weft(&["drive", "add", "node1", "node1.drive"]);
    assert_eq!(added.code, 0, "{added:?}");
    let unknown = fakes.weft(&["drive", "add", "node1", "other.drive"]);
    assert!(unknown.complaints.contains("name it in its configuration"), "{unknown:?}");
    let last = fakes.weft(&["drive", "remove", "drive4"]);
    assert!(last.complaints.contains("the only drive of node4"), "{last:?}");
    let gone = fakes.weft(&["drive", "drain", "drive99"]);
    assert!(gone.complaints.contains("has no drive99"), "{gone:?}");
}

#[test]
fn an_interrupted_formation_goes_on() {
    let fakes = Fakes::start("resume", 6);
    fakes.nodes[4].refuse_forms(true);
    let stopped = fakes.create("weft1");
    assert_eq!(stopped.code, 1);
    assert!(stopped.complaints.contains("1 of 6 nodes are not in the cluster yet"), "{stopped:?}");
    assert!(fakes.plan("weft1").exists());

    fakes.nodes[4].refuse_forms(false);
    let done = fakes.create("weft1");
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.complaints.contains("going on with the formation"), "{done:?}");
    assert!(!fakes.plan("weft1").exists());
    assert_eq!(fakes.weft(&["status"]).code, 0);
}

#[test]
fn a_silent_node_makes_the_cluster_unhealthy() {
    let mut fakes = Fakes::start("silent", 6);
    assert_eq!(fakes.create("weft1").code, 0);
    fakes.nodes[2].stop();
    let status = fakes.weft(&["status"]);
    assert_eq!(status.code, 1);
    assert!(status.out.contains("node3 does not answer"), "{status:?}");
    assert!(status.out.contains("UNHEALTHY"), "{status:?}");
}

#[test]
fn without_the_token_nothing_can_be_told() {
    let fakes = Fakes::start("token", 6);
    assert_eq!(fakes.create("weft1").code, 0);
    let control = fakes.nodes[0].control.to_string();
    let status = fakes.weft(&["status", "--control", &control, "--token-file", "/nonexistent/token"]);
    assert_eq!(status.code, 2, "{status:?}");
    assert!(status.complaints.contains("can't read the token file /nonexistent/token"), "{status:?}");
    let wrong = fakes.directory.join("wrong.token");
    std::fs::write(&wrong, "wrong\n").unwrap();
    let status = fakes.weft(&["status", "--control", &control, "--token-file", &wrong.display().to_string()]);
    assert_eq!(status.code, 2, "{status:?}");
    assert!(status.complaints.contains("token"), "{status:?}");
    let right = fakes.weft(&["status", "--control", &control]);
    assert_eq!(right.code, 0, "{right:?}");
}

#[test]
fn events_of_all_nodes_are_one_list() {
    let fakes = Fakes::start("events", 6);
    assert_eq!(fakes.create("weft1").code, 0);
    let events = fakes.weft(&["events", "--json"]);
    let events = json(&events.out);
    let times: Vec<i64> = events.as_array().unwrap().iter().map(|event| event["time_ns"].as_i64().unwrap()).collect();
    assert_eq!(times.len(), 12);
    assert!(times.is_sorted(), "{times:?}");
    assert!(fakes.weft(&["events"]).out.starts_with("1970-01-01T00:00:01.000Z  info   node1: woke"));
}

#[test]
fn passes_of_all_nodes_are_one_result() {
    let fakes = Fakes::start("passes", 6);
    assert_eq!(fakes.create("weft1").code, 0);
    let before = fakes.weft(&["scrub", "status"]);
    assert!(before.code == 0 && before.out.contains("never ran"), "{before:?}");
    let found = fakes.weft(&["scrub", "start", "--wait", "--pace", "100", "--json"]);
    assert_eq!((found.code, &json(&found.out)["verdict"]), (1, &json("\"problems\"")), "{found:?}");
    let status = fakes.weft(&["scrub", "status"]);
    assert!(status.out.contains("node2: bucket 3: stripe7 shard 2 on drive4"), "{status:?}");
    let checked = fakes.weft(&["fs", "check", "--json"]);
    assert_eq!((checked.code, &json(&checked.out)["verdict"]), (0, &json("\"clean\"")), "{checked:?}");
    assert_eq!(fakes.weft(&["scrub", "stop"]).code, 0);
    assert_eq!(fakes.weft(&["scrub", "start", "--pace", "0"]).code, 2);
}

#[test]
fn away_and_unclaimed_nodes_are_told_apart() {
    let fakes = Fakes::start("alone", 1);
    let unclaimed = fakes.weft(&["status"]);
    assert_eq!(unclaimed.code, 2);
    assert!(unclaimed.out.contains("make one with `weft cluster create`"), "{unclaimed:?}");
    assert!(fakes.weft(&["fs", "list"]).complaints.contains("is in no cluster"));
    let nobody = fakes.weft(&["--socket", "/nonexistent/control.sock", "status"]);
    assert_eq!(nobody.code, 2);
    assert!(nobody.complaints.contains("there is no control socket /nonexistent/control.sock"), "{nobody:?}");
    let few = fakes.create("weft1");
    assert!(few.complaints.contains("max(4+2, 2*2+1) = 6 failure domains"), "{few:?}");
}

#[test]
fn what_no_node_would_say_is_an_error() {
    let fakes = Fakes::start("babble", 1);
    let babbler = babbling(&fakes, "this is no JSON\n");
    let status = fakes.weft(&["--socket", &babbler.socket.display().to_string(), "status"]);
    assert_eq!(status.code, 2);
    assert!(status.complaints.contains("is weft as new as weftd?"), "{status:?}");
}

#[test]
fn drives_are_looked_at_without_a_node() {
    let fakes = Fakes::start("inspect", 0);
    let file = fakes.directory.join("empty.drive");
    std::fs::write(&file, vec![0; 1 << 20]).unwrap();
    let path = file.display().to_string();
    let seen = fakes.weft(&["drive", "inspect", &path, "--json"]);
    assert_eq!(seen.code, 1);
    assert!(json(&seen.out)["problem"].is_string(), "{seen:?}");
    assert!(fakes.weft(&["drive", "inspect", &path]).out.contains("PROBLEM"));
    let missing = fakes.weft(&["drive", "inspect", "/nonexistent/drive"]);
    assert!(missing.complaints.contains("can't look at /nonexistent/drive"), "{missing:?}");
}

#[test]
fn shells_and_manuals_know_every_verb() {
    let fakes = Fakes::start("pages", 0);
    assert!(fakes.weft(&["completion", "bash"]).out.contains("_weft"));
    let directory = fakes.directory.join("man");
    assert_eq!(fakes.weft(&["man", &directory.display().to_string()]).code, 0);
    for page in [
        "weft.1",
        "weft-status.1",
        "weft-cluster-create.1",
        "weft-drive-inspect.1",
        "weft-scrub-start.1",
        "weft-fs-check.1",
    ] {
        assert!(directory.join(page).exists(), "{page}");
    }
}
