//! Formation: what each first map keeps, and what is refused.

use crate::common::*;
use proptest::prelude::*;
use weft_placement::{BUCKETS_PER_CORE_MIN, Refusal, ZONES_PER_BUCKET_MIN, form};
use weft_wire::{Epoch, Incarnation, MapVersion, NodeId};

#[test]
fn six_nodes_of_one_drive() {
    let map = form(&uniform("4+2", 6, 1, 1)).unwrap();
    check(&map);
    assert_eq!(map.version, MapVersion(1));
    assert_eq!(map.buckets.len(), 32);
    assert!(shards(&map).values().all(|count| *count == 32));
    assert_eq!(spread(led(&map).into_values()), (5, 6));
    assert_eq!(map.managers, (1..=5).map(NodeId).collect::<Vec<_>>());
    assert!(map.buckets.iter().all(|bucket| bucket.epoch == Epoch(1) && bucket.incarnation == Incarnation(1)));
    let journal = map.buckets.iter().flat_map(|bucket| &bucket.ensembles[0].drives);
    let mut counts = std::collections::BTreeMap::new();
    journal.for_each(|drive| *counts.entry(*drive).or_insert(0u64) += 1);
    assert_eq!(spread(counts.into_values()), (21, 22));
}

#[test]
fn small_drives_get_fewer_buckets() {
    let map = form(&request("4+2", (0..6).map(|number| node(number, 2, &[250])).collect())).unwrap();
    check(&map);
    assert_eq!(map.buckets.len(), 8, "250 zones hold 15 buckets of 16 zones; 8 is the power of two below");
}

#[test]
fn leaders_own_a_drive_of_their_bucket() {
    for request in [uniform("4+2", 6, 1, 1), uniform("6+2", 20, 2, 2), uniform("16+4", 40, 1, 3)] {
        let map = form(&request).unwrap();
        check(&map);
        let (low, high) = spread(led(&map).into_values());
        assert!(high - low <= 1 && low >= BUCKETS_PER_CORE_MIN, "{low}..{high}");
        for bucket in &map.buckets {
            let own = bucket.ensembles[0].drives.iter().find(|drive| map.drive_core(**drive) == Some(bucket.leader));
            assert!(own.is_some(), "the leader's drive is in the journal's ensemble");
        }
    }
}

#[test]
fn racks_are_domains() {
    let nodes = (0..50).map(|number| {
        let mut node = node(number, 1, &[2048, 2048]);
        node.domain = Some(format!("rack{}", number / 5));
        node
    });
    let map = form(&request("6+2", nodes.collect())).unwrap();
    check(&map);
    let (low, high) = spread(shards(&map).into_values());
    assert!(high - low <= 1, "{low}..{high}");
}

#[test]
fn pairs_of_many_nodes_are_balanced() {
    let mut request = uniform("8+2", 60, 1, 1);
    request.bucket_bits = Some(11);
    for node in &mut request.nodes {
        node.drives[0].zones = 32_768;
        node.drives[0].capacity_bytes *= 16;
    }
    let map = form(&request).unwrap();
    let pairs = pairs(&map);
    let mean = pairs.values().sum::<u64>() as f64 / pairs.len() as f64;
    let (low, high) = spread(pairs.into_values());
    assert!(
        low as f64 >= mean * 0.9 && high as f64 <= mean * 1.1,
        "pairs share {low}..{high} buckets, {mean} on average"
    );
}

#[test]
fn the_same_request_gives_the_same_map() {
    let request = uniform("5+2", 9, 2, 2);
    assert_eq!(form(&request).unwrap(), form(&request).unwrap());
}

