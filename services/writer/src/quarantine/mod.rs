//! What could not be handled: kept within bounds ([`sink`]), read again ([`replay`]), or given up.
//!
//! Reading again takes the way of every change: fetchers are asked for the ids ([`crate::change_requests`]), and what they read becomes a row or a
//! tombstone, or comes into quarantine once more. An entry is released by evidence ([`evidence`]): a later, complete reading of its record is
//! in the lake.

pub(crate) mod evidence;
pub(crate) mod replay;
pub mod sink;
pub(crate) mod subjects;
pub(crate) mod watch;
