"""Load on the system that runs, for two minutes, beside the run before: python -m loadtests [--scenario NAME] …"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from app.local.addresses import is_ready
from loadtests.chart import draw
from loadtests.scenarios import SCENARIOS
from loadtests.shapes import SHAPES
from loadtests.table import table

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "build" / "load"
START_AND_STOP_S = 120.0
FURTHER = """Whatever else is given goes to Locust:
  --shape NAME    how many users when; each scenario has its own
  -u, --users N   readers (40)
  --rate N        quotes a second that each of them asks for (10); 0: no pause
  --events N      events a second of the storm (300)
  --limits FILE   what has to be kept (loadtests/limits.toml)
  --processes N   Locust processes
make load ARGS="--scenario storm --events 1000"; loadtests/README.md tells more."""


def main() -> int:
    """Locust's exit code: 1 where a limit was breached."""
    options, others = arguments()
    if not is_ready(options.host):
        sys.exit(
            f"Nothing is ready at {options.host}: start the system with `make run` in another terminal, then again."
        )
    options.keep.mkdir(parents=True, exist_ok=True)
    kept = options.keep / f"{options.scenario}.json"
    before = json.loads(kept.read_text()) if kept.exists() else None
    code, figures = run(options, others, kept.with_suffix(".new"), kept.with_suffix(".html"))
    if figures is None:
        return code or 1
    kept.with_suffix(".new").replace(kept)
    image = options.image or kept.with_suffix(".svg")
    draw(figures, before, image)
    console = Console()
    console.print(table(figures, before))
    for file in (kept, kept.with_suffix(".html"), image):
        console.print(f"Written: {file}", highlight=False, soft_wrap=True)
    return code


def run(
    options: argparse.Namespace, others: list[str], written: Path, report: Path
) -> tuple[int, dict[str, Any] | None]:
    """Locust's exit code, and the figures; None where it had none."""
    written.unlink(missing_ok=True)
    locust = [sys.executable, "-m", "locust", "-f", str(ROOT / "loadtests" / "locustfile.py"), "--headless"]
    files = ["--result", str(written), "--html", str(report), "--loglevel", "WARNING"]
    # Its own summary in a file, because it prints whole milliseconds.
    files += ["--only-summary", "--json-file", str(report.with_suffix(".locust"))]
    load = ["--scenario", options.scenario, "--host", options.host, "--run-time", f"{options.seconds}s"]
    done = subprocess.run([*locust, *files, *load, *others], cwd=ROOT, timeout=options.seconds + START_AND_STOP_S)
    return done.returncode, json.loads(written.read_text()) if written.exists() else None


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """Ours, and what goes to Locust as it is."""
    scenarios = "".join(f"\n  {name:14}{scenario.says}" for name, scenario in SCENARIOS.items())
    shapes = "".join(f"\n  {name:14}{says}" for name, says in SHAPES.items())
    parser = argparse.ArgumentParser(
        prog="python -m loadtests",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Plays a scenario against the system that runs; shows the figures beside those before.",
        epilog=f"scenarios:{scenarios}\n\nshapes:{shapes}\n\n{FURTHER}",
    )
    parser.add_argument("--scenario", default="steady", choices=SCENARIOS, help="what is played")
    parser.add_argument("--host", default="http://127.0.0.1:8000", help="where the system answers")
    parser.add_argument("--seconds", type=int, default=110, help="of load (110: two minutes with start and report)")
    parser.add_argument("--keep", type=Path, default=KEPT, help="folder of the results")
    parser.add_argument("--image", type=Path, help="where the drawing goes, .svg or .png")
    return parser.parse_known_args()


if __name__ == "__main__":
    sys.exit(main())
