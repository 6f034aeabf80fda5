//! Taking records out of the tables of a space wholly: their rows, every file of every version that holds them, and what the logs say of them.
//!
//! Order of durability, each step before the next, so that whatever is interrupted is found and gone on with: the records are kept out
//! (metastore, then the state of the space); their rows leave by a commit; live files that still hold them, as rows that are hidden, are
//! rewritten without them by compaction's way ([`rewrite`]); logs that name them begin anew behind a checkpoint ([`log_renewal`]); at last the
//! files that held them are deleted ([`run`]). What is to be done is found by reading the ids of all files in the folder of a table, whatever
//! version they are of ([`search`]).
//!
//! The key index holds hashes of ids and no text, deletion vectors hold numbers of rows: neither is touched.

mod log_renewal;
mod mentions;
mod rewrite;
pub(crate) mod run;
mod search;
