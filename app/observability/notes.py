"""One answered request, as it waits to be written down; and many of them, as they are."""

import struct
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt


class Kind(NamedTuple):
    """What requests are counted by."""

    method: str
    route: str
    status: int


Said = tuple[Kind, str, str, bytes | None, bytes | None, bool]
"""What many requests have in common: their kind, the address at the other end of the connection, the id of their key,
X-Forwarded-For and X-User-ID as they came, and whether their trace is kept."""

Note = tuple[bytes, Said]
"""One answered request, as it waits to be taken: a row of numbers is half as large as an object for each, and what
gathers until the next round shall fit into the processor's caches beside what is needed to answer."""

row = struct.Struct("<QddQI55s").pack
ROW = np.dtype(
    {
        # Of this process' requests, from 1 on; as `time.perf_counter` has it; in seconds; of the body; quotes that were
        # answered from this process' memory, without their endpoint; ids in hex, as in the request's traceparent.
        "names": ["number", "ended", "seconds", "sent_bytes", "at_hand", "trace_id", "span_id"],
        "formats": ["<u8", "<f8", "<f8", "<u8", "<u4", "S32", "S16"],
        "offsets": [0, 8, 16, 24, 32, 39, 72],
        "itemsize": 91,
    }
)
Rows: TypeAlias = npt.NDArray[np.void]


class Noted(NamedTuple):
    """Answered requests in columns: `rows` (dtype `ROW`), and for each its place in `said`."""

    rows: Rows
    said: Sequence[Said]
    said_of: npt.NDArray[np.uint16]

    @classmethod
    def of(cls, notes: Sequence[Note]) -> "Noted":
        rows, said = zip(*notes, strict=True)
        places: dict[Said, int] = {}
        said_of = [places.setdefault(each, len(places)) for each in said]
        return cls(np.frombuffer(b"".join(rows), ROW), list(places), np.array(said_of, np.uint16))

    def only(self, which: slice | npt.NDArray[np.bool_]) -> "Noted":
        """Some of these rows, and what these have in common."""
        used, said_of = np.unique(self.said_of[which], return_inverse=True)
        return Noted(self.rows[which], [self.said[place] for place in used.tolist()], said_of.astype(np.uint16))
