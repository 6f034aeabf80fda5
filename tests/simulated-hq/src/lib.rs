//! A believable CommCare HQ, for tests, demos and benchmarks: it lives from a seed, keeps its state as HQ would (in memory, or in real
//! Postgres databases, blob stores, user services and Kafka topics), and can say what a faithful lake must contain.

pub mod announcement;
mod answers;
pub mod batch;
pub mod blobs;
mod case_blocks;
pub mod command_line;
pub mod commands;
mod database_clock;
mod dice;
mod element;
pub mod expectation;
mod expected_cells;
mod field_work;
mod founding;
mod geography;
pub mod kafka;
pub mod life;
pub mod memory_hq;
mod moment;
mod office;
pub mod patience;
pub mod play;
mod post_office;
pub mod postgres;
mod questionnaire;
mod rows;
mod sabotage;
pub mod schema;
pub mod scripted_hq;
pub mod sharding;
pub mod single_rows;
mod submissions;
pub mod turn;
pub mod users;
mod vocabulary;
mod world;
