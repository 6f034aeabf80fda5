"""Makes a plain Delta table of the data files of one that the engine wrote, for engines that MERGE into it.

    plain_table.py --table FOLDER --batches FOLDER --out FOLDER

OUT/table gets the same data files (by hard links) and a log of its own, without anything that only the engine needs. OUT/batches gets the
batches 0.arrow, 1.arrow, ... as 0.parquet, 1.parquet, ... with the columns of the table. The result is the number of rows of the table.
"""

import argparse
import datetime
import json
import os
import sys
import urllib.parse

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq

COMMITTED_SOURCE = "+_lake_committed_at"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", required=True)
    parser.add_argument("--batches", required=True)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    made = deltalake.DeltaTable(arguments.table)
    table = os.path.join(arguments.out, "table")
    os.makedirs(table)
    for uri in made.file_uris():
        path = urllib.parse.unquote(urllib.parse.urlsplit(uri).path) if uri.startswith("file:") else uri
        os.link(path, os.path.join(table, os.path.relpath(path, os.path.abspath(arguments.table)).replace("/", "_")))
    deltalake.convert_to_deltalake(table)
    plain = deltalake.DeltaTable(table)
    convert_batches(made, pa.schema(plain.schema().to_arrow()), arguments.batches, os.path.join(arguments.out, "batches"))
    rows = sum(action["num_records"] for action in pa.table(plain.get_add_actions()).to_pylist())
    print(f"result: {rows}")


def convert_batches(made: deltalake.DeltaTable, schema: pa.Schema, batches: str, out: str) -> None:
    fields = json.loads(made.schema().to_json())["fields"]
    column_of = {field["metadata"]["lake.source"]: field["name"] for field in fields}
    now = pa.scalar(datetime.datetime.now(datetime.timezone.utc), pa.timestamp("us", "UTC"))
    os.makedirs(out)
    for name in os.listdir(batches):
        batch = pa.ipc.open_file(os.path.join(batches, name)).read_all()
        batch = batch.rename_columns([column_of[source] for source in batch.column_names])
        if COMMITTED_SOURCE in column_of:
            batch = batch.append_column(column_of[COMMITTED_SOURCE], pa.repeat(now, batch.num_rows))
        missing = set(schema.names) ^ set(batch.column_names)
        if missing:
            sys.exit(f"columns are not the same on both sides: {sorted(missing)}")
        pq.write_table(batch.select(schema.names).cast(schema), os.path.join(out, name.replace(".arrow", ".parquet")))


main()
