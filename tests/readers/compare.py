"""Compares the tables of a lake with what HQ holds, cell by cell, through readers that share no code with the lake.

    compare.py --expected FOLDER --root ROOT --readers duckdb,polars

ROOT is a path or s3://bucket/prefix; for S3 the environment gives AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION.

FOLDER/tables.json lists the tables: {"domain", "topic", "type", "path" (relative to ROOT), "rows" (a file of FOLDER)}. A line of such a file
is a row: {"id": "<_id>", "cells": {"<source path>": value, ...}, "either": [{"<source path>": value, ...}, ...]}.
  - cells must all match; with "either", one of its alternatives must match as well, wholly;
  - a row with "optional": true may be absent; if it is there, it must be as expected;
  - every column named by neither must be NULL, but columns of sources that begin with +_lake_ are not looked at; _id always holds the id;
  - a value is null, a string, a boolean, an integer, a float, {"timestamp": "2024-01-31T10:00:00.000000Z"}, {"date": "2024-01-31"}, or
    {"json": ...}: a text cell that holds this JSON, whatever the order of its keys.
A column's source path is the metadata key lake.source of its field in the Delta schema. Types count: the text "1" is not the integer 1.

A table below ROOT that is not listed must have no rows, but for the lake's own list of tables; a listed table without rows may be absent. Prints, for each reader,
"<reader>: tables N rows M differences K" and the first differences; ends with 1 when there are any, with 2 when it could not compare.
"""

import argparse
import collections
import datetime
import json
import os
import sys
from typing import Any, Iterator, NamedTuple

import deltalake
import pyarrow as pa
from lake_readers import READERS, ExpectationError, Lake, cells
from values import EPOCH, MICROSECOND, Date, Timestamp

SHOWN_DIFFERENCES = 20
SHOWN_VALUE_LENGTH = 200
LINEAGE = "+_lake_"
# The lake's own table, with one row for each of the others.
STATUS_TABLE = "lake.tables"


