"""docker-compose.yml and deploy/: what files can tell without an engine, and the health checks for real."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.local.embedded import POSTGRES_TUNING
from tests.support.system import PRICING, System, environment, free_port

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
LASTING = {name: service for name, service in SERVICES.items() if service["restart"] != "no"}
STEPS = [
    line.split(maxsplit=1)
    for line in (ROOT / "deploy/Dockerfile").read_text().replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
]
FINAL_STAGE = STEPS[max(i for i, (step, _) in enumerate(STEPS) if step == "FROM") :]


def arguments(step: str, stage: list[list[str]]) -> list[str]:
    return [rest for name, rest in stage if name == step]


def strings(node: Any) -> Iterator[str]:
    """Every string in a YAML document."""
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from strings(child)
    elif isinstance(node, str):
        yield node


def commands() -> Iterator[list[str]]:
    """What our containers run: the image's own command, the services' and the health checks'."""
    yield from (ast.literal_eval(command) for command in arguments("CMD", FINAL_STAGE))
    for service in OURS.values():
        if "command" in service:
            yield service["command"]
        if "healthcheck" in service:
            yield service["healthcheck"]["test"][1:]


def health(role: str, **env: str) -> int:
    done = subprocess.run(
        [sys.executable, ROOT / "deploy/health.py", role],
        env=environment({"PYTHONPATH": str(ROOT), **env}),
        capture_output=True,
        timeout=30,
    )
    return done.returncode


def test_the_parts_of_the_system_are_all_there() -> None:
    foreign = {"redis", "cache", "postgres", "jaeger", "prometheus", "victoriametrics", "grafana"}
    assert set(SERVICES) - foreign == set(OURS) == {"api", "worker", "jobs", "listener", "metrics", "setup"}
    assert len({service["image"] for service in OURS.values()}) == 1


@pytest.mark.parametrize("name", LASTING)
def test_what_stays_up_is_restarted_has_time_to_stop_and_a_health_check(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert {"interval", "timeout", "retries"} <= set(service["healthcheck"])
    assert "stop_grace_period" in service or name == "jaeger"  # which keeps its traces in memory


def test_nothing_starts_before_what_it_needs() -> None:
    needed = {(name, needs): how for name, s in SERVICES.items() for needs, how in s.get("depends_on", {}).items()}
    for (_, needs), how in needed.items():
        condition = "service_healthy" if needs in LASTING else "service_completed_successfully"
        assert how == {"condition": condition}
    for name in ("api", "worker", "jobs", "listener"):
        assert {(name, needs) for needs in ("postgres", "redis", "cache", "setup")} <= set(needed)


def test_ports_are_published_on_the_loopback_only_and_the_stores_not_at_all() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"api", "jaeger", "prometheus", "victoriametrics", "grafana"}
    for port in strings(published):
        assert re.fullmatch(r"127\.0\.0\.1:\$\{\w+:-\d+\}:\d+", port)


def test_images_are_pinned_to_a_version() -> None:
    stages = {rest.split(" AS ")[1] for rest in arguments("FROM", STEPS) if " AS " in rest}
    bases = {rest.split(" AS ")[0] for rest in arguments("FROM", STEPS)} - stages
    foreign = {service["image"] for name, service in SERVICES.items() if name not in OURS}
    for image in bases | foreign:
        assert re.search(r":v?\d+\.\d+", image), image


def test_whoever_counts_does_so_where_it_is_added_up() -> None:
    memory = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["volumes"]["metrics"]["driver_opts"]
    assert memory["type"] == "tmpfs"
    for name in set(OURS) - {"setup"}:
        assert OURS[name]["environment"]["PROMETHEUS_MULTIPROC_DIR"] == "/run/metrics"
        assert "metrics:/run/metrics" in OURS[name]["volumes"]
    assert "PROMETHEUS_MULTIPROC_DIR" not in OURS["setup"]["environment"]
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert scraped[0]["static_configs"] == [
        {"targets": [f"metrics:{OURS['metrics']['environment']['PRICING_METRICS_PORT']}"]}
    ]


def test_what_prometheus_and_grafana_read_is_mounted_and_there() -> None:
    for name in ("prometheus", "grafana"):
        for source in (volume.split(":")[0] for volume in SERVICES[name]["volumes"] if volume.startswith("./")):
            assert (ROOT / source).is_dir()
    provider = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/pricing.yml").read_text())["providers"][0]
    assert any(volume.split(":")[1] == provider["options"]["path"] for volume in SERVICES["grafana"]["volumes"])


def test_our_containers_are_no_root_and_change_nothing_of_their_image() -> None:
    assert re.fullmatch(r"[1-9]\d{3,}(:[1-9]\d{3,})?", arguments("USER", FINAL_STAGE)[-1])
    for service in OURS.values():
        assert "user" not in service
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges"]


