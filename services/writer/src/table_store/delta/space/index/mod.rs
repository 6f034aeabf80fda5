//! The key index of a space, as the engine uses it: the snapshot it stands for, the keys that it is filled with, its folder.

pub(crate) mod folder;
pub(crate) mod read_keys;
pub(crate) mod snapshot;
pub(crate) mod tie_breakers;
pub(crate) mod upkeep;
