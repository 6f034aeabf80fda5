"""Rewrites all files of a table that has no deletion vectors, as somebody does who wants it in another order.

    rewrite_deltalake.py --table FOLDER

A z-order writes every file anew, a single one too; the rows stay the same.
"""

import argparse
import json
import sys
import time

import deltalake

ORDER = ["month", "supervisor_id"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", required=True)
    arguments = parser.parse_args()
    table = deltalake.DeltaTable(arguments.table)
    before = set(table.file_uris())
    began = time.monotonic()
    table.optimize.z_order(ORDER)
    seconds = time.monotonic() - began
    after = set(deltalake.DeltaTable(arguments.table).file_uris())
    left = before & after
    if left or not after:
        sys.exit(f"{len(left)} of {len(before)} files were not rewritten, {len(after)} are there now")
    print("result: " + json.dumps({"seconds": seconds, "files_before": len(before), "files_after": len(after)}))


main()
