"""Readers of Delta tables, each behind the same questions: how many rows, which rows, which of them meet a condition, and what the values
of a column lie between.

`version` asks for the table as it was at that version of its log; None for the latest. Counts are asked of the reader's SQL, so that
whatever short cut it takes (statistics, deletion vectors not opened) shows.
"""

import os
import urllib.parse
from typing import Any, Callable

import deltalake
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import questions
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

    def opened(self, table: str, version: int | None = None) -> "OpenedBySql":
        def ask(query: str) -> pa.Table:
            return self.connection.execute(query).to_arrow_table()

        # Attached, the log is read once for all questions; the whole is asked for as most people do.
        at = "" if version is None else f", VERSION {version}"
        self.connection.execute(f"ATTACH {sql_text(self.lake.uri(table))} AS opened (TYPE delta, PIN_SNAPSHOT{at})")
        close = lambda: self.connection.execute("DETACH opened")  # noqa: E731
        return OpenedBySql(ask, self._scan(table, version), "opened", questions.duckdb_literal, close)

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

    def opened(self, table: str, version: int | None = None) -> "OpenedByPolars":
        return OpenedByPolars(self.polars, self._scan(table, version))

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

    def opened(self, table: str, version: int | None = None) -> "OpenedBySql":
        engine = self._engine(table, version)

        def ask(query: str) -> pa.Table:
            return pa.table(engine.execute(query).read_all())

        return OpenedBySql(ask, "lake", "lake", questions.datafusion_literal)

    def _query(self, table: str, version: int | None, query: str) -> pa.Table:
        return pa.table(self._engine(table, version).execute(query).read_all())

    def _engine(self, table: str, version: int | None) -> Any:
        opened = deltalake.DeltaTable(
            self.lake.uri(table), version=version, storage_options=self.lake.storage_options() or None
        )
        return deltalake.QueryBuilder().register("lake", opened)


class PyArrow:
    """The way of old programs: python deltalake gives the files to PyArrow. Knows no deletion vectors, and says so."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake

    def count(self, table: str, version: int | None = None) -> int:
        return self._dataset(table, version).count_rows()

    def rows(self, table: str, version: int | None = None) -> pa.Table:
        return self._dataset(table, version).to_table()

    def _dataset(self, table: str, version: int | None) -> Any:
        options = self.lake.storage_options() or None
        return deltalake.DeltaTable(self.lake.uri(table), version=version, storage_options=options).to_pyarrow_dataset()


READERS = {"duckdb": DuckDb, "polars": Polars, "datafusion": DataFusion, "pyarrow": PyArrow}


# --- Tables that are asked more than once ----------------------------------------------------------------------------


class OpenedBySql:
    """A table at one version. `ask` runs a query, `whole` and `name` are the table's name in it."""

    def __init__(
        self,
        ask: Callable[[str], pa.Table],
        whole: str,
        name: str,
        literal: questions.Literal,
        close: Callable[[], Any] = lambda: None,
    ) -> None:
        self.ask, self.whole, self.name, self.literal, self.close = ask, whole, name, literal, close

    def rows(self) -> pa.Table:
        return self.ask(f"SELECT * FROM {self.whole}")

    def count(self) -> int:
        return self.ask(f"SELECT count(*) AS n FROM {self.whole}")["n"][0].as_py()

    def ids(self, question: list[dict[str, Any]]) -> list[str]:
        return self.ask(f"SELECT _id FROM {self.name} WHERE {self._where(question)}")["_id"].to_pylist()

    def count_where(self, question: list[dict[str, Any]]) -> int:
        return self.ask(f"SELECT count(*) AS n FROM {self.name} WHERE {self._where(question)}")["n"][0].as_py()

    def extremes(self, columns: list[str]) -> list[Any]:
        found = self.ask(f"SELECT {questions.extremes(columns, questions.double_quoted)} FROM {self.name}")
        return [cells(found.column(name))[0] for name in found.column_names]

    def _where(self, question: list[dict[str, Any]]) -> str:
        return questions.where(question, self.literal, questions.double_quoted)


class OpenedByPolars:
    """A table at one version."""

    def __init__(self, polars: Any, scan: Any) -> None:
        self.polars, self.scan = polars, scan

    def close(self) -> None:
        pass

    def rows(self) -> pa.Table:
        return self.scan.collect().to_arrow()

    def count(self) -> int:
        return self.polars.SQLContext(lake=self.scan).execute("SELECT count(*) AS n FROM lake", eager=True)["n"][0]

    def ids(self, question: list[dict[str, Any]]) -> list[str]:
        found = self.scan.filter(questions.polars_expression(self.polars, question)).select("_id")
        return found.collect()["_id"].to_list()

    def count_where(self, question: list[dict[str, Any]]) -> int:
        found = self.scan.filter(questions.polars_expression(self.polars, question)).select(self.polars.len())
        return found.collect().item()

    def extremes(self, columns: list[str]) -> list[Any]:
        asked = [
            function(self.polars.col(name)).alias(f"{number}_{position}")
            for number, name in enumerate(columns)
            for position, function in enumerate(
                (self.polars.Expr.count, self.polars.Expr.min, self.polars.Expr.max)
            )
        ]
        found = self.scan.select(asked).collect().to_arrow()
        return [cells(found.column(name))[0] for name in found.column_names]


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
