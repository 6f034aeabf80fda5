"""Readers of Delta tables, each behind the same three questions: how many rows, which rows, and where the table lies.

`version` asks for the table as it was at that version of its log; None for the latest. The count is asked of the reader's SQL, so that
whatever short cut it takes (statistics, deletion vectors not opened) shows.
"""

import os
import urllib.parse
from typing import Any

import deltalake
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from values import Date, Timestamp

URL_SAFE = "/~=+&:'*!$()@,;"


class ExpectationError(Exception):
    """What is asked for cannot be understood."""


# --- Where the lake lies ---------------------------------------------------------------------------------------------


class Lake:
    """The root of the tables, on disk or on S3."""

    def __init__(self, root: str) -> None:
        parsed = urllib.parse.urlsplit(root)
        self.on_s3 = parsed.scheme in ("s3", "s3a")
        if self.on_s3:
            self.base = f"{parsed.netloc}/{parsed.path.strip('/')}".rstrip("/")
            endpoint = urllib.parse.urlsplit(os.environ["AWS_ENDPOINT_URL"])
            self.endpoint_host = endpoint.netloc
            self.endpoint_scheme = endpoint.scheme
            self.region = os.environ.get("AWS_REGION", "us-east-1")
            self.files: pafs.FileSystem = pafs.S3FileSystem(
                access_key=os.environ["AWS_ACCESS_KEY_ID"],
                secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
                endpoint_override=self.endpoint_host,
                scheme=self.endpoint_scheme,
                region=self.region,
            )
        elif parsed.scheme in ("", "file"):
            path = urllib.parse.unquote(parsed.path) if parsed.scheme == "file" else root
            self.base = os.path.abspath(path).rstrip("/")
            self.files = pafs.LocalFileSystem()
        else:
            raise ExpectationError(f"cannot read a lake at {root}")

    def storage_options(self) -> dict[str, str]:
        """For deltalake and Polars."""
        if not self.on_s3:
            return {}
        return {
            "AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"],
            "AWS_ACCESS_KEY_ID": os.environ["AWS_ACCESS_KEY_ID"],
            "AWS_SECRET_ACCESS_KEY": os.environ["AWS_SECRET_ACCESS_KEY"],
            "AWS_REGION": self.region,
            "AWS_ALLOW_HTTP": "true",
        }

    def uri(self, table: str) -> str:
        """A table's address as a URL. Polars mistakes what is written as %XX, so nothing is that need not be; the lake escapes with ~."""
        scheme = "s3" if self.on_s3 else "file"
        return f"{scheme}://{urllib.parse.quote(f'{self.base}/{table}', safe=URL_SAFE)}"

    def table_paths(self) -> list[str]:
        """All tables below the root: folders that have a _delta_log."""
        found: list[str] = []
        open_folders = [self.base]
        while open_folders:
            folder = open_folders.pop()
            entries = self.files.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
            folders = [entry.path for entry in entries if entry.type == pafs.FileType.Directory]
            if any(os.path.basename(path) == "_delta_log" for path in folders):
                found.append(os.path.relpath(folder, self.base))
            else:
                open_folders.extend(folders)
        return sorted(found)


# --- The readers -----------------------------------------------------------------------------------------------------


class DuckDb:
    """DuckDB with its delta extension (Delta Kernel)."""

    def __init__(self, lake: Lake) -> None:
        import duckdb
        import duckdb_extensions

        self.lake = lake
        self.connection = duckdb.connect(config={"allow_unsigned_extensions": "true"})
        self.connection.execute("SET TimeZone = 'UTC'")
        duckdb_extensions.import_extension("delta", con=self.connection)
        self.connection.execute("LOAD delta")
        if lake.on_s3:
            duckdb_extensions.import_extension("httpfs", con=self.connection)
            self.connection.execute("LOAD httpfs")
            values = {
                "KEY_ID": os.environ["AWS_ACCESS_KEY_ID"],
                "SECRET": os.environ["AWS_SECRET_ACCESS_KEY"],
                "REGION": lake.region,
                "ENDPOINT": lake.endpoint_host,
                "URL_STYLE": "path",
            }
            options = ", ".join(f"{key} {sql_text(value)}" for key, value in values.items())
            use_ssl = "true" if lake.endpoint_scheme == "https" else "false"
            self.connection.execute(f"CREATE SECRET lake (TYPE s3, {options}, USE_SSL {use_ssl})")

    def count(self, table: str, version: int | None = None) -> int:
        return self.connection.execute(f"SELECT count(*) FROM {self._scan(table, version)}").fetchone()[0]

    def rows(self, table: str, version: int | None = None) -> pa.Table:
        return self.connection.execute(f"SELECT * FROM {self._scan(table, version)}").to_arrow_table()

    def _scan(self, table: str, version: int | None) -> str:
        at = "" if version is None else f", version = {version}"
        return f"delta_scan({sql_text(self.lake.uri(table))}{at})"


class Polars:
    """Polars, which reads the files itself and the log through deltalake."""

    def __init__(self, lake: Lake) -> None:
        import polars

        self.polars = polars
        self.lake = lake

    def count(self, table: str, version: int | None = None) -> int:
        context = self.polars.SQLContext(lake=self._scan(table, version))
        return context.execute("SELECT count(*) AS n FROM lake", eager=True)["n"][0]

    def rows(self, table: str, version: int | None = None) -> pa.Table:
        return self._scan(table, version).collect().to_arrow()

    def _scan(self, table: str, version: int | None) -> Any:
        options = self.lake.storage_options() or None
        return self.polars.scan_delta(self.lake.uri(table), version=version, storage_options=options)


class DataFusion:
    """The query engine of python deltalake: the lake's own library, so no independent witness, but many people's reader."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake

    def count(self, table: str, version: int | None = None) -> int:
        return self._query(table, version, "SELECT count(*) AS n FROM lake")["n"][0].as_py()

    def rows(self, table: str, version: int | None = None) -> pa.Table:
        return self._query(table, version, "SELECT * FROM lake")

    def _query(self, table: str, version: int | None, query: str) -> pa.Table:
        opened = deltalake.DeltaTable(
            self.lake.uri(table), version=version, storage_options=self.lake.storage_options() or None
        )
        return pa.table(deltalake.QueryBuilder().register("lake", opened).execute(query).read_all())


READERS = {"duckdb": DuckDb, "polars": Polars, "datafusion": DataFusion}


def sql_text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def cells(column: pa.ChunkedArray) -> list[Any]:
    """The cells of a column as plain values, moments and days as integers in a wrapper."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        micros = pc.cast(pc.cast(column, pa.timestamp("us", kind.tz)), pa.int64()).to_pylist()
        return [None if value is None else Timestamp(value) for value in micros]
    if pa.types.is_date(kind):
        days = pc.cast(pc.cast(column, pa.date32()), pa.int32()).to_pylist()
        return [None if value is None else Date(value) for value in days]
    return column.to_pylist()
