"""Times of a few queries through DuckDB and Polars, each of which opens the table anew.

    scan.py --table FOLDER --month 2024-03-01 --supervisor ID [--repeats 5]
"""

import argparse
import datetime
import json
import statistics
import time
from typing import Any, Callable

import deltalake

SUMMED = "case_json__visit_count"


def duckdb_queries(arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    import duckdb
    import duckdb_extensions

    connection = duckdb.connect(config={"allow_unsigned_extensions": "true"})
    duckdb_extensions.import_extension("delta", con=connection)
    connection.execute("LOAD delta")
    table = "delta_scan('" + arguments.table.replace("'", "''") + "')"
    total = f"SELECT sum(CAST({SUMMED} AS BIGINT)) FROM {table}"
    chosen = f" WHERE month = DATE '{arguments.month}' AND supervisor_id = '{arguments.supervisor}'"
    return {
        "count": lambda: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0],
        "sum": lambda: connection.execute(total).fetchone()[0],
        "filter": lambda: connection.execute(total + chosen).fetchone()[0],
    }


def polars_queries(arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    import polars as pl

    month = datetime.date.fromisoformat(arguments.month)
    total = pl.col(SUMMED).cast(pl.Int64).sum()
    chosen = (pl.col("month") == month) & (pl.col("supervisor_id") == arguments.supervisor)
    return {
        "count": lambda: pl.scan_delta(arguments.table).select(pl.len()).collect().item(),
        "sum": lambda: pl.scan_delta(arguments.table).select(total).collect().item(),
        "filter": lambda: pl.scan_delta(arguments.table).filter(chosen).select(total).collect().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", required=True)
    parser.add_argument("--month", required=True)
    parser.add_argument("--supervisor", required=True)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    table = deltalake.DeltaTable(arguments.table)
    queries = []
    for reader, of in (("duckdb", duckdb_queries), ("polars", polars_queries)):
        for query, ask in of(arguments).items():
            times, found = [], None
            for _ in range(arguments.repeats + 1):
                began = time.monotonic()
                found = ask()
                times.append((time.monotonic() - began) * 1e3)
            milliseconds = statistics.median(times[1:])
            queries.append({"reader": reader, "query": query, "milliseconds": milliseconds, "found": int(found or 0)})
    print("result: " + json.dumps({"files": len(table.file_uris()), "queries": queries}))


main()
