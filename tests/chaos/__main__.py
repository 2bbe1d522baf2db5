"""Break everything that can break while prices change, and settle the accounts: python -m tests.chaos --seed 7."""

import argparse
import secrets
import signal
import sys
from pathlib import Path

from tests.chaos.fleet import COMPILER
from tests.chaos.report import save, stories, table
from tests.chaos.run import Options, run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10_000), help="the same seed, the same faults")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long faults go on")
    parser.add_argument("--rate", type=float, default=150.0, help="events a second")
    parser.add_argument("--out", type=Path, default=Path("build"), help="where chaos.json and the ledger go")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that what was started is stopped
    given.out.mkdir(parents=True, exist_ok=True)
    say(f"seed {given.seed}")
    if COMPILER is None:
        say("no clock jumps: there is no C compiler (Debian: apt install gcc)")
    result = run(Options(given.seed, given.minutes * 60, given.out, events_per_s=given.rate), say)
    say("\n" + table(result))
    for story in stories(result):
        say("\n" + story)
    save(result, given.out / "chaos.json")
    say(f"\nwritten: {given.out / 'chaos.json'}, {result.ledger.path}")
    sys.exit(1 if result.violations else 0)


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
