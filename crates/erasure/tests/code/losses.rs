//! Every loss pattern of every scheme, on the matrix and on data, for every kernel of this machine.

use weft_erasure::Code;

use crate::support::{Random, kernels, schemes};

const SCHEMES: usize = 28;

fn stripe(code: &Code, random: &mut Random, len: usize) -> Vec<Vec<u8>> {
    let mut shards: Vec<Vec<u8>> = (0..code.shards()).map(|_| random.bytes(len)).collect();
    let (data, parity) = shards.split_at_mut(code.data());
    let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
    let mut parity: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
    code.encode(&data, &mut parity);
    shards
}

/// Computes `wanted` without looking at the shards in the mask `lost`, and compares.
fn check(code: &Code, shards: &[Vec<u8>], lost: u32, wanted: &[usize], context: &str) {
    let present: Vec<bool> = (0..shards.len()).map(|shard| lost >> shard & 1 == 0).collect();
    let plan = code.plan(&present, wanted).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(plan.wanted(), wanted);
    assert!(plan.sources().len() <= code.data(), "{context}");
    assert!(plan.sources().iter().all(|&shard| present[shard]), "{context}: reads a lost shard");
    let sources: Vec<&[u8]> = plan.sources().iter().map(|&shard| shards[shard].as_slice()).collect();
    let mut out = vec![vec![0xA5; shards[0].len()]; wanted.len()];
    let mut slices: Vec<&mut [u8]> = out.iter_mut().map(Vec::as_mut_slice).collect();
    plan.apply(&sources, &mut slices);
    for (out, &shard) in out.iter().zip(wanted) {
        assert!(*out == shards[shard], "{context}: shard {shard} is wrong");
    }
}

fn patterns(shards: usize, lost_max: usize) -> impl Iterator<Item = u32> {
    (0u32..1 << shards).filter(move |lost| (1..=lost_max).contains(&(lost.count_ones() as usize)))
}

fn lost_shards(lost: u32) -> Vec<usize> {
    (0..32).filter(|shard| lost >> shard & 1 == 1).collect()
}

#[test]
fn every_loss_of_every_scheme_is_repaired() {
    let mut random = Random(1);
    assert_eq!(schemes().count(), SCHEMES);
    for (data, parity) in schemes() {
        for kernel in kernels() {
            let code = Code::with_kernel(data, parity, kernel).expect("a scheme");
            let shards = stripe(&code, &mut random, 71);
            for lost in patterns(data + parity, parity) {
                let wanted = lost_shards(lost);
                check(&code, &shards, lost, &wanted, &format!("{data}+{parity} {kernel} lost {wanted:?}"));
            }
        }
    }
}

#[test]
fn each_lost_shard_is_repaired_alone_and_in_any_order() {
    let mut random = Random(2);
    for (data, parity) in schemes() {
        let code = Code::new(data, parity).expect("a scheme");
        let shards = stripe(&code, &mut random, 13);
        for lost in patterns(data + parity, parity) {
            let mut wanted = lost_shards(lost);
            wanted.reverse();
            let context = format!("{data}+{parity} lost {wanted:?}");
            check(&code, &shards, lost, &wanted, &context);
            for shard in wanted {
                check(&code, &shards, lost, &[shard], &context);
            }
        }
    }
}

#[test]
fn one_loss_more_is_refused() {
    for (data, parity) in schemes() {
        let code = Code::new(data, parity).expect("a scheme");
        for lost in patterns(data + parity, parity + 1).filter(|lost| lost.count_ones() as usize == parity + 1) {
            let present: Vec<bool> = (0..data + parity).map(|shard| lost >> shard & 1 == 0).collect();
            let error = code.plan(&present, &lost_shards(lost)).expect_err("too many are lost");
            assert_eq!((error.lost, error.data, error.parity), (parity + 1, data, parity));
        }
    }
}

#[test]
fn present_shards_may_be_wanted_and_are_just_copied() {
    let mut random = Random(3);
    let code = Code::new(5, 2).expect("a scheme");
    let shards = stripe(&code, &mut random, 100);
    check(&code, &shards, 0, &[3], "5+2 nothing lost");
    check(&code, &shards, 0b10, &[3, 1, 6, 0, 5, 2, 4], "5+2 everything wanted");
    let present = [true; 7];
    assert_eq!(code.plan(&present, &[3]).expect("nothing is lost").sources(), &[3]);
    assert!(code.plan(&present, &[]).expect("nothing is lost").sources().is_empty());
}

#[test]
fn one_lost_data_shard_is_the_xor_of_the_others_and_parity_0() {
    let code = Code::new(4, 2).expect("a scheme");
    let plan = code.plan(&[true, false, true, true, true, true], &[1]).expect("one is lost");
    assert_eq!(plan.sources(), &[0, 2, 3, 4]);
    let shards: [&[u8]; 4] = [&[1], &[2], &[4], &[8]];
    let mut out = [0];
    plan.apply(&shards, &mut [&mut out]);
    assert_eq!(out, [15]);
}

#[test]
fn other_schemes_are_refused() {
    for (data, parity) in [(2, 2), (17, 2), (4, 0), (4, 1), (4, 3), (4, 5), (0, 0)] {
        let error = Code::new(data, parity).expect_err("no such scheme");
        assert_eq!((error.data, error.parity), (data, parity));
    }
    for data in 0..=u8::MAX {
        for parity in 0..=u8::MAX {
            let code = Code::get(weft_wire::map::Protection { data, parity });
            assert_eq!(code.is_ok(), (3..=16).contains(&data) && (parity == 2 || parity == 4), "{data}+{parity}");
        }
    }
}
