"""Catalogue files: CSV, NDJSON and Parquet, row by row, with the number that each row has in its file.

A row that cannot be read is handed on as its problem; the rows after it are read all the same. Amounts come
out as text or decimals: nothing that is text in the file passes through a binary float.
"""

import csv
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import polars as pl
import polars.selectors as cs

from app.catalog.rows import Kind, check_columns, decode_exactly
from app.errors import InvalidInput

Line = tuple[int, Mapping[str, Any] | InvalidInput]
"""A row's number (the file's first line is 1; Parquet's first row is 1), and its values or what is wrong."""

_PARQUET_ROWS = 50_000


class Part(NamedTuple):
    """Rows of one kind. `total` is about how many there are; `lines` reads them, from the start each time."""

    kind: Kind
    name: str
    total: int
    lines: Callable[[], Iterator[Line]]


def file_part(path: Path, kind: Kind | None = None) -> Part:
    """One file, its kind by its name unless given. Raises `InvalidInput` where that or its format is unknown."""
    kind = kind or kind_of(path)
    if kind is None:
        raise InvalidInput(f"{path.name} does not say what it holds: give --kind {'|'.join(Kind)}")
    match path.suffix.lower():
        case ".csv":
            header = _header(path, kind)
            return Part(kind, path.name, _count_lines(path) - 1, lambda: _csv(path, header))
        case ".ndjson" | ".jsonl":
            return Part(kind, path.name, _count_lines(path), lambda: _ndjson(path))
        case ".parquet" | ".pq":
            frame = _scan(path, kind)
            total = int(frame.select(pl.len()).collect().item())
            return Part(kind, path.name, total, lambda: _parquet(frame, total))
    raise InvalidInput(f"{path.name} is none of .csv, .ndjson, .jsonl and .parquet")


def folder_parts(folder: Path) -> list[Part]:
    """Every catalogue file in a folder, in the order in which the kinds build on each other."""
    kinds = ((path, kind_of(path)) for path in sorted(folder.iterdir()) if path.is_file())
    parts = [file_part(path, kind) for path, kind in kinds if kind is not None]
    if not parts:
        raise InvalidInput(f"{folder} holds no file named after {', '.join(Kind)}, such as products.csv")
    return sorted(parts, key=lambda part: list(Kind).index(part.kind))


def kind_of(path: Path) -> Kind | None:
    """The kind that a file is named after: products.csv, list-prices-2024.parquet."""
    name = path.name.lower().replace("-", "_")
    return next((kind for kind in Kind if name.startswith(kind)), None)


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _text_lines(path: Path) -> Iterator[tuple[int, str | InvalidInput]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                yield number, InvalidInput("is not UTF-8")
            else:
                if text.strip():
                    yield number, text


def _header(path: Path, kind: Kind) -> list[str]:
    header = _cells(next(_text_lines(path), (1, InvalidInput("is empty")))[1])
    if isinstance(header, InvalidInput):
        raise InvalidInput(f"{path.name}: {header}")
    check_columns(path.name, kind, header)
    return header


def _csv(path: Path, header: list[str]) -> Iterator[Line]:
    """One record per line: no value may hold a line break, and so a forgotten quote costs one row only."""
    for number, line in itertools.islice(_text_lines(path), 1, None):
        cells = _cells(line)
        if isinstance(cells, InvalidInput):
            yield number, cells
        elif len(cells) != len(header):
            yield number, InvalidInput(f"has {len(cells)} values, not {len(header)}")
        else:
            yield number, dict(zip(header, cells, strict=True))


def _cells(line: str | InvalidInput) -> list[str] | InvalidInput:
    if isinstance(line, InvalidInput):
        return line
    try:
        return [cell.strip() for cell in next(csv.reader((line,), strict=True))]
    except csv.Error as error:
        return InvalidInput(f"is not CSV: {error}")


def _ndjson(path: Path) -> Iterator[Line]:
    for number, line in _text_lines(path):
        if isinstance(line, InvalidInput):
            yield number, line
            continue
        try:
            values = decode_exactly(line)
        except (msgspec.DecodeError, ValueError, ArithmeticError) as error:
            yield number, InvalidInput(f"is not JSON: {error}")
            continue
        yield number, values if isinstance(values, dict) else InvalidInput("is not a JSON object")


def _scan(path: Path, kind: Kind) -> pl.LazyFrame:
    """Floats become their shortest decimal text, which is what was meant: 3.99, not 3.9900000000000002."""
    frame = pl.scan_parquet(path)
    try:
        columns = frame.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InvalidInput(f"{path.name} is not Parquet: {str(error).partition(chr(10))[0]}") from None
    check_columns(path.name, kind, columns)
    return frame.with_columns(cs.float().cast(pl.String))


def _parquet(frame: pl.LazyFrame, total: int) -> Iterator[Line]:
    for start in range(0, total, _PARQUET_ROWS):
        part = frame.slice(start, _PARQUET_ROWS).collect()
        yield from enumerate(part.iter_rows(named=True), start=start + 1)
