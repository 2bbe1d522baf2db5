"""The spill: in order, each once, whatever dies, is cut or is full."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.adapters.spill import Spill
from app.domain.parcel import Parcel
from app.observability import metrics

LIMIT = 1 << 30


def parcel(n: int, size: int = 10) -> Parcel:
    return Parcel({b"n": b"%d" % n, b"batch": bytes(size)}, n % 3)


def numbers(parcels: list[Parcel]) -> list[int]:
    return [int(each.fields[b"n"]) for each in parcels]


def drain(spill: Spill) -> list[int]:
    """All that is in it, as whoever sends it takes it."""
    drained: list[int] = []
    while parcels := spill.oldest(3):
        drained += numbers(parcels)
        spill.confirm(len(parcels))
    return drained


def damaged() -> float:
    return metrics.telemetry_dropped.labels("damaged")._value.get()  # type: ignore[no-any-return]


@given(st.lists(st.integers(0, 5), max_size=20), st.integers(50, 500))
def test_what_is_spilled_comes_back_in_its_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], segment_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("spill")
    spill = Spill(folder, "a", LIMIT, segment_bytes)
    put: list[int] = []
    got: list[int] = []
    for count in steps:
        parcels = [parcel(len(put) + n) for n in range(count)]
        assert spill.append(parcels) == count
        put += numbers(parcels)
        taken = spill.oldest(2)
        spill_again = spill.oldest(2)
        assert taken == spill_again, "what was not confirmed is there still"
        if taken:
            spill.confirm(len(taken))
            got += numbers(taken)
        assert spill.records == sum(n % 3 for n in put[len(got) :])
    got += drain(spill)
    assert got == put
    assert list(folder.iterdir()) == []
    assert spill.folder_bytes() == 0


def test_what_the_living_hold_is_left_to_them_and_the_rest_is_adopted_once(tmp_path: Path) -> None:
    first, second, third = (Spill(tmp_path, name, LIMIT) for name in "abc")
    first.append([parcel(n) for n in range(5)])
    assert second.adopt() == 0
    first.close()  # as the kernel does for whoever was killed
    assert second.adopt() == sum(n % 3 for n in range(5))
    assert third.adopt() == 0
    second.append([parcel(5)])
    assert drain(second) == [0, 1, 2, 3, 4, 5]


def test_of_a_process_that_was_killed_all_that_it_had_written_is_adopted(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from app.adapters.spill import Spill
from tests.unit.test_spill import parcel
spill = Spill(Path({str(tmp_path)!r}), "killed", 1 << 30, 200)
spill.append([parcel(n) for n in range(20)])
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    heirs = [Spill(tmp_path, f"heir-{n}", LIMIT) for n in range(3)]
    adopted = [heir.adopt() for heir in heirs]
    assert adopted == [sum(n % 3 for n in range(20)), 0, 0]
    assert drain(heirs[0]) == list(range(20))


def test_what_was_read_and_not_confirmed_is_read_again_by_whoever_takes_over(tmp_path: Path) -> None:
    first, second = Spill(tmp_path, "a", LIMIT), Spill(tmp_path, "b", LIMIT)
    first.append([parcel(n) for n in range(6)])
    first.oldest(4)
    first.confirm(2)
    first.close()
    second.adopt()
    assert drain(second) == list(range(6)), "nobody else knows what was confirmed: it may come again"


@given(st.integers(0, 400))
def test_a_segment_whose_end_is_missing_has_all_that_was_whole(
    tmp_path_factory: pytest.TempPathFactory, cut_at: int
) -> None:
    folder = tmp_path_factory.mktemp("spill")
    spill = Spill(folder, "a", LIMIT)
    whole_at = []
    for n in range(8):
        spill.append([parcel(n)])
        whole_at.append(spill.folder_bytes())
    spill.close()
    (path,) = folder.iterdir()
    os.truncate(path, min(cut_at, path.stat().st_size))
    heir = Spill(folder, "b", LIMIT)
    heir.adopt()
    assert drain(heir) == [n for n in range(8) if whole_at[n] <= cut_at]
    assert list(folder.iterdir()) == []


def test_what_is_damaged_is_counted_and_holds_nobody_up(tmp_path: Path) -> None:
    before = damaged()
    spill = Spill(tmp_path, "a", LIMIT)
    sizes = [0]
    for n in range(1, 9):
        spill.append([parcel(n)])
        sizes.append(spill.folder_bytes())
    spill.close()
    (path,) = tmp_path.iterdir()
    with path.open("r+b") as file:
        for n in (2, 8):  # one in the middle, and the last
            file.seek(sizes[n] - 3)
            file.write(b"?")
    heir = Spill(tmp_path, "b", LIMIT)
    heir.adopt()
    assert drain(heir) == [1, 3, 4, 5, 6, 7]
    assert damaged() - before == parcel(2).records + parcel(8).records
    assert heir.records == 0
    assert list(tmp_path.iterdir()) == []


def test_beyond_the_limit_the_newest_do_not_fit_and_room_is_made_by_what_goes(tmp_path: Path) -> None:
    spill = Spill(tmp_path, "a", 1_900, segment_bytes=500)
    assert spill.append([parcel(n, 300) for n in range(10)]) == 5
    assert spill.append([parcel(10, 300)]) == 0
    assert spill.folder_bytes() <= 1_900
    parcels = spill.oldest(2)
    spill.confirm(2)
    assert numbers(parcels) == [0, 1]
    assert spill.append([parcel(11, 300)]) == 1
    assert drain(spill) == [2, 3, 4, 11]


def test_the_limit_is_on_what_all_have_there(tmp_path: Path) -> None:
    first, second = Spill(tmp_path, "a", 1_900), Spill(tmp_path, "b", 1_900)
    assert first.append([parcel(n, 300) for n in range(4)]) == 4
    assert second.append([parcel(n, 300) for n in range(4)]) == 1


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """The kernel writes no file beyond this, as on a full disk: a write is cut short, the next one refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_takes_no_more_leaves_whole_what_it_has(tmp_path: Path) -> None:
    spill = Spill(tmp_path, "a", LIMIT)
    with files_end_at(1_000):
        kept = spill.append([parcel(n, 300) for n in range(5)])
    assert kept == 2
    assert spill.append([parcel(9, 300)], sync=True) == 1, "once there is room again"
    assert drain(spill) == [0, 1, 9]


def test_a_folder_that_cannot_be_made_is_a_disk_that_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spill = Spill(tmp_path / "file" / "folder", "a", LIMIT)
    assert spill.append([parcel(1)]) == 0
    assert spill.adopt() == 0
    assert spill.folder_bytes() == 0
    assert spill.oldest(1) == []


def test_the_last_word_of_a_dead_process_stands_beside_what_it_had_spilled(tmp_path: Path) -> None:
    dead, master, living = (Spill(tmp_path, name, LIMIT) for name in ("killed", "killed", "living"))
    assert dead.append([parcel(1)]) == 1
    dead.close()  # as the kernel does for it
    assert master.append([parcel(2)]) == 1
    master.close()
    living.adopt()
    assert drain(living) == [1, 2]
