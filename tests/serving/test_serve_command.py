"""`hyperflax serve` as a process: it ends in order when it is told to, and loses nothing when it is not."""

from __future__ import annotations

import concurrent.futures
import contextlib
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx2
import pytest

from hyperflax.cli.main import main
from tests.evaluation.micro import hypermodel

EXAMPLES = {"examples": [{"input": "ab", "target": "AB"}, {"input": "cd", "target": "CD"}], "estimate": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("served") / "model"
    hypermodel().save(folder)
    return folder


@pytest.fixture
def running() -> Iterator[contextlib.ExitStack]:
    """Processes that a test has started, and connections to them; they end with it."""
    with contextlib.ExitStack() as started:
        yield started


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def start(
    model: pathlib.Path, folder: pathlib.Path, running: contextlib.ExitStack
) -> tuple[subprocess.Popen[str], httpx2.Client]:
    command = [sys.executable, "-m", "hyperflax", "serve", "--model", str(model), "--port", "0", "--rows", "2"]
    process = subprocess.Popen(
        [*command, "--adapters", str(folder / "adapters")],
        stderr=subprocess.PIPE,
        text=True,
    )
    running.callback(end, process)
    assert process.stderr is not None
    told = ""
    for line in process.stderr:
        told += line
        if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
            http = running.enter_context(httpx2.Client(base_url=found[1], timeout=120))
            while http.get("/readyz").status_code != 200:
                time.sleep(0.1)
            return process, http
    pytest.fail(f"the service did not start:\n{told}")


def test_killed_it_is_back_with_every_adapter_it_had_confirmed(
    model: pathlib.Path, tmp_path: pathlib.Path, running: contextlib.ExitStack
) -> None:
    process, http = start(model, tmp_path, running)
    made = http.post("/v1/adapters", json=EXAMPLES)
    assert made.status_code == 201
    process.kill()
    process.wait()
    _, http = start(model, tmp_path, running)
    assert http.post("/v1/adapters", json=EXAMPLES).status_code == 200
    answer = http.post("/v1/predictions", json={"inputs": ["ef"], "adapter": made.json()["id"]})
    expected = hypermodel().predict(["ef"], hypermodel().adapt([("ab", "AB"), ("cd", "CD")]))
    assert [row["text"] for row in answer.json()["predictions"]] == expected


def test_told_to_end_it_answers_first(
    model: pathlib.Path, tmp_path: pathlib.Path, running: contextlib.ExitStack
) -> None:
    process, http = start(model, tmp_path, running)
    inputs = ["ab", "cd", "ef", "gh"] * 50

    def ask(_: int) -> int:
        return len(http.post("/v1/predictions", json={"inputs": inputs}).json()["predictions"])

    with concurrent.futures.ThreadPoolExecutor(4) as callers:
        asked = [callers.submit(ask, number) for number in range(4)]
        while "hyperflax_waiting_inputs 800.0" not in http.get("/metrics").text and not all(a.done() for a in asked):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert [future.result() for future in asked] == [200] * 4
    assert process.wait(60) in (0, -signal.SIGTERM)


def test_other_machines_need_a_token(model: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model", str(model), "--host", "0.0.0.0"]) == 2
    assert "HYPERFLAX_TOKEN" in capsys.readouterr().err