class JsonText:
    """Expectation: a text that holds this JSON."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __str__(self) -> str:
        return f"JSON {json.dumps(self.value, ensure_ascii=False, sort_keys=True)}"


class Difference(NamedTuple):
    table: str
    row: str
    column: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"table {self.table}, id {self.row}, column {self.column}: expected {self.expected}, found {self.found}"


# --- What is expected ------------------------------------------------------------------------------------------------


class ExpectedTable(NamedTuple):
    path: str
    rows_file: str

    def rows(self) -> Iterator[dict[str, Any]]:
        with open(self.rows_file, encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    yield json.loads(line)


def read_expectation(folder: str) -> list[ExpectedTable]:
    with open(os.path.join(folder, "tables.json"), encoding="utf-8") as file:
        listed = json.load(file)
    tables = [ExpectedTable(entry["path"].strip("/"), os.path.join(folder, entry["rows"])) for entry in listed]
    repeated = [path for path, count in collections.Counter(table.path for table in tables).items() if count > 1]
    if repeated:
        raise ExpectationError(f"tables.json lists a path twice: {repeated[0]}")
    return tables


def expected_value(value: Any) -> Any:
    """The value that a reader should find, of exactly the type that it should have."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, dict) and len(value) == 1:
        [(kind, content)] = value.items()
        if kind == "timestamp":
            moment = datetime.datetime.fromisoformat(content)
            return Timestamp((moment - EPOCH) // MICROSECOND)
        if kind == "date":
            return Date((datetime.date.fromisoformat(content) - EPOCH.date()).days)
        if kind == "json":
            return JsonText(content)
    raise ExpectationError(f"not a cell value: {json.dumps(value)}")


def matches(expected: Any, found: Any) -> bool:
    if isinstance(expected, JsonText):
        if not isinstance(found, str):
            return False
        try:
            return same_json(expected.value, json.loads(found))
        except ValueError:
            return False
    return type(expected) is type(found) and expected == found


def same_json(left: Any, right: Any) -> bool:
    """Equality that, unlike Python's, tells true from 1."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same_json(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same_json, left, right))
    return left == right


# --- The comparison --------------------------------------------------------------------------------------------------


def column_sources(lake: Lake, table: str) -> dict[str, str | None]:
    """Column name to source path, as the Delta schema has it."""
    schema = deltalake.DeltaTable(lake.uri(table), storage_options=lake.storage_options() or None).schema()
    fields = json.loads(schema.to_json())["fields"]
    return {field["name"]: (field.get("metadata") or {}).get("lake.source") for field in fields}


class TableComparison:
    """One table through one reader."""

    def __init__(self, lake: Lake, reader: Any, table: str) -> None:
        self.table = table
        self.differences: list[Difference] = []
        sources = column_sources(lake, table)
        found = reader.rows(table)
        self.row_count = found.num_rows
        self._check_shape(reader, found, sources)
        # A column without a source is judged under its own name, which no expectation names: it must be empty.
        self.columns = {
            name: cells(found.column(name))
            for name in found.column_names
            if not (sources.get(name) or name).startswith(LINEAGE)
        }
        self.source_of = {name: sources.get(name) or name for name in self.columns}
        self.column_of = {source: name for name, source in self.source_of.items()}
        ids = found.column("_id").to_pylist() if "_id" in found.column_names else []
        self.position = {row_id: position for position, row_id in enumerate(ids)}
        for row_id, count in collections.Counter(ids).items():
            if count > 1:
                self._differs(show(row_id), "_id", "one row", f"{count} rows")

    def _differs(self, row: str, column: str, expected: str, found: str) -> None:
        self.differences.append(Difference(self.table, row, column, expected, found))

    def _check_shape(self, reader: Any, found: pa.Table, sources: dict[str, str | None]) -> None:
        count = reader.count(self.table)
        if count != found.num_rows:
            self._differs("-", "count(*)", str(found.num_rows), str(count))
        if found.column_names != list(sources):
            missing, extra = set(sources) - set(found.column_names), set(found.column_names) - set(sources)
            if missing or extra:
                self._differs("-", "schema", f"all columns; missing {sorted(missing)}", f"besides {sorted(extra)}")
        if "_id" not in found.column_names:
            self._differs("-", "_id", "a column", "none")
        repeated = collections.Counter(source for source in sources.values() if source)
        for source, times in repeated.items():
            if times > 1:
                names = [name for name, its_source in sources.items() if its_source == source]
                self._differs("-", source, "one column", f"columns {', '.join(names)}")

    def compare(self, expected: ExpectedTable) -> None:
        left = set(self.position)
        for row in expected.rows():
            row_id = row["id"]
            position = self.position.get(row_id)
            if position is None:
                if not row.get("optional"):
                    self._differs(show(row_id), "-", "a row", "none")
                continue
            if row_id not in left:
                raise ExpectationError(f"{expected.rows_file} lists {row_id} twice")
            left.discard(row_id)
            self._compare_row(row, position)
        for row_id in sorted(left, key=str):
            self._differs(show(row_id), "-", "no row", "a row")

    def _compare_row(self, row: dict[str, Any], position: int) -> None:
        attempts = []
        for alternative in row.get("either") or [{}]:
            values = {source: expected_value(value) for source, value in {**row["cells"], **alternative}.items()}
            attempts.append(self._row_differences(row["id"], values, position))
            if not attempts[-1]:
                return
        # The nearest alternative tells most about what went wrong.
        self.differences.extend(min(attempts, key=len))

    def _row_differences(self, row_id: str, values: dict[str, Any], position: int) -> list[Difference]:
        differences = []
        for source, value in values.items():
            if value is not None and source not in self.column_of and not source.startswith(LINEAGE):
                differences.append(Difference(self.table, show(row_id), source, show(value), "no such column"))
        for name, column in self.columns.items():
            source = self.source_of[name]
            value, found = values.get(source, row_id if name == "_id" else None), column[position]
            if not matches(value, found):
                label = name if source == name else f"{name} ({source})"
                differences.append(Difference(self.table, show(row_id), label, show(value), show(found)))
        return differences


def show(value: Any) -> str:
    if value is None:
        return "NULL"
    text = str(value) if isinstance(value, (Timestamp, Date, JsonText)) else repr(value)
    return text if len(text) <= SHOWN_VALUE_LENGTH else f"{text[:SHOWN_VALUE_LENGTH]}… ({len(text)} characters)"


def compare_all(lake: Lake, reader: Any, expected: list[ExpectedTable]) -> tuple[int, int, list[Difference]]:
    """Tables looked at, rows found in them, differences."""
    differences: list[Difference] = []
    present = lake.table_paths()
    rows = 0
    for table in expected:
        if table.path not in present:
            count = sum(1 for row in table.rows() if not row.get("optional"))
            if count:
                differences.append(Difference(table.path, "-", "-", f"a table of {count} rows", "no table"))
            continue
        try:
            comparison = TableComparison(lake, reader, table.path)
            comparison.compare(table)
        except ExpectationError:
            raise
        except Exception as error:  # whatever a reader throws: a table that it cannot read is a finding
            differences.append(Difference(table.path, "-", "-", "a readable table", f"{type(error).__name__}: {error}"))
            continue
        rows += comparison.row_count
        differences.extend(comparison.differences)
    for path in sorted(set(present) - {STATUS_TABLE} - {table.path for table in expected}):
        try:
            count = reader.count(path)
        except Exception as error:  # as above
            differences.append(Difference(path, "-", "-", "no table", f"{type(error).__name__}: {error}"))
            continue
        rows += count
        if count:
            differences.append(Difference(path, "-", "-", "no rows: the table is not expected", f"{count} rows"))
    return len(set(present) - {STATUS_TABLE}), rows, differences


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares the tables of a lake with an expectation, cell by cell.")
    parser.add_argument("--expected", required=True, help="folder with tables.json and the rows")
    parser.add_argument("--root", required=True, help="path, or s3://bucket/prefix")
    parser.add_argument("--readers", default="duckdb,polars", help="which readers to ask, separated by commas")
    arguments = parser.parse_args()
    names = arguments.readers.split(",")
    unknown = [name for name in names if name not in READERS]
    if unknown:
        parser.error(f"unknown reader {unknown[0]}; there are {', '.join(READERS)}")
    try:
        expected = read_expectation(arguments.expected)
        lake = Lake(arguments.root)
        total = 0
        for name in names:
            tables, rows, differences = compare_all(lake, READERS[name](lake), expected)
            print(f"{name}: tables {tables} rows {rows} differences {len(differences)}")
            for difference in differences[:SHOWN_DIFFERENCES]:
                print(f"  {difference}")
            if len(differences) > SHOWN_DIFFERENCES:
                print(f"  … and {len(differences) - SHOWN_DIFFERENCES} more")
            total += len(differences)
    except (ExpectationError, OSError, KeyError, ValueError) as error:
        print(f"compare.py: cannot compare: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
