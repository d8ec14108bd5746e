//! Searching models, and saying what was found.

use stateright::{Checker, Expectation, HasDiscoveries, Model};
use std::fmt::Debug;
use std::hash::Hash;

/// Whether a search went through everything within a model's bounds, or through all histories of some length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    All,
    Steps(usize),
}

/// Panics unless every property holds in everything that is searched, and what should occur occurs.
pub fn holds<M>(model: M, depth: Depth)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq + Send + Sync + 'static,
{
    let properties = model.properties();
    let mut builder = model.checker().threads(1).finish_when(HasDiscoveries::AnyFailures);
    if let Depth::Steps(steps) = depth {
        builder = builder.target_max_depth(steps);
    }
    let checker = builder.spawn_bfs().join();
    println!("{} states, {} steps deep", checker.unique_state_count(), checker.max_depth());
    for property in properties {
        match (property.expectation, checker.discovery(property.name)) {
            (Expectation::Sometimes, None) => panic!("this never occurs: {}", property.name),
            (Expectation::Sometimes, Some(_)) | (_, None) => {}
            (_, Some(path)) => panic!("this does not hold: {}\n{path}", property.name),
        }
    }
}

/// Panics unless some property that must hold is seen not to. Every such property counts, whatever it is called: a
/// test that looks for some by name misses those that were renamed.
pub fn is_caught<M>(model: M, variant: &dyn Debug)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq + Send + Sync + 'static,
{
    let properties = model.properties();
    let checker = model.checker().threads(1).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let states = checker.unique_state_count();
    let always = properties.iter().filter(|property| property.expectation != Expectation::Sometimes);
    let Some((name, path)) =
        always.into_iter().find_map(|property| Some((property.name, checker.discovery(property.name)?)))
    else {
        panic!("{variant:?} went unnoticed in {states} states");
    };
    println!("{variant:?} is caught in {states} states by {} steps: {name}", path.into_actions().len());
}
