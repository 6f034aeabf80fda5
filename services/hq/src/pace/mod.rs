//! Gentle on the source: how much HQ's servers are asked at once and how fast.
//!
//! [`Turns`] caps what is in flight to one kind of source (all of HQ's databases together; its blob stores) and adapts to how fast it answers:
//! [`limit`] decides, [`bucket`] counts, both without a clock of their own. The two kinds are apart, because a blob store that is slow is no
//! reason to leave a database idle, and a form whose row has not been read asks for no blob. Fairness between domains is left
//! to the caller, which knows them; [`bucket::DomainBuckets`] is for that.

pub mod bucket;
pub mod limit;
mod turns;

pub use self::turns::{Pace, Turn, TurnOptions, Turns};
