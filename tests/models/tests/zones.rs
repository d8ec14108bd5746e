//! The rules of stripe locations hold within these bounds, and each broken variant is caught.

use stateright::{Checker, HasDiscoveries, Model};
use weft_models::zones::{NEVER_ANOTHER, THERE, Variant, Zones};

fn bounds(variant: Variant) -> Zones {
    Zones { variant, zones: 1, locations: 1, stripes_max: 2, epochs_max: 3, generations_max: 2 }
}

fn is_caught(variant: Variant) {
    let checker = bounds(variant).checker().threads(1).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let Some(path) = checker.discovery(THERE).or(checker.discovery(NEVER_ANOTHER)) else {
        panic!("{variant:?} went unnoticed in {} states", checker.unique_state_count());
    };
    println!("{variant:?} is caught in {} states by {} steps", checker.unique_state_count(), path.into_actions().len());
}

#[test]
fn it_holds_with_one_zone() {
    let checker = bounds(Variant::Correct).checker().threads(1).spawn_bfs().join();
    println!("{} states, {} steps deep", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
}

#[test]
fn it_holds_with_two_zones() {
    const STEPS_MAX: usize = 12;
    let model = Zones { zones: 2, locations: 2, stripes_max: 3, ..bounds(Variant::Correct) };
    let checker = model.checker().threads(1).target_max_depth(STEPS_MAX).spawn_bfs().join();
    println!("{} states, {} steps deep", checker.unique_state_count(), checker.max_depth());
    checker.assert_no_discovery(THERE);
    checker.assert_no_discovery(NEVER_ANOTHER);
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
