"""deltalake's MERGE of batches into a table, timed.

    merge_deltalake.py --table FOLDER --batches FOLDER

The batches are 0.parquet, 1.parquet, ...; the first is the warm-up.
"""

import argparse
import json
import os
import time

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq


def memory(key: str) -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))


def folder_bytes(folder: str) -> int:
    return sum(os.path.getsize(os.path.join(path, name)) for path, _, names in os.walk(folder) for name in names)


def merge(folder: str, batch: pa.Table) -> None:
    table = deltalake.DeltaTable(folder)
    properties = deltalake.WriterProperties(compression="ZSTD", compression_level=3)
    merger = table.merge(
        source=batch,
        predicate="target._id = source._id",
        source_alias="source",
        target_alias="target",
        writer_properties=properties,
    )
    merger.when_matched_update_all().when_not_matched_insert_all().execute()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", required=True)
    parser.add_argument("--batches", required=True)
    arguments = parser.parse_args()
    count = len(os.listdir(arguments.batches))
    batches = [pq.read_table(os.path.join(arguments.batches, f"{number}.parquet")) for number in range(count)]
    before = memory("VmRSS:")
    times, bytes_before = [], 0
    for batch in batches:
        if len(times) == 1:
            bytes_before = folder_bytes(arguments.table)
        began = time.monotonic()
        merge(arguments.table, batch)
        times.append((time.monotonic() - began) * 1e3)
    result = {
        "first_ms": times[0],
        "times_ms": times[1:],
        "memory_before": before,
        "memory_peak": memory("VmHWM:"),
        "bytes": folder_bytes(arguments.table) - bytes_before,
        "rows": deltalake.DeltaTable(arguments.table).count(),
    }
    print(f"result: {json.dumps(result)}")


main()
