"""Apache Spark, 3.5 or 4, with Delta's jars, for a test that keeps this process.

    spark.py JARS_FOLDER [SETTINGS]

One JSON request a line on standard input, one JSON answer a line on standard output: {"done": ...} or {"error": "..."}. The first answer
comes when Spark is up. Ends with its input. "table" is an absolute path or a URL. Requests, by their key "do":
  read   {"table", "version"}: {"columns", "rows": cells as text or null, "count": by SQL}
  inquire {"table", "version", "whole", "questions", "columns"}: as session.py
  sql    {"sql"}: any statements, one after another when it is a list; the rows of the last, cells as text or null
  merge  {"table", "parquet"}: rows by _id; a row whose column __deleted is true leaves the table, any other enters or replaces
Nothing is fetched from anywhere: the jars are those of the folder. SETTINGS: further settings of the session, as a JSON object.
"""

import glob
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
os.environ.pop("SPARK_HOME", None)
os.environ["PYSPARK_PYTHON"] = sys.executable

from pyspark.sql import DataFrame, SparkSession  # noqa: E402
from pyspark.sql.types import DateType, TimestampType  # noqa: E402
from questions import back_quoted as quoted  # noqa: E402
from questions import extremes, spark_literal, where  # noqa: E402
from values import Date, Timestamp, cell_text  # noqa: E402

DELETED = "__deleted"


def start(jars: str, scratch: str, further: dict[str, str]) -> SparkSession:
    settings = {
        "spark.jars": ",".join(sorted(glob.glob(os.path.join(jars, "*.jar")))),
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.memory": "1200m",
        "spark.driver.extraJavaOptions": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m"
        " -Djava.awt.headless=true"
        f" -Dderby.system.home={scratch} -Djava.io.tmpdir={scratch}",
        "spark.local.dir": scratch,
        "spark.log.level": "ERROR",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.warehouse.dir": os.path.join(scratch, "warehouse"),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        # 10,000 tasks for every VACUUM otherwise.
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": "2",
        # 50 tasks for every look at a small log otherwise.
        "spark.databricks.delta.snapshotPartitions": "1",
        # Some thousand tables would be kept for an hour, and what is told of a thousand queries, each: more than the heap.
        "spark.databricks.delta.delta.log.cacheSize": "16",
        "spark.sql.ui.retainedExecutions": "4",
        "spark.ui.retainedJobs": "4",
        "spark.ui.retainedStages": "4",
        "spark.ui.retainedTasks": "16",
        # Tests clean up at once.
        "spark.databricks.delta.retentionDurationCheck.enabled": "false",
    }
    settings |= further
    builder = SparkSession.builder.master("local[2]").appName("lake-tests")
    for key, value in settings.items():
        builder = builder.config(key, value)
    return builder.getOrCreate()


def content(frame: DataFrame) -> dict[str, Any]:
    """Rows of a frame as text. Moments and days are collected as integers, as Python cannot hold them all."""
    columns, wrappers = [], []
    for field in frame.schema.fields:
        name = quoted(field.name)
        if isinstance(field.dataType, TimestampType):
            columns.append(f"unix_micros({name}) AS {name}")
            wrappers.append(Timestamp)
        elif isinstance(field.dataType, DateType):
            columns.append(f"unix_date({name}) AS {name}")
            wrappers.append(Date)
        else:
            columns.append(name)
            wrappers.append(lambda value: value)
    rows = frame.selectExpr(*columns).collect()
    texts = [
        [None if value is None else cell_text(wrap(value)) for wrap, value in zip(wrappers, row)] for row in rows
    ]
    return {"columns": [field.name for field in frame.schema.fields], "rows": texts}


def read(spark: SparkSession, order: dict[str, Any]) -> dict[str, Any]:
    at = "" if order.get("version") is None else f" VERSION AS OF {order['version']}"
    table = f"delta.{quoted(order['table'])}{at}"
    found = content(spark.sql(f"SELECT * FROM {table}"))
    found["count"] = spark.sql(f"SELECT count(*) FROM {table}").collect()[0][0]
    return found