#[test]
fn refusals_show_the_arithmetic() {
    let says = |request: &_, part: &str| {
        let text = form(request).unwrap_err().to_string();
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    };
    says(&uniform("4+2", 5, 1, 1), "max(4+2, 2*2+1) = 6 failure domains; the 5 nodes given are in 5");
    says(&uniform("3+4", 8, 1, 1), "max(3+4, 2*4+1) = 9 failure domains");
    says(&uniform("2+2", 8, 1, 1), "D = 2 is outside 3..16");
    says(&uniform("17+2", 30, 1, 1), "D = 17 is outside 3..16");
    says(&uniform("4+3", 8, 1, 1), "P = 3 is neither 2 nor 4");
    let mut bits = uniform("4+2", 6, 1, 1);
    bits.bucket_bits = Some(8);
    says(&bits, "2048 zones for 256 of the 256 buckets = 8 each, fewer than 16");
    bits.bucket_bits = Some(0);
    says(&bits, "0 bits of buckets are outside 1..16");
    let tiny = request("4+2", (0..6).map(|number| node(number, 1, &[20])).collect());
    says(&tiny, "20 zones for 2 of the 2 buckets = 10 each");
    let mut diskless = uniform("4+2", 6, 1, 1);
    diskless.nodes[3].drives.clear();
    says(&diskless, "needs drives in 6 failure domains (D+P); only 5 have any");
}

#[test]
fn nonsense_is_refused() {
    let broken = |change: fn(&mut weft_placement::FormRequest)| {
        let mut request = uniform("4+2", 6, 2, 1);
        change(&mut request);
        form(&request).unwrap_err()
    };
    assert_eq!(broken(|request| request.nodes[1].name = "n0".into()), Refusal::NameTwice("n0".into()));
    assert_eq!(broken(|request| request.nodes[1].name.clear()), Refusal::NameEmpty);
    assert_eq!(broken(|request| request.name.clear()), Refusal::NameEmpty);
    assert_eq!(broken(|request| request.nodes[2].cores.clear()), Refusal::NoCores("n2".into()));
    assert!(matches!(
        broken(|request| request.nodes[2].cores[0] = request.nodes[1].cores[0]),
        Refusal::AddressTwice(_)
    ));
    assert!(matches!(broken(|request| request.nodes[2].control = request.nodes[1].control), Refusal::AddressTwice(_)));
    assert!(matches!(
        broken(|request| request.nodes[2].drives[0] = request.nodes[1].drives[0]),
        Refusal::DriveTwice(_)
    ));
    assert!(matches!(
        broken(|request| request.nodes[2].drives[0].core = 2),
        Refusal::DriveCore { core: 2, cores: 2, .. }
    ));
    assert!(matches!(broken(|request| request.nodes[2].drives[0].zones *= 2), Refusal::DriveSize { .. }));
    assert!(matches!(broken(|request| request.nodes[2].drives[0].zones = 0), Refusal::DriveSize { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any cluster that is formed keeps the rules, and its drives are filled equally.
    #[test]
    fn formed_maps_keep_the_rules(
        data in 3u8..=16,
        parity in prop_oneof![Just(2u8), Just(4u8)],
        racks in proptest::option::of(1usize..4),
        more in 0usize..6,
        cores in 1usize..4,
        sizes in proptest::collection::vec(proptest::collection::vec(prop_oneof![4 => Just(8192u32), 1 => 4096u32..16384], 1..3), 32),
    ) {
        let domains = usize::from(data + parity).max(2 * usize::from(parity) + 1) + more;
        let nodes = (0..domains * racks.unwrap_or(1)).map(|number| {
            let mut node = node(number, cores, &sizes[number % sizes.len()]);
            node.domain = racks.map(|racks| format!("rack{}", number / racks));
            node
        });
        let map = form(&request(&format!("{data}+{parity}"), nodes.collect())).unwrap();
        check(&map);
        let (low, high) = spread(led(&map).into_values());
        prop_assert!(high - low <= 1);
        // Fill per byte: no drive is more than one shard from what its domain's neighbours hold.
        let shards = shards(&map);
        for (id, drive) in &map.drives {
            prop_assert!(shards[id] * u64::from(ZONES_PER_BUCKET_MIN) <= u64::from(drive.zones));
            for (other_id, other) in &map.drives {
                if domain(&map, *id) == domain(&map, *other_id) && drive.zones == other.zones {
                    prop_assert!(shards[id].abs_diff(shards[other_id]) <= 1);
                }
            }
        }
    }
}
