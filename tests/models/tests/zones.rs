//! The rules of stripe locations hold within these bounds, and each broken variant is caught.

use weft_models::search::{Depth, holds};
use weft_models::zones::{Variant, Zones};

fn bounds(variant: Variant) -> Zones {
    Zones { variant, zones: 1, locations: 1, stripes_max: 2, epochs_max: 3, generations_max: 2 }
}

fn is_caught(variant: Variant) {
    weft_models::search::is_caught(bounds(variant), &variant);
}

#[test]
fn it_holds_with_one_zone() {
    holds(bounds(Variant::Correct), Depth::All);
}

#[test]
fn it_holds_with_two_zones() {
    holds(Zones { zones: 2, locations: 2, stripes_max: 3, ..bounds(Variant::Correct) }, Depth::Steps(12));
}

#[test]
fn writing_twice_is_caught() {
    is_caught(Variant::WriteTwice);
}

#[test]
fn forgetting_written_locations_at_restart_is_caught() {
    is_caught(Variant::ForgetWrittenAtRestart);
}

#[test]
fn committing_before_the_shard_is_durable_is_caught() {
    is_caught(Variant::CommitBeforeDurable);
}

#[test]
fn freeing_before_the_record_stands_is_caught() {
    is_caught(Variant::FreeBeforeRecordStands);
}

#[test]
fn freeing_unnamed_zones_before_the_start_stands_is_caught() {
    is_caught(Variant::FreeUnnamedBeforeStart);
}

#[test]
fn going_by_records_that_do_not_stand_is_caught() {
    is_caught(Variant::NameByUnfinishedLog);
}

#[test]
fn reading_any_generation_is_caught() {
    is_caught(Variant::ReadAnyGeneration);
}
