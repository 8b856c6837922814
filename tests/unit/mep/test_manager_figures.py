"""The endpoint's figures: few labels whatever a user endpoint says, and a server that slow clients can't stop."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mep.boundary.log import Log
from mep.manager import figures
from mep.manager.figures import Figures, listen, serve


@pytest.fixture
def port() -> Iterator[int]:
    listener = listen(0, Log("test"))
    assert listener is not None
    serve(listener, Figures())
    yield listener.getsockname()[1]


def ask(port: int, path: str = "/metrics", method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def values(text: str) -> dict[tuple[str, str], float]:
    """Return every sample by its name and its labels' values, in the order of the labels' names."""
    return {
        (sample.name, " ".join(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_starts_count_by_outcome_code_and_stage() -> None:
    made = Figures()
    made.started("started", "", "", 0.3)
    made.started("refused", "START_FAILED", "PAM_ACCOUNT", 2.0)
    for number in range(100):
        made.started("refused", f"INVENTED_{number}", f"stage {number}", 2.0)
        made.ended(f"INVENTED_{number}")
    found = values(made.text().decode())
    assert found["mep_endpoint_starts_total", " started "] == 1
    assert found["mep_endpoint_starts_total", "START_FAILED refused PAM_ACCOUNT"] == 1
    assert found["mep_endpoint_starts_total", "OTHER refused OTHER"] == 100
    assert found["mep_endpoint_user_endpoint_ends_total", "OTHER"] == 100
    assert found["mep_endpoint_start_seconds_bucket", "0.5 started"] == 1
    assert found["mep_endpoint_start_seconds_bucket", "0.25 started"] == 0
    assert len([key for key in found if key[0] == "mep_endpoint_starts_total"]) == 3


def test_the_present_is_told() -> None:
    made = Figures()
    made.present.link_up, made.present.running, made.present.queued = True, 7, 3
    made.present.oldest_queued_s, made.present.clock_skew_s = 12.5, -600.0
    made.link_lost()
    found = values(made.text().decode())
    told = {name.removeprefix("mep_endpoint_"): value for (name, labels), value in found.items() if not labels}
    assert (told["link_up"], told["user_endpoints"], told["starts_queued"]) == (1, 7, 3)
    assert (told["starts_queued_oldest_seconds"], told["clock_skew_seconds"], told["link_losses_total"]) == (
        12.5,
        -600,
        1,
    )


def test_only_figures_are_served(port: int) -> None:
    status, text = ask(port)
    assert status == 200
    assert "mep_endpoint_link_up 0.0" in text
    assert "_created" not in text
    assert ask(port, "/etc/passwd")[0] == 404
    assert ask(port, method="POST")[0] == 501


def test_slow_clients_only_delay_each_other(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "CLIENT_S", 0.2)
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    for each in slow:
        each.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
    assert ask(port)[0] == 200
    for each in slow:
        each.close()


def test_a_port_that_is_taken_is_an_error_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        assert listen(taken, Log("manager")) is None
        assert f"no figures are served metrics_port={taken}" in capfd.readouterr().err
