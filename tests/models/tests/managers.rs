//! Managers come and go within these bounds without harm, and each broken variant is caught.

use weft_models::managers::{Managers, Variant};
use weft_models::search::{Depth, holds};

/// Three voters, one new id, one memory that is lost.
fn bounds(variant: Variant) -> Managers {
    Managers { variant, first: 0b0111, voters: 4, terms_max: 2, entries_max: 5, forgets_max: 1 }
}

fn is_caught(model: Managers) {
    let variant = model.variant;
    weft_models::search::is_caught(model, &variant);
}

#[test]
fn it_holds_while_a_manager_is_replaced() {
    holds(Managers { terms_max: 3, ..bounds(Variant::Correct) }, Depth::Steps(22));
}

#[test]
fn voting_after_forgetting_is_caught() {
    is_caught(bounds(Variant::AmnesiacVotes));
}

#[test]
fn replacing_two_at_once_is_caught() {
    is_caught(Managers { voters: 5, forgets_max: 0, ..bounds(Variant::TwoAtOnce) });
}

#[test]
fn voting_for_who_knows_less_is_caught() {
    is_caught(Managers { voters: 3, terms_max: 3, forgets_max: 0, ..bounds(Variant::VoteForLess) });
}

#[test]
fn a_majority_of_the_living_is_caught() {
    is_caught(Managers { forgets_max: 2, ..bounds(Variant::MajorityOfTheLiving) });
}
