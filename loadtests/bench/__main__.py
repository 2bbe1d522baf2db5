"""Measure the service: python -m loadtests.bench [--quick] [--only NAME …] [--seconds S] [--data FOLDER] …"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from loadtests.bench import results
from loadtests.bench.journeys import events
from loadtests.bench.load import need_generators
from loadtests.bench.measures import READS, Bench
from loadtests.bench.outage import outage
from loadtests.bench.recalculation import recalculation
from loadtests.bench.records import records
from loadtests.bench.results import Result
from loadtests.bench.servers import Product
from loadtests.popularity import popularity, real_catalogue

ALL = READS | {"events": events, "recalculation": recalculation, "records": records}
WHEN_NAMED = {"outage": outage}
"""Not among those that run by default: it takes a quarter of an hour for a few figures."""


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that what was started is stopped
    need_generators()
    console = Console()
    load_before = os.getloadavg()[0]
    folder = options.data or Path(tempfile.mkdtemp(prefix="pricing-bench-"))
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)  # PostgreSQL runs as another user when we are root
    catalog = "completejourney" if real_catalogue() and not options.sample else "sample"
    console.print(f"Starting the service with the catalogue {catalog}")
    product = Product(folder, catalog, {"PRICING_WORKERS": str(options.workers)})
    try:
        measured = measure(product.wait(), folder, catalog, options, console)
    finally:
        product.stop()
        if options.data is None:
            shutil.rmtree(folder)
    given = {name: str(value) for name, value in vars(options).items() if value and name != "data"}
    about = results.circumstances({**given, "catalog": catalog}, load_before)
    console.print(f"Written: {results.save(measured, about)}", soft_wrap=True)
    if not options.only and not options.quick:
        console.print(f"Written: {results.document(measured, about)}", soft_wrap=True)


def measure(
    product: Product, folder: Path, catalog: str, options: argparse.Namespace, console: Console
) -> list[Result]:
    bench = Bench(
        product,
        folder,
        popularity(catalog),
        options.workers,
        seconds=options.seconds or 1,
        rounds=5 if options.quick else 15,
        soak_s=options.soak or (60 if options.quick else 600),
        quick=options.quick,
        say=lambda text: console.print(f"  {text}", style="dim", highlight=False, soft_wrap=True),
    )
    measured: list[Result] = []
    for name in options.only or ALL:
        part_of = (ALL | WHEN_NAMED)[name]
        console.print(f"{name}: {part_of.__doc__}", highlight=False)
        part = list(part_of(bench))
        console.print(results.table(part))
        measured += part
    return measured


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench", description="Measures how fast prices are read, changed and recalculated."
    )
    parser.add_argument("--quick", action="store_true", help="a few minutes; no page is written")
    parser.add_argument(
        "--only", action="append", choices=ALL | WHEN_NAMED, help="one part; may be given more than once"
    )
    parser.add_argument("--seconds", type=float, help="length of one run")
    parser.add_argument("--soak", type=float, help="seconds of load on the memory")
    parser.add_argument("--workers", type=int, default=2, help="API processes")
    parser.add_argument("--sample", action="store_true", help="the sample catalogue, also where the real one is there")
    parser.add_argument("--data", type=Path, help="a data folder that is kept: the next run need not import again")
    return parser.parse_args()


if __name__ == "__main__":
    main()
