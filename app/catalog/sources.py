"""What `pricing import` and `pricing up` take: a file, a folder of files, or a catalogue by name."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from app.catalog import completejourney, sample
from app.catalog.files import Part, file_part, folder_parts
from app.catalog.loading import ImportResult, open_importer
from app.catalog.merging import Listener, Progress, Refusal
from app.catalog.rows import Kind
from app.errors import InvalidInput
from app.settings import Settings


class Source(NamedTuple):
    """`name` is what history says about where its prices came from: import:<name>."""

    name: str
    parts: list[Part]


BUILT_IN = {"sample": sample.parts, "completejourney": completejourney.parts}


def open_source(source: str, kind: Kind | None = None) -> Source:
    """The catalogue of that name, or else at that path. Raises `InvalidInput` where there is none or a file's
    columns are wrong; nothing has been imported then."""
    if source in BUILT_IN:
        if kind is not None:
            raise InvalidInput(f"--kind is for a file; {source} holds several kinds")
        return Source(source, BUILT_IN[source]())
    path = Path(source)
    name = re.sub(r"[^A-Za-z0-9._-]", "-", path.resolve().name)[:60]
    if path.is_dir():
        if kind is not None:
            raise InvalidInput(f"--kind is for a file; {source} is a folder, whose files say it by their names")
        return Source(name, folder_parts(path))
    if not path.is_file():
        raise InvalidInput(f"{source} is no file, no folder, and none of {', '.join(BUILT_IN)}")
    return Source(name, [file_part(path, kind)])


def import_source(
    settings: Settings, source: Source, on_progress: Progress, on_refused: Callable[[Refusal], None]
) -> ImportResult:
    """Import into the stores that the settings name. Raises `InvalidInput`, `Unavailable`; a repeat is safe."""
    with open_importer(settings, Listener(on_progress, on_refused)) as importer:
        return importer.run(source.name, source.parts)


def fill(
    settings: Settings, catalog: str, on_progress: Progress, on_refused: Callable[[Refusal], None]
) -> ImportResult | None:
    """Import `catalog` into a database that has no products; `none` imports nothing. Where an earlier import was
    cut short, this one is made all the same, and completes it. Raises as `import_source`."""
    if catalog == "none":
        return None
    with open_importer(settings, Listener(on_progress, on_refused)) as importer:
        if importer.is_filled():
            return None
        source = open_source(catalog)
        return importer.run(source.name, source.parts)
