"""`hyperflax serve` as a process: it ends in order when it is told to, and loses nothing when it is not."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from hyperflax.cli import serve
from hyperflax.cli.main import main
from hyperflax.errors import ConfigError
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
        while "hyperflax_waiting_inputs 800.0" not in http.get("/metrics").text:
            assert not any(future.done() for future in asked), "too fast to be told while all of them wait"
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert [future.result() for future in asked] == [200] * 4
    assert process.wait(60) in (0, -signal.SIGTERM)


def test_callers_and_threads_have_one_time_to_end_in(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    grace, parser = 1, argparse.ArgumentParser()
    serve.add_arguments(parser)
    options = ["--model", str(model), "--port", "0", "--rows", "1", "--grace", str(grace)]
    service, server = serve.build_server(parser.parse_args([*options, "--adapters", str(tmp_path)]))
    thread, go_on = threading.Thread(target=server.run), threading.Event()
    turn, adapt = service.engine.turn, service.model.adapt
    given: list[float] = []  # seconds to each of the two threads

    def held(work: Callable[..., Any]) -> Callable[..., Any]:
        def wait(*arguments: Any, **options: Any) -> Any:
            go_on.wait()
            return work(*arguments, **options)

        return wait

    def recorded(end: Callable[[float | None], Any]) -> Callable[[float | None], Any]:
        def record(seconds: float | None) -> Any:
            given.append(seconds)
            return end(seconds)

        return record

    service.engine.turn, service.model.adapt = held(turn), held(adapt)
    service.maker.stop, service._thread.join = recorded(service.maker.stop), recorded(service._thread.join)
    thread.start()
    try:
        while not service.ready:
            time.sleep(0.1)
        address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        with httpx2.Client(base_url=address, timeout=120) as http, concurrent.futures.ThreadPoolExecutor(2) as callers:
            asked = [
                callers.submit(http.post, "/v1/predictions", json={"inputs": ["ab"]}),
                callers.submit(http.post, "/v1/adapters", json=EXAMPLES),
            ]
            while not (service.waiting and service.maker.adapting):
                time.sleep(0.1)
            began = time.monotonic()
            server.should_exit = True
            thread.join()
            # Neither can end, and the callers have had all of the time; without any, the two threads share it.
            assert time.monotonic() - began >= grace
            assert given == pytest.approx([0, 0], abs=0.01)
            assert [future.result().status_code for future in asked] == [503] * 2
            assert not service.stop(grace)
            assert sum(given[2:]) < grace + 0.01
    finally:
        server.should_exit = True
        go_on.set()
        thread.join()
        assert service.stop()


def test_a_port_that_cannot_be_had_is_an_error(
    model: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["serve", "--model", str(model), "--adapters", str(tmp_path / "adapters"), "--grace", "600"]
    assert main([*arguments, "--port", "99999"]) == 2
    assert "--port: expected 0 to 65535, got 99999" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "hyperflax", *arguments, "--port", str(taken.getsockname()[1])]
        ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=300)
    assert ended.returncode == 2
    assert "address already in use" in ended.stderr


def test_other_machines_need_a_token(model: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model", str(model), "--host", "0.0.0.0"]) == 2
    assert "HYPERFLAX_TOKEN" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("token", "number"),
    [("s\udce9same", 2), ("sesame\nopen", 7), ("sesame\x7f", 7)],  # Latin-1 in the environment; what no header can hold
)
def test_a_token_that_nobody_can_send_is_refused(
    model: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, token: str, number: int
) -> None:
    monkeypatch.setenv("HYPERFLAX_TOKEN", token)
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    told = f"HYPERFLAX_TOKEN: expected printable text in UTF-8, got something else as its character {number}"
    with pytest.raises(ConfigError, match=told):
        serve.build_server(parser.parse_args(["--model", str(model), "--adapters", str(tmp_path)]))


def test_a_service_that_does_not_start_ends(
    model: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("hyperflax.serving.middleware.Token.__init__", broken)  # made when the service is to start
    monkeypatch.setattr("uvicorn.Server.main_loop", lambda _: pytest.fail("it hears callers all the same"))
    assert main(["serve", "--model", str(model), "--adapters", str(tmp_path), "--port", "0"]) == 2


def test_a_token_out_of_a_file_is_the_text_in_it(
    model: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYPERFLAX_TOKEN", "sesame\n")
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    _, server = serve.build_server(parser.parse_args(["--model", str(model), "--adapters", str(tmp_path)]))
    http = TestClient(server.config.app, base_url="http://localhost")
    assert http.get("/v1/model", headers={"Authorization": "Bearer sesame"}).status_code == 200
