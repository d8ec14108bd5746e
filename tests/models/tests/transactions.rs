//! The rules of transactions hold within these bounds, and each broken variant is caught.

use stateright::{Checker, HasDiscoveries, Model};
use weft_models::transactions::{ATOMIC, DONE, HIDDEN, ONCE, Transactions, Variant};

fn bounds(variant: Variant) -> Transactions {
    Transactions { variant, participants: 2, changes_max: 4 }
}

fn is_caught(variant: Variant) {
    let checker = bounds(variant).checker().threads(1).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let caught = [ATOMIC, ONCE, HIDDEN, DONE].into_iter().find_map(|property| checker.discovery(property));
    let Some(path) = caught else {
        panic!("{variant:?} went unnoticed in {} states", checker.unique_state_count());
    };
    println!("{variant:?} is caught in {} states by {} steps", checker.unique_state_count(), path.into_actions().len());
}

#[test]
fn it_holds_with_three_participants() {
    let model = Transactions { participants: 3, ..bounds(Variant::Correct) };
    let checker = model.checker().threads(1).spawn_bfs().join();
    println!("{} states, {} steps deep", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
}

#[test]
fn it_holds_with_one_participant_and_many_leaders() {
    let model = Transactions { participants: 1, changes_max: 6, ..bounds(Variant::Correct) };
    let checker = model.checker().threads(1).spawn_bfs().join();
    println!("{} states, {} steps deep", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
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