@contextmanager
def interpreting(spark: SparkSession) -> Iterator[None]:
    """Meanwhile Spark interprets its plans and does not compile them to Java classes, which takes longest where few rows meet many conditions.
    What it leaves out of a table, and the reading of row groups, is the same; tables are read whole in the usual way."""
    settings = {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"}
    for name, value in settings.items():
        spark.conf.set(name, value)
    try:
        yield
    finally:
        for name in settings:
            spark.conf.unset(name)


def inquire(spark: SparkSession, order: dict[str, Any]) -> dict[str, Any]:
    at = "" if order.get("version") is None else f" VERSION AS OF {order['version']}"
    table = f"delta.{quoted(order['table'])}{at}"
    # One statement for all questions: planning is what costs. Each is still answered from the table by its own conditions.
    found: list[dict[str, Any]] = [{"ids": [], "count": 0} for _ in order["questions"]]
    rows = [f"FROM {table} WHERE {where(question, spark_literal, quoted)}" for question in order["questions"]]
    if rows:
        ids = " UNION ALL ".join(f"SELECT {number} AS n, _id {of}" for number, of in enumerate(rows))
        counts = " UNION ALL ".join(f"SELECT {number} AS n, count(*) {of}" for number, of in enumerate(rows))
        with interpreting(spark):
            for number, row_id in spark.sql(ids).collect():
                found[number]["ids"].append(row_id)
            for number, count in spark.sql(counts).collect():
                found[number]["count"] = count
    limits: list[str | None] = []
    if order["columns"]:
        limits = content(spark.sql(f"SELECT {extremes(order['columns'], quoted)} FROM {table}"))["rows"][0]
    return {
        "content": read(spark, order) if order["whole"] else None,
        "found": found,
        "extremes": [limits[at : at + 3] for at in range(0, len(limits), 3)],
    }


def sql(spark: SparkSession, order: dict[str, Any]) -> list[list[str | None]]:
    statements = order["sql"] if isinstance(order["sql"], list) else [order["sql"]]
    rows: list[Any] = []
    for statement in statements:
        rows = spark.sql(statement).collect()
    return [[cell_text(value) if not isinstance(value, (list, dict, tuple)) else str(value) for value in row] for row in rows]


def merge(spark: SparkSession, order: dict[str, Any]) -> None:
    table = f"delta.{quoted(order['table'])}"
    source = spark.read.parquet(order["parquet"])
    held = [field.name for field in spark.sql(f"SELECT * FROM {table} LIMIT 0").schema.fields]
    columns = [name for name in source.columns if name != DELETED]
    # A row replaces a row: what it does not have becomes NULL.
    updates = ", ".join(
        f"{quoted(name)} = {'source.' + quoted(name) if name in columns else 'NULL'}"
        for name in held + [name for name in columns if name not in held]
    )
    names = ", ".join(map(quoted, columns))
    values = ", ".join(f"source.{quoted(name)}" for name in columns)
    source.createOrReplaceTempView("source_rows")
    spark.sql(
        f"MERGE WITH SCHEMA EVOLUTION INTO {table} AS target USING source_rows AS source ON target._id = source._id"
        f" WHEN MATCHED AND source.{DELETED} THEN DELETE"
        f" WHEN MATCHED THEN UPDATE SET {updates}"
        f" WHEN NOT MATCHED AND NOT source.{DELETED} THEN INSERT ({names}) VALUES ({values})"
    ).collect()


def without_stack(error: str) -> str:
    """What Java says, and what it says that this came from, without the places in its code."""
    told, *lines = error.split("\n\nJVM stacktrace")[0].split("\n\tat ")
    causes = [line.split("Caused by: ", 1)[1] for line in lines if "Caused by: " in line]
    return "; caused by: ".join([told, *dict.fromkeys(causes)])


def main() -> None:
    # Java prints as it likes; the answers have the real standard output for themselves.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory(prefix="lake-test-spark-", ignore_cleanup_errors=True) as scratch:
        os.chdir(scratch)
        spark = start(sys.argv[1], scratch, json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})
        known = {"read": read, "inquire": inquire, "sql": sql, "merge": merge}
        print(json.dumps({"done": f"Spark {spark.version}"}), file=answers, flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            try:
                answer = {"done": known[order["do"]](spark, order)}
            except Exception as error:  # whatever Spark throws is the answer
                answer = {"error": f"{type(error).__name__}: {without_stack(str(error))}"}
            print(json.dumps(answer), file=answers, flush=True)
        spark.stop()


if __name__ == "__main__":
    main()
