"""A real Prometheus scrapes an endpoint and its relay, and loads the alert rules. The dashboard's figures exist."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from mep_wire.errors import MepError
from tests.support.campus import Campus, make_campus
from tests.support.waiting import until

pytestmark = pytest.mark.root
RESULT_S = 90
ETC = Path(__file__).resolve().parents[2] / "etc"
RULES, DASHBOARD = ETC / "prometheus" / "mep.rules.yml", ETC / "grafana" / "mep.json"
NAME = re.compile(r"\bmep_(?:endpoint|relay)_[a-z_]+\b")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Prometheus:
    """Debian's Prometheus with our example configuration, for this site's ports; it asks the relay with a token."""

    def __init__(self, directory: Path, endpoint_port: int, relay: str, token: str) -> None:
        config = yaml.safe_load((ETC / "prometheus" / "prometheus.yml").read_text())
        config["global"]["scrape_interval"] = "1s"
        for job, target in zip(config["scrape_configs"], (f"127.0.0.1:{endpoint_port}", relay), strict=True):
            job["static_configs"][0]["targets"] = [target]
        (directory / "token").write_text(token)
        config["scrape_configs"][1]["authorization"] = {"credentials_file": str(directory / "token")}
        shutil.copy(RULES, directory)
        self._directory, self._port = directory, free_port()
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))

    def __enter__(self) -> Self:
        directory = self._directory
        argv = [
            "prometheus",
            f"--config.file={directory}/prometheus.yml",
            f"--storage.tsdb.path={directory}/data",
            f"--web.listen-address=127.0.0.1:{self._port}",
        ]
        with (directory / "log").open("w") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=directory)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)

    def ask(self, path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]

    def value(self, expression: str) -> float:
        """Return the only value of an expression. Raises LookupError while it has none."""
        (found,) = self.ask("query", query=expression)["result"] or [None]
        if found is None:
            raise LookupError(expression)
        return float(found["value"][1])


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def place(port: int) -> Iterator[Campus]:
    with make_campus("multi", "site") as made:
        made.endpoint.add_config(f"metrics_port: {port}\n")
        made.endpoint.start()
        yield made


def test_prometheus_sees_what_happened(place: Campus, port: int, tmp_path: Path) -> None:
    with place.executor("alice") as executor:
        executor.submit(pow, 2, 3).result(timeout=RESULT_S)
    for pid in place.pids().values():
        os.kill(pid, signal.SIGKILL)
    with place.executor("bob") as executor:
        executor.submit(pow, 2, 3).result(timeout=RESULT_S)
    with place.executor("mallory") as executor, pytest.raises(MepError):
        executor.submit(pow, 2, 3).result(timeout=RESULT_S)
    relay = place.site.relay.url.removeprefix("http://").rstrip("/")
    with Prometheus(tmp_path, port, relay, place.people["alice"].token) as prometheus:
        unready = (LookupError, OSError)
        for name, expression, expected in (
            ("the link", "mep_endpoint_link_up", 1),
            ("a user endpoint", "mep_endpoint_user_endpoints", 1),
            ("starts", 'sum(mep_endpoint_starts_total{outcome="started"})', 2),
            ("an end", "sum(mep_endpoint_user_endpoint_ends_total)", 1),
            ("a refusal", 'sum(mep_endpoint_starts_total{outcome="refused",code="IDENTITY_NOT_MAPPED"})', 1),
            ("their times", 'sum(mep_endpoint_start_seconds_count{outcome="started"})', 2),
            ("tasks", 'sum(mep_relay_tasks{state="queued"})', 0),
            ("a manager", "mep_relay_managers", 1),
            ("a scrape", 'min(up{job=~"mep-.*"})', 1),
        ):
            until(name, lambda: prometheus.value(expression) == expected, unready=unready, details=_log_of(tmp_path))  # noqa: B023 - at once
        groups = until("rules", lambda: _evaluated(prometheus), unready=unready, details=_log_of(tmp_path))
        assert [group["name"] for group in groups] == ["mep-endpoint", "mep-relay"]
        for rule in (rule for group in groups for rule in group["rules"]):
            assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule
        known = set(prometheus.ask("label/__name__/values"))
    asked = set(NAME.findall(RULES.read_text() + DASHBOARD.read_text()))
    assert asked - known == set(), "alerts and dashboard ask for figures that exist"
    assert {name for name in known if name.startswith("mep_endpoint_")} - asked <= {
        *(f"mep_endpoint_{name}" for name in ("start_queue_seconds_count", "start_queue_seconds_sum")),
        *(f"mep_endpoint_{name}" for name in ("start_mapping_seconds_count", "start_mapping_seconds_sum")),
        *(f"mep_endpoint_{name}" for name in ("start_seconds_count", "start_seconds_sum")),
    }, "no figure is left out of the dashboard"


def _evaluated(prometheus: Prometheus) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = prometheus.ask("rules")["groups"]
    done = all(rule["health"] != "unknown" for group in groups for rule in group["rules"])
    return groups if done else []


def _log_of(directory: Path) -> Any:
    return lambda: (directory / "log").read_text()[-2000:]


def test_figures_are_well_named_and_name_nobody(place: Campus, port: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read()
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    people = [account.name.encode() for account in place.accounts.values()]
    assert not [name for name in (*people, b"example.edu", place.endpoint.id.encode()) if name in text]


def fires(at: str, name: str, labels: dict[str, str], summary: str, description: str) -> dict[str, Any]:
    alert = {
        "exp_labels": {"endpoint": "site", "instance": "i", **labels},
        "exp_annotations": {"summary": summary, "description": description},
    }
    return {"eval_time": at, "alertname": name, "exp_alerts": [alert]}


def is_silent(at: str, name: str) -> dict[str, Any]:
    return {"eval_time": at, "alertname": name, "exp_alerts": []}


def promtool(directory: Path, *words: str) -> None:
    done = subprocess.run(["promtool", *words], cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_fire_when_they_should(tmp_path: Path) -> None:
    shutil.copy(RULES, tmp_path)
    labels = 'instance="i", endpoint="site"'
    refused = f'{{{labels}, outcome="refused", code="START_FAILED", stage="PAM_ACCOUNT"}}'
    failed = {"severity": "warning", "code": "START_FAILED", "stage": "PAM_ACCOUNT"}
    checks = [
        is_silent("1m", "MepLinkDown"),
        fires(
            *("6m", "MepLinkDown", {"severity": "critical"}, "Endpoint site has no link to its relay."),
            "New tasks wait at the relay. `mep status` names the reason.",
        ),
        is_silent("2m", "MepStartsFail"),
        fires(
            *("9m", "MepStartsFail", failed, "Starts fail at endpoint site: START_FAILED PAM_ACCOUNT"),
            "`mep why` with the correlation id of a line `start answered` in the log tells the cause.",
        ),
    ]
    series = [
        {"series": f"mep_endpoint_link_up{{{labels}}}", "values": "1 1 0x10"},
        {"series": f"mep_endpoint_starts_total{refused}", "values": "0 0 0 1 2 3 4 5 6 7 8 9"},
    ]
    tests = {
        "rule_files": ["mep.rules.yml"],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": checks}],
    }
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
    promtool(tmp_path, "test", "rules", "tests.yml")


def test_every_panel_of_the_dashboard_has_a_place_and_a_valid_question(tmp_path: Path) -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    asked = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    assert asked
    rules = [
        {"record": f"x:{number}", "expr": text.replace("$__rate_interval", "5m").replace("$endpoint", ".*")}
        for number, text in enumerate(asked)
    ]
    (tmp_path / "asked.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool(tmp_path, "check", "rules", "asked.yml")
