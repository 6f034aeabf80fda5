//! What tests of several crates share. The engine's own tests and those of the whole system make rows, draw histories, let time pass and
//! interfere with stores by the same code.
//!
//! Nothing here knows the engine: what needs its types (opening one, a batch of a space) is a thin layer in `lake-writer`'s tests and in
//! `lake-tests`.

pub mod delegating_store;
pub mod dice;
pub mod faults;
pub mod gate;
pub mod history;
pub mod hostile_names;
pub mod log;
pub mod recording_queue;
pub mod rows;
pub mod table_file;
pub mod time;
pub mod waiting;
pub mod watcher;
