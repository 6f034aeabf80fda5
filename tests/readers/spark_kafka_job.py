"""A Spark job as the lake's predecessor was: it reads topics of Kafka in batches and keeps a checkpoint of each.

    spark_kafka_job.py JARS_FOLDER BOOTSTRAP CHECKPOINTS TOPIC...

Reads what there is, does nothing with it, and ends. The checkpoint of a topic is CHECKPOINTS/TOPIC.
"""

import glob
import os
import sys

os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
os.environ.pop("SPARK_HOME", None)
os.environ["PYSPARK_PYTHON"] = sys.executable

from pyspark.sql import DataFrame, SparkSession  # noqa: E402


def count(batch: DataFrame, number: int) -> None:
    print("batch", number, batch.count(), flush=True)


def main(jars: str, bootstrap: str, checkpoints: str, topics: list[str]) -> None:
    builder = SparkSession.builder.master("local[2]")
    settings = {
        "spark.jars": ",".join(sorted(glob.glob(os.path.join(jars, "*.jar")))),
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.memory": "512m",
        "spark.log.level": "ERROR",
        "spark.sql.shuffle.partitions": "1",
        "spark.ui.enabled": "false",
    }
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    for topic in topics:
        stream = spark.readStream.format("kafka").option("kafka.bootstrap.servers", bootstrap)
        stream = stream.option("subscribe", topic).option("startingOffsets", "earliest").option("maxOffsetsPerTrigger", 40)
        writing = stream.load().writeStream.foreachBatch(count).option("checkpointLocation", f"{checkpoints}/{topic}")
        writing.trigger(availableNow=True).start().awaitTermination()
    spark.stop()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
