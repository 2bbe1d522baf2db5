"""One part's rows into the database: read, check, stage, refuse, merge, in batches of one transaction each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from app.adapters.catalog_staging import Staging
from app.adapters.catalog_tables import CatalogTables
from app.adapters.rule_tables import RuleTables
from app.catalog.files import Part
from app.catalog.rows import Kind, Row, parse
from app.catalog.staged import staged
from app.domain.rules import Policy
from app.errors import AlreadyExists, InvalidInput, NotFound

BATCH = 20_000
"""Rows per transaction."""


class Refusal(NamedTuple):
    """A row that did not go in: where it is, and why."""

    part: str
    line: int
    reason: str


Progress = Callable[[str, int, int], None]
"""Told of a stage: its name, rows done, rows in all."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Told as things happen."""

    progress: Progress = lambda stage, done, total: None
    refused: Callable[[Refusal], None] = lambda refusal: None


@dataclass(slots=True)
class PartResult:
    """What became of one part's rows. A row that was there already counts as unchanged, and so does one of
    which something newer was said."""

    name: str
    read: int = 0
    new: int = 0
    changed: int = 0
    refused: int = 0

    @property
    def unchanged(self) -> int:
        return self.read - self.new - self.changed - self.refused


def merge_part(connection: sa.Connection, part: Part, position: int, listener: Listener) -> PartResult:
    """Bring a part's rows in. `position` is how new they are: what was said later stays."""
    loader = _Loader(connection, part, position, listener)
    if part.kind is Kind.POLICIES:
        loader.save_policies()
    else:
        loader.merge(Staging(connection, part.kind, position))
    return loader.result


class _Loader:
    def __init__(self, connection: sa.Connection, part: Part, position: int, listener: Listener) -> None:
        self._connection, self._part, self._position, self._listener = connection, part, position, listener
        self.result = PartResult(part.name)

    def merge(self, staging: Staging) -> None:
        last = self._stage(staging)
        with self._connection.begin():
            for line, reason in staging.refuse():
                self._refuse(line, reason)
        for after in range(0, last, BATCH):
            with self._connection.begin():
                merged = staging.merge(after, after + BATCH)
            self.result.new += merged.new
            self.result.changed += merged.changed
            self._progress(0.5 + min(after + BATCH, last) / last / 2)

    def _stage(self, staging: Staging) -> int:
        """Read, check and copy; the last line's number. Reading is the first half of the progress."""
        with self._connection.begin():
            currencies = CatalogTables(self._connection).currencies_by_name()
            staging.open()
        batch: list[tuple[Any, ...]] = []
        last = 0
        for line, row in self._rows():
            last = line
            try:
                batch.append((line, *staged(row, currencies)))
            except InvalidInput as error:
                self._refuse(line, str(error))
            if len(batch) == BATCH:
                self._copy(staging, batch)
                batch = []
        self._copy(staging, batch)
        return last

    def save_policies(self) -> None:
        """One by one: they are few, and no two may share a scope."""
        rules = RuleTables(self._connection)
        seen: dict[str, int] = {}
        for line, row in self._rows():
            assert isinstance(row, Policy)
            if (first := seen.setdefault(row.policy_id, line)) != line:
                self._refuse(line, f"is there twice: line {first} has it already")
                continue
            try:
                with self._connection.begin():
                    self._save_policy(rules, row)
            except (InvalidInput, AlreadyExists) as error:
                self._refuse(line, str(error))

    def _save_policy(self, rules: RuleTables, policy: Policy) -> None:
        try:
            before: Policy | None = rules.policy(policy.policy_id)
        except NotFound:
            before = None
        if policy != before and rules.save_policy(policy, self._position):
            self.result.new += before is None
            self.result.changed += before is not None

    def _rows(self) -> Iterator[tuple[int, Row]]:
        for line, values in self._part.lines():
            self.result.read += 1
            if self.result.read % 1000 == 0:
                self._progress(self.result.read / max(self._part.total, self.result.read) / 2)
            try:
                if isinstance(values, InvalidInput):
                    raise values
                yield line, parse(self._part.kind, values)
            except InvalidInput as error:
                self._refuse(line, str(error))
        self._progress(0.5)

    def _copy(self, staging: Staging, batch: list[tuple[Any, ...]]) -> None:
        if batch:
            with self._connection.begin():
                staging.add(batch)

    def _refuse(self, line: int, reason: str) -> None:
        self.result.refused += 1
        self._listener.refused(Refusal(self._part.name, line, reason))

    def _progress(self, share: float) -> None:
        total = max(self._part.total, self.result.read)
        self._listener.progress(self._part.name, int(share * total), total)
