"""How much happened, and how long it took."""

import statistics
from collections import Counter
from itertools import pairwise

from tests.chaos.fleet import Fleet
from tests.chaos.invariants import Outcome
from tests.chaos.ledger import Ledger


def figures(fleet: Fleet, ledger: Ledger, outcome: Outcome) -> dict[str, dict[str, float]]:
    """What is worth a line at the end."""
    sent = ledger.sent.values()
    moments = sorted(ledger.acknowledged_at.values())
    waits = [at - ledger.entries[stream_id].at(ledger.began_at) for stream_id, at in ledger.acknowledged_at.items()]
    ways = Counter(one.way for one in sent)
    return {
        "published": {
            **ways,
            "answered with 202": sum(one.accepted for one in sent),
            "tried more than once": sum(len(one.answers) > 1 for one in sent),
            "poison": len(fleet.poison),
        },
        "became": {
            "entries": len(ledger.entries),
            "applied": len(outcome.processed),
            "set aside": len(outcome.letters),
            "versions": sum(map(len, outcome.history.values())),
        },
        "from the stream to the acknowledgement": {
            "s median": round(statistics.median(waits), 2),
            "s for 99 of 100": round(statistics.quantiles(waits, n=100)[98], 2),
            "s the longest": round(max(waits), 2),
            "s the longest without any": round(max(later - earlier for earlier, later in pairwise(moments)), 2),
        },
        "reads": {
            "answered": len(ledger.reads),
            "stale": sum(read.source == "stale" for read in ledger.reads),
            "without an answer": len(ledger.failures),
            "s the longest": round(max(read.answered_at - read.asked_at for read in ledger.reads), 2),
        },
    }
