"""Conditions on the rows of a table, as every reader writes them.

A question is a list of conditions that must all hold: {"column", "kind": the Delta type, "test", "values": texts as values.cell_text gives
them}. Tests: "is" (one value), "null", "not null", "from" (that value or a later one), "within" (both ends included).
"""

import datetime
from typing import Any, Callable

Literal = Callable[[str, str], str]


def double_quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def back_quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _number(kind: str, value: str) -> str:
    return f"CAST('{value}' AS DOUBLE)" if kind == "double" else value


def duckdb_literal(kind: str, value: str) -> str:
    text = "'" + value.replace("'", "''") + "'"
    kinds = {"string": text, "date": f"DATE {text}", "timestamp": f"TIMESTAMPTZ {text}"}
    return kinds.get(kind) or _number(kind, value)


def datafusion_literal(kind: str, value: str) -> str:
    text = "'" + value.replace("'", "''") + "'"
    instant = f"""arrow_cast({text}, 'Timestamp(Microsecond, Some("UTC"))')"""
    kinds = {"string": text, "date": f"DATE {text}", "timestamp": instant}
    return kinds.get(kind) or _number(kind, value)


def spark_literal(kind: str, value: str) -> str:
    text = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    kinds = {"string": text, "date": f"DATE {text}", "timestamp": f"TIMESTAMP {text}"}
    return kinds.get(kind) or _number(kind, value)


def where(question: list[dict[str, Any]], literal: Literal, quoted: Callable[[str], str]) -> str:
    """The question as SQL."""
    conditions = []
    for condition in question:
        name = quoted(condition["column"])
        values = [literal(condition["kind"], value) for value in condition["values"]]
        conditions.append(
            {
                "is": "{0} = {1}",
                "null": "{0} IS NULL",
                "not null": "{0} IS NOT NULL",
                "from": "{0} >= {1}",
                "within": "{0} BETWEEN {1} AND {2}",
            }[condition["test"]].format(name, *values)
        )
    return " AND ".join(conditions)


def extremes(columns: list[str], quoted: Callable[[str], str]) -> str:
    """What to select for the number of values, the least and the greatest of each column: three cells a column."""
    return ", ".join(
        f"{function}({quoted(name)}) AS e{number}_{function}"
        for number, name in enumerate(columns)
        for function in ("count", "min", "max")
    )


def python_value(kind: str, value: str) -> Any:
    if kind in ("long", "integer"):
        return int(value)
    if kind == "double":
        return float(value)
    if kind == "boolean":
        return value == "true"
    if kind == "date":
        return datetime.date.fromisoformat(value)
    if kind == "timestamp":
        return datetime.datetime.fromisoformat(value)
    return value


def polars_expression(polars: Any, question: list[dict[str, Any]]) -> Any:
    """The question as Polars writes it."""
    whole = None
    for condition in question:
        column = polars.col(condition["column"])
        values = [polars.lit(python_value(condition["kind"], value)) for value in condition["values"]]
        test = {
            "is": lambda: column == values[0],
            "null": column.is_null,
            "not null": column.is_not_null,
            "from": lambda: column >= values[0],
            "within": lambda: column.is_between(values[0], values[1]),
        }[condition["test"]]()
        whole = test if whole is None else whole & test
    return whole
