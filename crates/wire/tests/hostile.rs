//! Heads of messages that nobody of ours made: random, cut off, with flipped bits. They are refused or understood, and
//! what is understood is written and read again as the same.

use std::fmt::Debug;
use weft_wire::bucket::{ParticipantReply, ParticipantRequest};
use weft_wire::drive::{DriveReply, DriveRequest};
use weft_wire::fs::{FsReply, FsRequest};
use weft_wire::manager::{ManagerReply, ManagerRequest, MapReply, MapRequest};
use weft_wire::map::Map;
use weft_wire::{decode, encode};

/// With `cargo xtask test --long` many more.
fn rounds() -> u64 {
    if std::env::var_os("WEFT_LONG").is_some() { 5_000_000 } else { 20_000 }
}

const BYTES_MAX: u64 = 96;

/// SplitMix64: each run makes the same messages.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// Small numbers more often than others: they are what variants and lengths are made of.
    fn byte(&mut self) -> u8 {
        let byte = self.next() as u8;
        if self.below(2) == 0 { byte % 8 } else { byte }
    }
}

fn bend(random: &mut Random, bytes: &mut Vec<u8>) {
    match random.below(4) {
        0 => bytes.truncate(random.below(bytes.len() as u64) as usize),
        1 => bytes.push(random.byte()),
        _ => {
            let at = random.below(bytes.len() as u64) as usize;
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
    }
}

fn attack<T>(name: &str, seed: u64)
where
    T: Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    let mut random = Random(seed);
    let mut understood = 0u64;
    // What was understood is bent further: so the inner parts are reached, too.
    let mut base: Vec<u8> = Vec::new();
    for _ in 0..rounds() {
        let mut bytes = base.clone();
        if bytes.is_empty() || random.below(8) == 0 {
            bytes = (0..random.below(BYTES_MAX)).map(|_| random.byte()).collect();
        }
        (0..random.below(3)).for_each(|_| bend(&mut random, &mut bytes));
        // Most of what nobody made ends too early or too late.
        let Some(value) = (0..=bytes.len()).rev().find_map(|len| decode::<T>(bytes.get(..len)?).ok()) else { continue };
        understood += 1;
        let written = encode(&value);
        let again = decode::<T>(&written);
        let again = again.unwrap_or_else(|error| panic!("{error}: {value:?} can't be read again"));
        assert_eq!(encode(&again), written, "{value:?}");
        base = written.to_vec();
    }
    println!("{name}: {} messages, {understood} understood", rounds());
    assert!(understood > 0, "no {name} was ever understood: the test reaches nothing");
}

#[test]
fn requests_are_refused_or_understood() {
    attack::<DriveRequest>("DriveRequest", 1);
    attack::<FsRequest>("FsRequest", 2);
    attack::<ParticipantRequest>("ParticipantRequest", 3);
    attack::<ManagerRequest>("ManagerRequest", 4);
    attack::<MapRequest>("MapRequest", 5);
}

#[test]
fn replies_are_refused_or_understood() {
    attack::<DriveReply>("DriveReply", 6);
    attack::<FsReply>("FsReply", 7);
    attack::<ParticipantReply>("ParticipantReply", 8);
    attack::<ManagerReply>("ManagerReply", 9);
    attack::<MapReply>("MapReply", 10);
}

/// A map is long: bent pieces of it come from the replies above, here it need only never do harm.
#[test]
fn maps_do_no_harm() {
    let mut random = Random(11);
    for _ in 0..rounds() {
        let bytes: Vec<u8> = (0..random.below(4 * BYTES_MAX)).map(|_| random.byte()).collect();
        let _ = decode::<Map>(&bytes);
    }
}
