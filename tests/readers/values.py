"""Values of cells as every reader is made to give them: plain, and exact where Python's own types are not."""

import datetime
from typing import Any, NamedTuple

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
MICROSECOND = datetime.timedelta(microseconds=1)


class Timestamp(NamedTuple):
    """A moment, in microseconds since 1970 UTC; an integer, since readers find years that datetime cannot hold."""

    micros: int

    def __str__(self) -> str:
        try:
            moment = EPOCH + datetime.timedelta(microseconds=self.micros)
            return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
        except OverflowError:
            return f"timestamp of {self.micros} µs since 1970"


class Date(NamedTuple):
    """A day, in days since 1970."""

    days: int

    def __str__(self) -> str:
        try:
            return (EPOCH + datetime.timedelta(days=self.days)).date().isoformat()
        except OverflowError:
            return f"date of {self.days} days since 1970"


def cell_text(value: Any) -> str | None:
    """A value as text, the same for every reader; NULL stays None."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
