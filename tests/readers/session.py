"""Asks the readers of lake_readers.py, and changes tables as strangers do (python deltalake), for a test that keeps this process.

    session.py ROOT

One JSON request a line on standard input, one JSON answer a line on standard output: {"done": ...} or {"error": "..."}. Ends with its
input. "table" is a path below ROOT. Requests, by their key "do":
  read      {"reader", "table", "version"}: {"columns", "rows": cells as text or null, "count": by SQL}
  inquire   {"reader", "table", "version", "whole": also the rows, "questions": see questions.py, "columns"}: {"content": as of read, or
            null, "found": [{"ids", "count": by SQL}] for the questions, "extremes": [count, least, greatest] for the columns}
  schema    {"table", "version"}: {column name: its lake.source or null}
  create    {"table", "parquet": its schema is the table's, "partition_by", "configuration"}
  merge     {"table", "parquet"}: rows by _id; a row whose column __deleted is true leaves the table, any other enters or replaces
  delete    {"table", "predicate"}
  update    {"table", "updates": {column: SQL}, "predicate"}
  append    {"table", "parquet"}: rows in columns that the table has
  overwrite {"table", "parquet"}: the rows become those of the file; no other columns
  optimize  {"table"}
  add_column {"table", "column"}: a text column
  set_property {"table", "name", "value"}
  vacuum    {"table", "retention_hours", "full", "dry_run"}: the files that go
  repair    {"table"}: the files that were missing
  version   {"table"}: the latest
"""

import json
import os
import sys
from typing import Any, Callable

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, Field, write_deltalake
from deltalake.schema import PrimitiveType
from lake_readers import READERS, Lake, cells
from values import cell_text

DELETED = "__deleted"


