//! How many fetchers and enrichers there should be, by what only the pipeline knows, for KEDA.
//!
//! Every writer observes the stages all the time (`observation.rs`) and decides when it is asked (`decision.rs`); nothing is kept
//! elsewhere, so that a writer that has just begun leaves things as they are.

pub(crate) use self::scaler::Scaler;
pub(crate) use self::service::ScalerService;

mod decision;
mod observation;
mod scaler;
mod service;
#[cfg(test)]
mod tests;
