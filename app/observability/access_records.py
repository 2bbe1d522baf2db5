"""Access records: a line of JSON for each request.

They are made for many at once, column by column: one by one it takes ten times as long, and Python's lock, for which
who answers would wait.
"""

import json
import time
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate

import numpy as np

from app.observability.notes import Kind, Rows

_WIDTHS = {
    "second": 19, "milli": 3, "micro": 3, "took_s": 3, "took_ms": 3, "took_us": 3, "trace_id": 32, "span_id": 16
}  # fmt: skip
"""What differs between records, each as wide as all others: so the duration may have spaces before it."""

_FILLED, _SPACED = (np.array([f"{n:{form}}" for n in range(1000)], "S3") for form in ("03", ">3"))
LONGEST_US = 10**9 - 1
"""A quarter of an hour; what took longer is shown with that."""

_REST = {"event": "request", "level": "info", "logger": "access"}

_json = json.JSONEncoder(separators=(",", ":")).encode


def access_lines(rows: Rows, kind: Kind, key_id: str, process: str) -> bytes:
    """Those of requests of this kind, with this key, by this process."""
    ended_us = ((time.time() - time.perf_counter() + rows["ended"]) * 1e6).astype(np.int64)
    ended_s = ended_us // 1_000_000
    began_s = int(ended_s.min())
    seconds = np.datetime_as_string(np.arange(began_s, ended_s.max() + 1).astype("M8[s]")).astype("S19")
    took_us = np.clip(np.rint(rows["seconds"] * 1e6), 0, LONGEST_US).astype(np.int64)
    took_s, took_ms = took_us // 1_000_000, took_us // 1000 % 1000
    line, layout = _line(kind, key_id, process)
    text = bytearray(line * len(rows))
    lines = np.frombuffer(text, layout)
    lines["second"] = seconds[ended_s - began_s]
    lines["milli"], lines["micro"] = _FILLED[ended_us // 1000 % 1000], _FILLED[ended_us % 1000]
    lines["took_s"] = np.where(took_s > 0, _SPACED[took_s], b"   ")
    lines["took_ms"] = np.where(took_s > 0, _FILLED[took_ms], _SPACED[took_ms])
    lines["took_us"] = _FILLED[took_us % 1000]
    lines["trace_id"], lines["span_id"] = rows["trace_id"], rows["span_id"]
    return bytes(text)


@lru_cache(1024)
def _line(kind: Kind, key_id: str, process: str) -> tuple[bytes, np.dtype[np.void]]:
    """One record, with room for what differs between them; and where that is."""
    first, last = _json(kind._asdict()), _json({"key_id": key_id, "process": process, **_REST})
    parts = [
        '{"timestamp":"', "second", ".", "milli", "micro", f'Z",{first[1:-1]},"ms":', "took_s", "took_ms", ".",
        "took_us", ',"trace_id":"', "trace_id", '","span_id":"', "span_id", f'",{last[1:]}\n',
    ]  # fmt: skip
    widths = [_WIDTHS.get(part, len(part)) for part in parts]
    offsets = dict(zip(parts, accumulate(widths, initial=0), strict=False))
    line = "".join(" " * _WIDTHS[part] if part in _WIDTHS else part for part in parts).encode()
    formats, places = [f"S{width}" for width in _WIDTHS.values()], [offsets[name] for name in _WIDTHS]
    return line, np.dtype({"names": list(_WIDTHS), "formats": formats, "offsets": places, "itemsize": len(line)})


def pieces(lines: bytes, size: int) -> Iterator[bytes]:
    """As many lines in a piece as one write takes whole."""
    start = 0
    while start < len(lines):
        end = lines.rfind(b"\n", start, start + size) + 1 or lines.index(b"\n", start) + 1
        yield lines[start:end]
        start = end