class Session:
    def __init__(self, root: str) -> None:
        self.lake = Lake(root)
        self.readers: dict[str, Any] = {}

    def open(self, order: dict[str, Any]) -> DeltaTable:
        options = self.lake.storage_options() or None
        return DeltaTable(self.lake.uri(order["table"]), version=order.get("version"), storage_options=options)

    def read(self, order: dict[str, Any]) -> dict[str, Any]:
        name = order["reader"]
        reader = self.readers.get(name) or self.readers.setdefault(name, READERS[name](self.lake))
        table, version = order["table"], order.get("version")
        found = reader.rows(table, version)
        columns = [[cell_text(value) for value in cells(found.column(name))] for name in found.column_names]
        rows = [list(row) for row in zip(*columns)] if columns else []
        return {"columns": found.column_names, "rows": rows, "count": reader.count(table, version)}

    def inquire(self, order: dict[str, Any]) -> dict[str, Any]:
        name = order["reader"]
        reader = self.readers.get(name) or self.readers.setdefault(name, READERS[name](self.lake))
        opened = reader.opened(order["table"], order.get("version"))
        try:
            return self.answered(opened, order)
        finally:
            opened.close()

    def answered(self, opened: Any, order: dict[str, Any]) -> dict[str, Any]:
        content = None
        if order["whole"]:
            found = opened.rows()
            columns = [[cell_text(value) for value in cells(found.column(name))] for name in found.column_names]
            rows = [list(row) for row in zip(*columns)] if columns else []
            content = {"columns": found.column_names, "rows": rows, "count": opened.count()}
        found = [
            {"ids": opened.ids(question), "count": opened.count_where(question)} for question in order["questions"]
        ]
        extremes = opened.extremes(order["columns"]) if order["columns"] else []
        extremes = [[cell_text(value) for value in extremes[at : at + 3]] for at in range(0, len(extremes), 3)]
        return {"content": content, "found": found, "extremes": extremes}

    def schema(self, order: dict[str, Any]) -> dict[str, str | None]:
        fields = json.loads(self.open(order).schema().to_json())["fields"]
        return {field["name"]: (field.get("metadata") or {}).get("lake.source") for field in fields}

    def create(self, order: dict[str, Any]) -> int:
        schema = pq.read_schema(order["parquet"])
        if DELETED in schema.names:
            schema = schema.remove(schema.get_field_index(DELETED))
        table = DeltaTable.create(
            self.lake.uri(order["table"]),
            schema,
            partition_by=order.get("partition_by"),
            configuration=order.get("configuration"),
            storage_options=self.lake.storage_options() or None,
        )
        return table.version()

    def merge(self, order: dict[str, Any]) -> int:
        table, source = self.open(order), pq.read_table(order["parquet"])
        # A row replaces a row: what it does not have becomes NULL, so it must name all columns of the table.
        held = pa.schema(table.schema().to_arrow())
        for field in held:
            if field.name not in source.column_names:
                source = source.append_column(field, pa.nulls(source.num_rows, field.type))
        merge = table.merge(
            source,
            predicate="target._id = source._id",
            source_alias="source",
            target_alias="target",
            merge_schema=any(name not in held.names for name in source.column_names if name != DELETED),
        )
        stays = f"NOT source.{DELETED}"
        merge.when_matched_delete(f"source.{DELETED}").when_matched_update_all(stays, except_cols=[DELETED])
        merge.when_not_matched_insert_all(stays, except_cols=[DELETED])
        merge.execute()
        return table.version()

    def delete(self, order: dict[str, Any]) -> int:
        table = self.open(order)
        table.delete(order["predicate"])
        return table.version()

    def update(self, order: dict[str, Any]) -> int:
        table = self.open(order)
        table.update(updates=order["updates"], predicate=order["predicate"])
        return table.version()

    def append(self, order: dict[str, Any]) -> int:
        table = self.open(order)
        write_deltalake(table, pq.read_table(order["parquet"]), mode="append", schema_mode="merge")
        return table.version()

    def overwrite(self, order: dict[str, Any]) -> int:
        table, source = self.open(order), pq.read_table(order["parquet"])
        for field in pa.schema(table.schema().to_arrow()):
            if field.name not in source.column_names:
                source = source.append_column(field, pa.nulls(source.num_rows, field.type))
        write_deltalake(table, source.select([field.name for field in table.schema().fields]), mode="overwrite")
        return table.version()

    def optimize(self, order: dict[str, Any]) -> int:
        table = self.open(order)
        table.optimize.compact()
        return table.version()

    def add_column(self, order: dict[str, Any]) -> int:
        table = self.open(order)
        table.alter.add_columns(Field(order["column"], PrimitiveType("string")))
        return table.version()

    def set_property(self, order: dict[str, Any]) -> int:
        table = self.open(order)
        table.alter.set_table_properties({order["name"]: order["value"]}, raise_if_not_exists=False)
        return table.version()

    def vacuum(self, order: dict[str, Any]) -> list[str]:
        return self.open(order).vacuum(
            retention_hours=order["retention_hours"],
            dry_run=order["dry_run"],
            enforce_retention_duration=False,
            full=order["full"],
        )

    def repair(self, order: dict[str, Any]) -> list[str]:
        found = self.open(order).repair(dry_run=False)
        return list(found.get("files_removed") or [])

    def version(self, order: dict[str, Any]) -> int:
        return self.open(order).version()


def main() -> None:
    # Whatever a library prints goes to the log; the answers have the real standard output for themselves.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    session = Session(sys.argv[1])
    names = (
        *("read", "inquire", "schema", "create", "merge", "delete", "update", "append", "overwrite", "optimize"),
        *("add_column", "set_property", "vacuum", "repair", "version"),
    )
    known: dict[str, Callable[[dict[str, Any]], Any]] = {name: getattr(session, name) for name in names}
    print(json.dumps({"done": "ready"}), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = {"done": known[order["do"]](order)}
        except BaseException as error:  # a panic of a library in Rust is none of Exception's children
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
