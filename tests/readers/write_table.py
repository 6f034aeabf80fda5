"""Writes a small Delta table for the test of compare.py: {"uri", "storage_options", "rows": [...]} on standard input.

Not a part of the lake: it exists so that the judge is tested on tables that the lake did not write.
"""

import datetime
import json
import sys

import pyarrow as pa
from deltalake import DeltaTable, Field, Schema, write_deltalake
from deltalake.schema import PrimitiveType

COLUMNS = [
    ("_id", "string", "+_id"),
    ("village", "string", "/case_json/village"),
    ("tags", "string", "/case_json/tags"),
    ("opened_on", "timestamp", "/opened_on"),
    ("month", "date", "+month"),
    ("closed", "boolean", "/closed"),
    ("visits", "long", "/visits"),
    ("weight", "double", "/weight"),
    ("_lake_version", "long", "+_lake_version"),
]


def main() -> None:
    order = json.load(sys.stdin)
    options = order.get("storage_options")
    fields = [Field(name, PrimitiveType(kind), metadata={"lake.source": source}) for name, kind, source in COLUMNS]
    table = DeltaTable.create(order["uri"], Schema(fields), storage_options=options)
    for row in order["rows"]:
        if row.get("opened_on"):
            row["opened_on"] = datetime.datetime.fromisoformat(row["opened_on"])
        if row.get("month"):
            row["month"] = datetime.date.fromisoformat(row["month"])
    # One commit a row and a checkpoint in the middle, as a table that has lived.
    for number, row in enumerate(order["rows"]):
        batch = pa.Table.from_pylist([row], schema=pa.schema(table.schema().to_arrow()))
        write_deltalake(table, batch, mode="append")
        if number == 1:
            table.create_checkpoint()


main()
