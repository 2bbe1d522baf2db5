"""One process that writes records of requests from the stream to a sink: python -m loadtests.bench.consumer SINK

It does what a worker's task does, without Celery: its turns, one after the other, until nothing is left. It prints how
many seconds that took, and how many of them it used a processor.
"""

import sys
import time

from app.bootstrap import open_resources
from app.settings import Settings
from loadtests.bench.records import TURN_S


def main(sink: str) -> None:
    resources = open_resources(Settings())
    resources.records.ensure()
    resources.record_sinks.consumer(sink)
    began, used = time.perf_counter(), time.process_time()
    while resources.record_sinks.work(sink, TURN_S):
        pass
    sys.stdout.write(f"{time.perf_counter() - began} {time.process_time() - used}\n")


if __name__ == "__main__":
    main(sys.argv[1])
