"""What is on its way into a stream."""

from collections.abc import Mapping
from typing import NamedTuple


class Parcel(NamedTuple):
    """One entry of a stream, before it is there, and the number of records that it holds."""

    fields: Mapping[bytes, bytes]
    records: int
