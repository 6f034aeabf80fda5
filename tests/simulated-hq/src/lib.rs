//! A believable CommCare HQ, for tests, demos and benchmarks: it lives from a seed, keeps its state as HQ would (in memory, or in real
//! Postgres databases, blob stores, user services and Kafka topics), and can say what a faithful lake must contain.

pub mod turn;
