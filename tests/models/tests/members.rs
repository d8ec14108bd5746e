//! A member is replaced within these bounds while its drive comes and goes, and each broken variant is caught.

use weft_models::members::{Members, Variant};
use weft_models::search::{Depth, holds};

fn bounds(variant: Variant) -> Members {
    Members { variant, stripes_max: 2, epochs_max: 2, absences_max: 1, generations_max: 2 }
}

fn is_caught(variant: Variant) {
    weft_models::search::is_caught(bounds(variant), &variant);
}

#[test]
fn it_holds_while_a_drive_goes_and_returns() {
    holds(bounds(Variant::Correct), Depth::All);
}

#[test]
fn it_holds_while_drives_take_turns() {
    holds(Members { absences_max: 2, epochs_max: 3, ..bounds(Variant::Correct) }, Depth::Steps(13));
}

#[test]
fn forgetting_what_was_written_meanwhile_is_caught() {
    is_caught(Variant::ForgetNewStripes);
}

#[test]
fn replacing_before_everything_is_copied_is_caught() {
    is_caught(Variant::ReplaceBeforeCopied);
}

#[test]
fn freeing_before_the_record_stands_is_caught() {
    is_caught(Variant::FreeBeforeRecordStands);
}

#[test]
fn a_drive_that_frees_by_itself_is_caught() {
    let variant = Variant::FreeByItself;
    weft_models::search::is_caught(Members { absences_max: 2, ..bounds(variant) }, &variant);
}

#[test]
fn trusting_what_returns_is_caught() {
    is_caught(Variant::TrustWhatReturns);
}

#[test]
fn taking_over_another_leaders_zone_is_caught() {
    is_caught(Variant::TakeOverForeignZone);
}
