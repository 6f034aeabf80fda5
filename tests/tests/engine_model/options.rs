//! Options of the engine, drawn at random each time it is opened.

use lake_tests::engine::{DeletionVectors, DeltaOptions, bytes};
use rand::RngExt;
use rand::rngs::StdRng;

/// Draws all options that may be others each time the engine is opened; the layout and the retention stay. Answers whether the key index of
/// the life before is kept.
pub fn redraw(options: &mut DeltaOptions, random: &mut StdRng) -> bool {
    use DeletionVectors::{Auto, Off, On};
    options.deletion_vectors = [Auto, On, On, Off][random.random_range(0..4)];
    options.orphan_hours = [1, 2, 24][random.random_range(0..3)];
    options.target_file_bytes = bytes([4_000, 20_000, 1 << 20][random.random_range(0..3)]);
    options.small_file_bytes = [0, 2_000, 8_000][random.random_range(0..3)];
    options.small_files_max = random.random_range(1..6);
    options.deleted_share_max = [0.0, 0.15, 0.6, 1.0][random.random_range(0..4)];
    options.overlap_max = random.random_range(1..6);
    options.copy_on_write_below_bytes = [0, 5_000, 1 << 20][random.random_range(0..3)];
    options.copy_on_write_bytes_per_second = [0, 2_000, 8 << 20][random.random_range(0..3)];
    options.checkpoint_every_commits = random.random_range(1..6);
    options.tiny_file_bytes = [0, 4_000, 64 << 10][random.random_range(0..3)];
    options.index_entries_in_memory_max = [1, 16, 500_000][random.random_range(0..3)];
    let index_is_kept = random.random_range(0..8) > 0;
    options.tables_open_max = random.random_range(1..5);
    // Often compaction finds something to do, and batches mark the files that it is about.
    if random.random_range(0..2) == 0 {
        options.deletion_vectors = On;
        (options.tiny_file_bytes, options.small_file_bytes) = (0, 64 << 10);
        options.target_file_bytes = bytes(1 << 20);
        options.small_files_max = random.random_range(1..3);
        options.deleted_share_max = [0.0, 0.15][random.random_range(0..2)];
    }
    index_is_kept
}
