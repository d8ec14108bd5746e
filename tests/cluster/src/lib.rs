//! Real clusters of local `weftd` processes.

#![forbid(unsafe_code)]