def test_every_password_comes_from_the_environment_and_none_is_in_the_image() -> None:
    for text in strings(SERVICES):
        for password in re.findall(r"://[^/@:]*:(.+)@", text):
            assert password.startswith("${PRICING_STORE_PASSWORD:-"), text
    assert SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"].startswith("${")
    for name in ("redis", "cache"):
        assert SERVICES[name]["command"][-2:] == ["--requirepass", SERVICES[name]["environment"]["REDISCLI_AUTH"]]
    baked = " ".join(arguments("ENV", STEPS) + arguments("ARG", STEPS))
    assert not re.search(r"PASSWORD|SECRET|TOKEN|_URL|://", baked)


def test_the_secret_of_keys_is_made_by_the_setup_where_nobody_but_the_api_reads_it() -> None:
    having = {name: service for name, service in OURS.items() if any("keys:" in v for v in service.get("volumes", ()))}
    assert {name: [v for v in service["volumes"] if "keys:" in v] for name, service in having.items()} == {
        "api": ["keys:/run/keys:ro"],
        "setup": ["keys:/run/keys"],
    }
    files = {service["environment"]["PRICING_KEY_SECRET_FILE"] for service in having.values()}
    assert files == {"/run/keys/key-secret"}
    assert "pricing keys first" in SERVICES["setup"]["command"][-1]
    assert any("10001 -m 700 /run/keys" in step for step in arguments("RUN", FINAL_STAGE))


def test_what_the_stream_does_not_take_is_kept_where_it_outlives_the_container() -> None:
    folder = SERVICES["api"]["environment"]["PRICING_TELEMETRY_SPILL_DIR"]
    assert f"spill:{folder}" in SERVICES["api"]["volumes"]
    assert any(f"10001 -m 700 /run/keys {folder}" in step for step in arguments("RUN", FINAL_STAGE))


def test_the_broker_neither_evicts_nor_forgets() -> None:
    command = " ".join(SERVICES["redis"]["command"])
    assert "--appendonly yes --appendfsync always" in command
    assert "--maxmemory-policy noeviction" in command
    assert SERVICES["redis"]["volumes"] == ["redis:/data"]


def test_postgres_is_tuned_as_where_pricing_up_starts_it() -> None:
    program, *options = SERVICES["postgres"]["command"]
    assert program == "postgres"
    assert options[::2] == ["-c"] * (len(options) // 2)
    tuned = dict(option.split("=") for option in options[1::2])
    assert tuned.pop("shared_buffers") == "1GB"
    assert tuned == POSTGRES_TUNING


def test_the_cache_has_an_end_and_begins_empty() -> None:
    command = " ".join(SERVICES["cache"]["command"])
    assert "--appendonly no" in command
    assert "--maxmemory 1gb --maxmemory-policy volatile-lru" in command
    assert SERVICES["cache"]["volumes"] == []
    assert SERVICES["cache"]["tmpfs"] == ["/data"]


def test_the_builder_is_sent_only_what_the_image_is_made_of() -> None:
    rules = [r for r in (ROOT / ".dockerignore").read_text().splitlines() if r and not r.startswith("#")]
    assert rules[0] == "*"
    sent = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = [rest.split()[:-1] for rest in arguments("COPY", STEPS) if not rest.startswith("--from")]
    for source in (source for sources in copied for source in sources):
        assert (ROOT / source).exists()
        assert source in sent or source.split("/")[0] in sent
    assert not {path for path in sent if path.startswith(".")}


def test_every_command_names_something_that_exists() -> None:
    for command in commands():
        match command:
            case ["gunicorn", "-c", config, application]:
                module, factory = re.fullmatch(r"([\w.]+):(\w+)\(\)", application).groups()  # type: ignore[union-attr]
                source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
                assert (ROOT / config).exists()
                assert factory in {n.name for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}
            case ["celery", "-A", module, "worker", *_]:
                assert (ROOT / f"{module.replace('.', '/')}.py").exists()
            case ["python", "-m", module]:
                path = ROOT / module.replace(".", "/")
                assert (path / "__main__.py").exists() or path.with_suffix(".py").exists()
            case ["python", "deploy/health.py", role]:
                assert role in OURS
            case ["sh", "-c", script]:
                for subcommand, options in re.findall(r"\bpricing (\w+)([^&]*)", script):
                    usage = subprocess.run([PRICING, subcommand, "--help"], check=True, capture_output=True, text=True)
                    assert set(re.findall(r"--[\w-]+", options)) <= set(re.findall(r"--[\w-]+", usage.stdout))
            case _:
                pytest.fail(f"who runs {command}?")


def test_every_setting_that_is_given_is_one() -> None:
    done = subprocess.run([PRICING, "config", "--markdown"], check=True, capture_output=True, text=True)
    known = set(re.findall(r"`(PRICING_\w+)`", done.stdout))
    given = {name for service in OURS.values() for name in service["environment"]}
    baked = set(re.findall(r"\b([A-Z_]+)=", " ".join(arguments("ENV", FINAL_STAGE))))
    assert {name for name in given | baked if name.startswith("PRICING_")} <= known


def test_health_checks_pass_where_everything_runs(system: System) -> None:
    assert health("api", PRICING_PORT=str(system.port)) == 0
    assert health("worker", PRICING_BROKER_URL=system.broker_url) == 0
    assert health("listener", PRICING_BROKER_URL=system.broker_url) == 0


def test_health_checks_fail_where_nothing_runs(system: System) -> None:
    nowhere = str(free_port())
    assert health("api", PRICING_PORT=nowhere) != 0
    assert health("worker", PRICING_BROKER_URL=system.broker_url.removesuffix("/0") + "/8") != 0
    assert health("listener", PRICING_BROKER_URL=f"redis://127.0.0.1:{nowhere}/0") != 0
    assert health("metrics", PRICING_METRICS_PORT=nowhere) != 0
