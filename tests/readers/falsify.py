"""Falsifies a table of the lake as another program might: {"storage_options", "person": uri, "household": uri, "leave": [id, ...]} on
standard input.

Prints which rows it took for what, as JSON. Not a part of the lake: it writes with deltalake alone.
"""

import datetime
import json
import sys

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake


def append(table: DeltaTable, rows: list) -> None:
    # Columns that the rows do not have are NULL.
    schema = pa.schema(table.schema().to_arrow())
    batch = pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)
    write_deltalake(table, batch, mode="append")


def without(table: DeltaTable, ids: list) -> None:
    quoted = ", ".join("'" + id.replace("'", "''") + "'" for id in ids)
    table.delete(f"_id IN ({quoted})")


def main() -> None:
    order = json.load(sys.stdin)
    options = order.get("storage_options")
    person, household = (DeltaTable(order[name], storage_options=options) for name in ("person", "household"))
    rows = [row for row in person.to_pyarrow_table().to_pylist() if row["_id"] not in order["leave"]]
    rows.sort(key=lambda row: row["_id"])
    removed, stale, back, moved, buried, model = rows[:6]
    day = datetime.timedelta(days=1)
    without(person, [row["_id"] for row in (removed, stale, back, moved)])
    # An older save of one, and of another one a later save than HQ has: there its time went back.
    old = stale | {"name": "as it never was", "server_modified_on": stale["server_modified_on"] - day}
    later = back | {"name": "of tomorrow", "server_modified_on": back["server_modified_on"] + day}
    later["_lake_version"] += 86_400_000_000
    too_many = model | {"_id": "a-row-too-many", "case_id": "a-row-too-many"}
    append(person, [old, later, too_many])
    append(household, [moved | {"type": "household"}])
    names = {"removed": removed, "stale": stale, "back": back, "moved": moved, "buried": buried}
    print(json.dumps({name: row["_id"] for name, row in names.items()} | {"extra": "a-row-too-many"}))


main()
