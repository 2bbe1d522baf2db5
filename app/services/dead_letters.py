"""What people do with dead letters: look through them, replay them, discard them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from app.domain.dead_letter import DeadLetter, Replayed, Wait, Wanted
from app.domain.events import Event
from app.errors import NotFound, NotReplayable, RateLimited
from app.services.ports import DeadLetters

PAGE = 500
"""Letters that are fetched in one round trip."""

LOOKED_AT = 10_000
"""Letters that one page of a list is searched in, at most."""


@dataclass
class Outcome:
    """What became of letters, by their ids: replayed or discarded, refused with the reason, gone before, or not
    looked at because enough were replayed in this second (`wait` for the next)."""

    replayed: list[Replayed] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    not_yet: list[str] = field(default_factory=list)
    wait: Wait | None = None


def get(letters: DeadLetters, letter_id: str) -> DeadLetter:
    """Raises `NotFound`."""
    letter = letters.get(letter_id)
    if letter is None:
        raise _not_found(letter_id)
    return letter


def page(letters: DeadLetters, wanted: Wanted, before: str, limit: int) -> tuple[list[DeadLetter], str | None]:
    """Letters before that one (or the newest), the newest first, and where the next page begins; None on the last.
    A page may be short, even empty, where few of many are wanted."""
    if not before and wanted.until is not None:
        before = f"{wanted.until}-0"
    found: list[DeadLetter] = []
    for _ in range(LOOKED_AT // PAGE):
        some = letters.newest(before, wanted.since, PAGE)
        for letter in some:
            before = letter.letter_id
            if wanted.has(letter):
                found.append(letter)
                if len(found) == limit:
                    more = letter is not some[-1] or len(some) == PAGE
                    return found, before if more else None
        if len(some) < PAGE:
            return found, None
    return found, before


def oldest_first(letters: DeadLetters, wanted: Wanted) -> Iterator[DeadLetter]:
    """Every wanted letter that is there now; those that come meanwhile are left out."""
    newest = letters.newest("", 0, 1)
    after = ""
    while newest and (some := letters.oldest(after, wanted.since, PAGE)):
        for letter in some:
            if letter.place > newest[0].place or not wanted.reaches(letter):
                return
            after = letter.letter_id
            if wanted.has(letter):
                yield letter


def replay(letters: DeadLetters, letter_id: str) -> Replayed:
    """Raises `NotFound`, `NotReplayable`, `RateLimited`."""
    outcome = replay_some(letters, [letter_id])
    for reason in outcome.refused.values():
        raise NotReplayable(f"dead letter {letter_id!r} holds no event: {reason}")
    for _ in outcome.gone:
        raise _not_found(letter_id)
    return outcome.replayed[0]


def replay_some(letters: DeadLetters, letter_ids: Sequence[str]) -> Outcome:
    """Replay as many as the rate allows now, in this order. Raises `RateLimited` where that is none."""
    outcome = Outcome()
    for n, letter_id in enumerate(letter_ids):
        wait = _replay(letters, letters.get(letter_id), letter_id, outcome)
        if wait is not None:
            if n == 0:
                raise RateLimited("enough was replayed within this second", wait.seconds)
            outcome.not_yet, outcome.wait = list(letter_ids[n:]), wait
            break
    return outcome


def replay_all(
    letters: DeadLetters, meant: Iterable[DeadLetter], sleep: Callable[[float], None], outcome: Outcome
) -> Iterator[None]:
    """Replay letters at the rate that is allowed, noting in `outcome` what became of them; a step each."""
    for letter in meant:
        while (wait := _replay(letters, letter, letter.letter_id, outcome)) is not None:
            sleep(wait.ms / 1000)
        yield


def _replay(letters: DeadLetters, letter: DeadLetter | None, letter_id: str, outcome: Outcome) -> Wait | None:
    """Do it and note it, or how long to wait."""
    if letter is None:
        outcome.gone.append(letter_id)
        return None
    if not isinstance(letter.decoded, Event):
        outcome.refused[letter_id] = str(letter.decoded)
        return None
    answer = letters.replay(letter, letter.decoded)
    if isinstance(answer, Wait):
        return answer
    if answer is None:
        outcome.gone.append(letter_id)
    else:
        outcome.replayed.append(answer)
    return None


def discard(letters: DeadLetters, letter_ids: Sequence[str]) -> Outcome:
    """Throw letters away for good."""
    discarded = letters.discard(letter_ids)
    there = set(discarded)
    return Outcome(discarded=discarded, gone=[letter_id for letter_id in letter_ids if letter_id not in there])


def _not_found(letter_id: str) -> NotFound:
    return NotFound(f"there is no dead letter {letter_id!r}; it may have been replayed or discarded")
