"""Access records: a line of JSON for each request.

They are made for many at once, column by column: one by one takes five times as long, and Python's lock, for which who
answers would wait.
"""

import json
import time
from functools import lru_cache

import numpy as np

from app.observability.notes import Kind, Noted

_FILLED, _SPACED = (np.array([f"{n:{form}}" for n in range(1000)], "S3") for form in ("03", ">3"))
LONGEST_US = 10**9 - 1
"""16 min 40 s; what took longer is shown with that."""

_REST = {"event": "request", "level": "info", "logger": "access"}
_json = json.JSONEncoder(separators=(",", ":")).encode


def access_lines(same: Noted, kind: Kind, process: str) -> bytes:
    """Those of requests of this kind, by this process. All are as long as the longest: numbers and keys may have spaces
    before them."""
    rows = same.rows
    ended_us = ((time.time() - time.perf_counter() + rows["ended"]) * 1e6).astype(np.int64)
    ended_s = ended_us // 1_000_000
    began_s = int(ended_s.min())
    seconds = np.datetime_as_string(np.arange(began_s, ended_s.max() + 1).astype("M8[s]")).astype("S19")
    took_us = np.clip(np.rint(rows["seconds"] * 1e6), 0, LONGEST_US).astype(np.int64)
    took_s, took_ms = took_us // 1_000_000, took_us // 1000 % 1000
    key_ids = [_json(key_id) for _, _, key_id, *_ in same.said]
    width = max(map(len, key_ids))
    line, layout = _line(kind, width, process)
    text = bytearray(line * len(rows))
    lines = np.frombuffer(text, layout)
    lines["second"] = seconds[ended_s - began_s]
    lines["milli"], lines["micro"] = _FILLED[ended_us // 1000 % 1000], _FILLED[ended_us % 1000]
    lines["took_s"] = np.where(took_s > 0, _SPACED[took_s], b"   ")
    lines["took_ms"] = np.where(took_s > 0, _FILLED[took_ms], _SPACED[took_ms])
    lines["took_us"] = _FILLED[took_us % 1000]
    lines["trace_id"], lines["span_id"] = rows["trace_id"], rows["span_id"]
    lines["key_id"] = np.array([key_id.rjust(width) for key_id in key_ids], f"S{width}")[same.said_of]
    return bytes(text)


@lru_cache(1024)
def _line(kind: Kind, key_width: int, process: str) -> tuple[bytes, np.dtype[np.void]]:
    """One record, with room for what differs between them; and where that is."""
    first, last = _json(kind._asdict())[1:-1], _json({"process": process, **_REST})[1:]
    parts: list[str | tuple[str, int]] = [
        '{"timestamp":"', ("second", 19), ".", ("milli", 3), ("micro", 3), f'Z",{first},"ms":', ("took_s", 3),
        ("took_ms", 3), ".", ("took_us", 3), ',"trace_id":"', ("trace_id", 32), '","span_id":"', ("span_id", 16),
        '","key_id":', ("key_id", key_width), f",{last}\n",
    ]  # fmt: skip
    line, names, formats, offsets = b"", [], [], []
    for part in parts:
        if isinstance(part, str):
            line += part.encode()
            continue
        name, width = part
        names.append(name)
        formats.append(f"S{width}")
        offsets.append(len(line))
        line += b" " * width
    return line, np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": len(line)})
