//! The journal's protocol holds within these bounds, and each broken variant of it is caught.

use weft_models::journal::{Journal, Variant};
use weft_models::search::{Depth, holds};

fn one_ensemble(variant: Variant) -> Journal {
    let ensembles = vec![vec![0, 1, 2]];
    Journal { variant, parity: 1, ensembles, moves_at_once: false, epochs_max: 3, batches_max: vec![1, 1] }
}

fn moving(variant: Variant) -> Journal {
    let ensembles = vec![vec![0, 1, 2], vec![1, 2, 3]];
    Journal { variant, parity: 1, ensembles, moves_at_once: false, epochs_max: 3, batches_max: vec![] }
}

fn moving_with_a_batch(variant: Variant) -> Journal {
    Journal { moves_at_once: true, batches_max: vec![1], ..moving(variant) }
}

fn two_parities(variant: Variant) -> Journal {
    let ensembles = vec![vec![0, 1, 2, 3]];
    Journal { variant, parity: 2, ensembles, moves_at_once: false, epochs_max: 3, batches_max: vec![] }
}

/// Only P+1 domains live: all must acknowledge, one seal suffices.
fn shrinking(variant: Variant) -> Journal {
    Journal { ensembles: vec![vec![0, 1, 2], vec![1, 2]], ..moving(variant) }
}

/// Another domain is there again.
fn growing(variant: Variant) -> Journal {
    Journal { ensembles: vec![vec![0, 1], vec![0, 1, 2]], ..moving(variant) }
}

fn is_caught(model: Journal) {
    let variant = model.variant;
    weft_models::search::is_caught(model, &variant);
}

#[test]
fn it_holds_with_one_ensemble() {
    holds(one_ensemble(Variant::Correct), Depth::All);
}

#[test]
fn it_holds_while_the_ensemble_changes() {
    holds(moving(Variant::Correct), Depth::All);
}

#[test]
fn it_holds_while_the_ensemble_changes_under_a_batch() {
    // The broken variant shows after 16.
    holds(moving_with_a_batch(Variant::Correct), Depth::Steps(20));
}

#[test]
fn it_holds_with_two_parities() {
    holds(two_parities(Variant::Correct), Depth::All);
}

#[test]
fn it_holds_while_only_p_plus_1_domains_are_left() {
    holds(shrinking(Variant::Correct), Depth::All);
}

#[test]
fn it_holds_while_a_domain_returns() {
    holds(growing(Variant::Correct), Depth::All);
}

#[test]
fn broken_rules_are_caught_with_p_plus_1_domains() {
    is_caught(shrinking(Variant::AcknowledgeAtP));
    is_caught(shrinking(Variant::SealCurrentOnly));
    is_caught(shrinking(Variant::SkipASeal));
    // To seal N-P of the larger ensemble is to seal one of the smaller: that variant is right here.
    is_caught(growing(Variant::AcknowledgeAtP));
}

#[test]
fn acknowledging_at_p_copies_is_caught() {
    is_caught(one_ensemble(Variant::AcknowledgeAtP));
}

#[test]
fn deciding_with_a_seal_less_is_caught() {
    is_caught(one_ensemble(Variant::SkipASeal));
}

#[test]
fn forgetting_a_seal_at_restart_is_caught() {
    is_caught(one_ensemble(Variant::ForgetSealAtRestart));
}

#[test]
fn ignoring_epochs_is_caught() {
    is_caught(one_ensemble(Variant::IgnoreEpochs));
}

#[test]
fn appending_again_under_a_new_epoch_is_caught() {
    is_caught(one_ensemble(Variant::ReappendUnderNewEpoch));
}

#[test]
fn starting_before_the_copies_stand_is_caught() {
    is_caught(one_ensemble(Variant::StartBeforeCopies));
}

#[test]
fn serving_before_the_start_stands_is_caught() {
    is_caught(one_ensemble(Variant::ServeBeforeStart));
}

#[test]
fn sealing_the_current_ensemble_only_is_caught() {
    is_caught(moving(Variant::SealCurrentOnly));
}

#[test]
fn dropping_an_ensemble_early_is_caught() {
    is_caught(moving_with_a_batch(Variant::DropEnsembleEarly));
}
