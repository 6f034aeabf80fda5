"""Spark's MERGE of batches into a Delta table, timed.

    merge_spark.py --table FOLDER --batches FOLDER --jars FOLDER --work FOLDER [--memory 4g] [--cores 2]
                   [--setting KEY=VALUE ...]

The batches are 0.parquet, 1.parquet, ...; the first is the warm-up, and before it comes a MERGE into a small table, so that the session is
warm. Memory is that of the Java process. JARS holds Delta's jars; WORK is for what Spark leaves lying about.
"""

import argparse
import glob
import json
import os
import sys
import time

os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
os.environ.pop("SPARK_HOME", None)
os.environ["PYSPARK_PYTHON"] = sys.executable

from pyspark.sql import SparkSession  # noqa: E402


def memory(process: int, key: str) -> int:
    with open(f"/proc/{process}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))


def folder_bytes(folder: str) -> int:
    return sum(os.path.getsize(os.path.join(path, name)) for path, _, names in os.walk(folder) for name in names)


def session(arguments: argparse.Namespace) -> SparkSession:
    jars = sorted(glob.glob(os.path.join(os.path.abspath(arguments.jars), "*.jar")))
    if not jars:
        sys.exit(f"there are no jars in {arguments.jars}")
    settings = {
        "spark.driver.memory": arguments.memory,
        "spark.driver.extraClassPath": ":".join(jars),
        "spark.driver.extraJavaOptions": f"-Dderby.system.home={arguments.work}",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.local.dir": arguments.work,
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.warehouse.dir": os.path.join(arguments.work, "warehouse"),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        **dict(setting.split("=", 1) for setting in arguments.setting),
    }
    builder = SparkSession.builder.master(f"local[{arguments.cores}]").appName("merge")
    for key, value in settings.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def merge(spark: SparkSession, table: str, batch: str) -> float:
    spark.read.parquet(batch).createOrReplaceTempView("batch")
    began = time.monotonic()
    spark.sql(
        f"MERGE INTO delta.`{table}` AS target USING batch AS source ON target._id = source._id "
        "WHEN MATCHED THEN UPDATE SET * WHEN NOT MATCHED THEN INSERT *"
    )
    return (time.monotonic() - began) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", required=True)
    parser.add_argument("--batches", required=True)
    parser.add_argument("--jars", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--memory", default="4g")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--setting", action="append", default=[])
    arguments = parser.parse_args()
    arguments.work = os.path.abspath(arguments.work)
    os.makedirs(arguments.work, exist_ok=True)
    table = os.path.abspath(arguments.table)
    count = len(os.listdir(arguments.batches))
    batches = [os.path.join(os.path.abspath(arguments.batches), f"{number}.parquet") for number in range(count)]

    spark = session(arguments)
    java = spark.sparkContext._jvm.java.lang.ProcessHandle.current().pid()
    small = os.path.join(arguments.work, "small")
    spark.read.parquet(batches[0]).write.format("delta").mode("overwrite").save(small)
    merge(spark, small, batches[0])
    before = memory(java, "VmRSS:")
    times, bytes_before = [], 0
    for batch in batches:
        if len(times) == 1:
            bytes_before = folder_bytes(table)
        times.append(merge(spark, table, batch))
    result = {
        "first_ms": times[0],
        "times_ms": times[1:],
        "memory_before": before,
        "memory_peak": memory(java, "VmHWM:"),
        "bytes": folder_bytes(table) - bytes_before,
        "rows": spark.read.format("delta").load(table).count(),
    }
    spark.stop()
    print(f"result: {json.dumps(result)}")


main()
