//! The rules of transactions hold within these bounds, and each broken variant is caught.

use weft_models::search::{Depth, holds};
use weft_models::transactions::{Transactions, Variant};

fn bounds(variant: Variant) -> Transactions {
    Transactions { variant, participants: 2, changes_max: 4 }
}

fn is_caught(variant: Variant) {
    weft_models::search::is_caught(bounds(variant), &variant);
}

#[test]
fn it_holds_with_three_participants() {
    holds(Transactions { participants: 3, ..bounds(Variant::Correct) }, Depth::All);
}

#[test]
fn it_holds_with_one_participant_and_many_leaders() {
    holds(Transactions { participants: 1, changes_max: 6, ..bounds(Variant::Correct) }, Depth::All);
}

#[test]
fn asking_for_intents_before_the_begin_is_caught() {
    is_caught(Variant::IntentBeforeBegin);
}

#[test]
fn asking_for_an_intent_again_is_caught() {
    is_caught(Variant::PrepareAgain);
}

#[test]
fn answering_before_the_intent_stands_is_caught() {
    is_caught(Variant::PreparedBeforeIntentStands);
}

#[test]
fn telling_before_the_decision_stands_is_caught() {
    is_caught(Variant::CommitBeforeDecisionStands);
}

#[test]
fn leaving_what_is_undecided_is_caught() {
    is_caught(Variant::UndecidedStays);
}

#[test]
fn confirming_before_the_outcome_stands_is_caught() {
    is_caught(Variant::ConfirmBeforeOutcomeStands);
}

#[test]
fn forgetting_before_all_have_confirmed_is_caught() {
    is_caught(Variant::ForgetBeforeConfirmed);
}

#[test]
fn answering_from_what_does_not_stand_is_caught() {
    is_caught(Variant::OutcomeOfUnsettled);
}
