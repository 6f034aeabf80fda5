//! What the benchmark is asked for.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Figures of the engine, as Markdown tables.
#[derive(Debug, Parser)]
#[command(name = "engine")]
pub struct Arguments {
    /// Sizes of the tables that are changed, rows.
    #[arg(long, value_delimiter = ',', default_value = "1000000,10000000,100000000")]
    pub rows: Vec<u64>,
    /// Keys of one upsert.
    #[arg(long, value_delimiter = ',', default_value = "100,10000,100000")]
    pub keys: Vec<u64>,
    /// What to measure. `merge` is deltalake's, `spark` Spark's; `scan` is measured around a compaction.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = concat!(
            "upsert,index,lookup,trace,type-change,foreign,compaction,s3,spread,scan,merge,spark,memory,",
            "partitions,wide,long-texts,long-run"
        )
    )]
    pub parts: Vec<Part>,
    /// Where tables are made; a folder in the system's temporary folder when absent.
    #[arg(long)]
    pub folder: Option<PathBuf>,
    /// Keeps the made tables, for the next run with the same folder.
    #[arg(long)]
    pub keep: bool,
    /// An option of the engine (section `[tables]`) as key=value, value in JSON or text; `{home}` is the folder of the table at hand.
    #[arg(long = "option", value_parser = key_value)]
    pub options: Vec<(String, String)>,
    /// Measured repetitions of an upsert; fewer for very large ones.
    #[arg(long, default_value_t = 20)]
    pub repeats: u64,
    /// Rows of one batch when a table is made.
    #[arg(long, default_value_t = 500_000)]
    pub load_batch: u64,
    /// Sizes of the tables that are merged into, rows.
    #[arg(long, value_delimiter = ',', default_value = "1000000,5000000")]
    pub merge_rows: Vec<u64>,
    /// Keys of one merge.
    #[arg(long, default_value_t = 10_000)]
    pub merge_keys: u64,
    /// Measured repetitions of a merge; one more comes before as warm-up.
    #[arg(long, default_value_t = 3)]
    pub merge_repeats: u64,
    /// Size of the table that is compacted, rows; at most the largest of --rows.
    #[arg(long, default_value_t = 10_000_000)]
    pub compaction_rows: u64,
    /// Batches of 1,000 keys that are ingested without maintenance; beside it they go on until it is done.
    #[arg(long, default_value_t = 200)]
    pub ingest_batches: u64,
    /// Pause between two of these batches, milliseconds.
    #[arg(long, default_value_t = 50)]
    pub ingest_pause_ms: u64,
    /// Sizes of the tables in which a column changes its type, rows.
    #[arg(long, value_delimiter = ',', default_value = "1000000")]
    pub type_change_rows: Vec<u64>,
    /// Size of the table whose files another writer rewrites, rows; at most the largest of --rows.
    #[arg(long, default_value_t = 1_000_000)]
    pub foreign_rows: u64,
    /// Sizes of the tables on S3, rows.
    #[arg(long, value_delimiter = ',', default_value = "10000,1000000")]
    pub s3_rows: Vec<u64>,
    /// Keys of one upsert on S3.
    #[arg(long, value_delimiter = ',', default_value = "100,10000")]
    pub s3_keys: Vec<u64>,
    /// Tables of one batch that is spread over them.
    #[arg(long, default_value_t = 200)]
    pub spread_tables: u64,
    /// Rows of that batch.
    #[arg(long, default_value_t = 2_000)]
    pub spread_rows: u64,
    /// Tables in one writer.
    #[arg(long, default_value_t = 2_000)]
    pub tables: u64,
    /// Partitions of one table.
    #[arg(long, default_value_t = 3_000)]
    pub partitions: u64,
    /// Rows of a batch for them.
    #[arg(long, default_value_t = 10_000)]
    pub partition_keys: u64,
    /// Batches for the table of many partitions.
    #[arg(long, default_value_t = 30)]
    pub partition_batches: u64,
    /// Rows of the flush into a wide table.
    #[arg(long, default_value_t = 50_000)]
    pub wide_rows: u64,
    /// Columns of the tables that are flushed into.
    #[arg(long, value_delimiter = ',', default_value = "2000,20")]
    pub wide_columns: Vec<u64>,
    /// Rows of a table with long texts.
    #[arg(long, default_value_t = 96_000)]
    pub text_rows: u64,
    /// Lengths of the text in each of them.
    #[arg(long, value_delimiter = ',', default_value = "20000,200")]
    pub text_characters: Vec<u64>,
    /// Removed files that a log carries along, in a long run.
    #[arg(long, value_delimiter = ',', default_value = "100000,1000000,3600000")]
    pub removes: Vec<u64>,
    /// Python that has deltalake, duckdb and polars; from tests/set-up when absent.
    #[arg(long)]
    pub python: Option<PathBuf>,
    /// Python that has pyspark; from tests/set-up when absent.
    #[arg(long)]
    pub spark_python: Option<PathBuf>,
    /// Folder with Delta's jars for Spark; from tests/set-up when absent.
    #[arg(long)]
    pub spark_jars: Option<PathBuf>,
    /// Heap of Spark's Java process.
    #[arg(long, default_value = "4g")]
    pub spark_memory: String,
    /// Runs one phase; the benchmark starts itself this way.
    #[arg(long, hide = true)]
    pub phase: Option<String>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Upserts of random keys.
    Upsert,
    /// Restart, catch-up and rebuild of the key index, and batches that are delivered again.
    Index,
    /// Look-ups in the key index itself, and its size.
    Lookup,
    /// Tracing single records.
    Trace,
    /// A column that changes its type.
    TypeChange,
    /// A table whose files another writer rewrites.
    Foreign,
    /// Ingest while maintenance runs.
    Compaction,
    /// Commits to an S3 store.
    S3,
    /// Batches whose rows belong to many tables.
    Spread,
    /// Readers before and after a compaction.
    Scan,
    /// deltalake's MERGE beside the engine.
    Merge,
    /// Spark's MERGE beside the engine.
    Spark,
    /// Thousands of tables in one writer.
    Memory,
    /// Thousands of partitions in one table.
    Partitions,
    /// One flush into a wide table.
    Wide,
    /// Compaction of rows with long texts.
    LongTexts,
    /// Checkpoints of a log that has grown for a long time.
    LongRun,
}

impl Arguments {
    /// Whether a part is to be run. Scans belong to the compaction, Spark to the merges.
    pub fn has(&self, part: Part) -> bool {
        self.parts.contains(&part)
            || (part == Part::Compaction && self.parts.contains(&Part::Scan))
            || (part == Part::Merge && self.parts.contains(&Part::Spark))
    }

    /// Size of the table that is compacted.
    pub fn rows_compacted(&self) -> u64 {
        self.compaction_rows.min(self.rows_max())
    }

    /// Size of the table whose files another writer rewrites, rows.
    pub fn rows_rewritten(&self) -> u64 {
        self.foreign_rows.min(self.rows_max())
    }

    fn rows_max(&self) -> u64 {
        self.rows.iter().copied().max().unwrap_or(u64::MAX)
    }

    /// Repetitions of an upsert with so many keys: not so many that the table is replaced several times over.
    pub fn repeats_of(&self, keys: u64) -> u64 {
        self.repeats.min((1_000_000 / keys.max(1)).max(5))
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it is not of the form key=value")?;
    Ok((key.to_owned(), value.to_owned()))
}
