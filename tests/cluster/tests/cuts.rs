//! Nodes that are cut off, in one direction or both, from everybody or from one other, while programs write and read: no
//! error, no wrong byte, and all is well when the network is.

use serde_json::Value;
use std::time::{Duration, Instant};
use weft_cluster_tests::layout::Layout;
use weft_cluster_tests::load::{Load, longest};
use weft_cluster_tests::scene::Scene;
use weft_cluster_tests::{cut, health, mount, wait};

const HEALTHY_DEADLINE: Duration = Duration::from_secs(120);
/// Load before the cut, and after it: both are long in terms of single steps.
const BEFORE: Duration = Duration::from_secs(1);
/// How long the cut lasts: longer than a node may be silent.
const CUT: Duration = Duration::from_secs(12);

#[derive(Clone, Copy, Debug)]
enum Cut {
    /// Nothing from or to the node arrives.
    Off(usize),
    /// The node hears everybody, and nobody hears it.
    Mute(usize),
    /// Everybody hears the node, and it hears nobody.
    Deaf(usize),
    /// Two nodes don't hear each other, everybody else hears both.
    Between(usize, usize),
    /// The second doesn't hear the first.
    OneWay(usize, usize),
}

fn plan() -> Vec<Cut> {
    if std::env::var_os("WEFT_LONG").is_none() {
        return vec![Cut::Off(3), Cut::Deaf(1), Cut::Between(2, 5)];
    }
    let each = |make: fn(usize) -> Cut| (1..=6).map(make);
    let pairs = [(1, 2), (2, 5), (3, 1), (6, 4)];
    let between = pairs.into_iter().map(|(a, b)| Cut::Between(a, b));
    let one_way = pairs.into_iter().map(|(a, b)| Cut::OneWay(a, b));
    each(Cut::Off).chain(each(Cut::Mute)).chain(each(Cut::Deaf)).chain(between).chain(one_way).collect()
}

/// What gets lost. Daemons talk from and to their data port; their supervisors' words go to the control port.
fn conditions(scene: &Scene, cut: Cut) -> Vec<String> {
    let ports = |number: usize| {
        let node = scene.cluster.nodes.iter().find(|node| node.number == number).unwrap();
        (node.data.port(), node.control.port())
    };
    let from = |number: usize| format!("udp sport {}", ports(number).0);
    let to = |number: usize| {
        let (data, control) = ports(number);
        format!("udp dport {{ {data}, {control} }}")
    };
    match cut {
        Cut::Off(node) => vec![from(node), to(node)],
        Cut::Mute(node) => vec![from(node)],
        Cut::Deaf(node) => vec![to(node)],
        Cut::Between(a, b) => vec![format!("{} {}", from(a), to(b)), format!("{} {}", from(b), to(a))],
        Cut::OneWay(a, b) => vec![format!("{} {}", from(a), to(b))],
    }
}

/// The line that names a node which another doesn't reach. If one of the two leads the managers, the other is away for all.
fn says_apart(scene: &Scene) -> Option<String> {
    // A status with problems is an error that holds what was printed.
    let printed = scene.cluster.weft(&["status"]).unwrap_or_else(|error| error.to_string());
    let tells = |line: &&str| line.contains("does not reach") || line.contains(" is away");
    printed.lines().find(tells).map(|line| line.trim().to_owned())
}

/// One that gave its buckets away in a round before leads nothing for a minute: if both did, they have nothing to say to each other.
fn leads(status: &Value, number: usize) -> bool {
    health::node(status, &format!("node{number}")).is_some_and(|node| node["leads"] != 0)
}

#[test]
#[ignore = "starts a cluster: `cargo xtask test cluster`"]
fn work_goes_on_whoever_is_cut_off() {
    cut::enter_own_network().unwrap();
    let layout = Layout::new("cuts", 6, "4+2", 512 << 20).unwrap();
    let mut scene = Scene::formed("cuts", layout).unwrap();
    scene.mount().unwrap();
    let mut stalls: Vec<Duration> = Vec::new();
    for (round, kind) in plan().into_iter().enumerate() {
        let load = Load::start(&scene.mountpoint().join(format!("round{round}")));
        std::thread::sleep(BEFORE);
        if let Cut::Between(a, b) = kind {
            health::until(&scene, "one of them leads something", HEALTHY_DEADLINE, |status| {
                leads(status, a) || leads(status, b)
            });
        }
        let began = Instant::now();
        cut::cut(&conditions(&scene, kind)).unwrap();
        if let Cut::Between(..) = kind {
            let told = wait::until("what `weft status` says of two nodes apart", CUT, || Ok(says_apart(&scene)));
            println!("{kind:?}: told after {} ms: {}", began.elapsed().as_millis(), told.unwrap());
        }
        // The rest of the cut: that nothing happens in it is what is seen.
        std::thread::sleep(CUT.saturating_sub(began.elapsed()));
        cut::heal().unwrap();
        std::thread::sleep(BEFORE);
        let steps = load.finish().unwrap_or_else(|error| panic!("{kind:?}: {error}"));
        let stall = longest(&steps, began);
        println!("{kind:?}: longest step {} ms, {} steps", stall.as_millis(), steps.len());
        assert!(stall < CUT, "{kind:?}: someone waited until the network was well again");
        stalls.push(stall);
        wait::until_ok(HEALTHY_DEADLINE, || scene.cluster.weft(&["status"])).unwrap();
    }
    stalls.sort_unstable();
    println!("{} rounds: median {} ms", stalls.len(), stalls.get(stalls.len() / 2).map_or(0, Duration::as_millis));
    mount::unmount(&scene.mountpoint(), false).unwrap();
}
