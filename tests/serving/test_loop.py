"""The event loop stands still for nobody: what reads disks and long texts does it in threads."""

from __future__ import annotations

import asyncio
import pathlib
import threading
from typing import Any

import httpx2
import pytest

from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import CheckpointError
from hyperflax.serving import http as http_module
from hyperflax.serving import service as service_module
from hyperflax.serving.http import create_app
from hyperflax.serving.middleware import Figures
from hyperflax.serving.service import Service
from hyperflax.serving.store import AdapterStore
from tests.evaluation.micro import hypermodel

EXAMPLES = {"examples": [{"input": "ab", "target": "AB"}, {"input": "cd", "target": "CD"}], "estimate": False}


def test_what_takes_long_is_done_in_threads(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = dict[str, set[int]]()  # in which each of these has run

    def watch(place: Any, *names: str) -> None:
        for name in names:
            work = getattr(place, name)

            def watched(*arguments: Any, name: str = name, work: Any = work, **options: Any) -> Any:
                threads.setdefault(name, set()).add(threading.get_ident())
                return work(*arguments, **options)

            still = isinstance(vars(place)[name], staticmethod)
            monkeypatch.setattr(place, name, staticmethod(watched) if still else watched)

    disk, texts, rest = ("identify", "about", "files", "remove", "_look"), ("tokenise", "decode"), ("load_page", "text")
    watch(AdapterStore, *disk)
    watch(service_module, "tokenise")
    watch(Bytes, "decode")
    watch(http_module, "load_page")
    watch(Figures, "text")

    async def run() -> None:
        service = Service(hypermodel(), tmp_path)
        service.start()
        transport = httpx2.ASGITransport(create_app(service))
        try:
            async with httpx2.AsyncClient(transport=transport, base_url="http://test") as http:
                made = await http.post("/v1/adapters", json=EXAMPLES)
                assert made.status_code == 201
                key = made.json()["id"]
                assert (await http.post("/v1/adapters", json=EXAMPLES)).status_code == 200
                for stream in (False, True):
                    body = {"inputs": ["gh", "i"], "adapter": key, "stream": stream}
                    assert (await http.post("/v1/predictions", json=body)).status_code == 200
                for path in ("/v1/adapters", f"/v1/adapters/{key}", f"/v1/adapters/{key}/download", "/", "/metrics"):
                    assert (await http.get(path)).status_code == 200
                assert (await http.delete(f"/v1/adapters/{key}")).status_code == 204
        finally:
            await asyncio.to_thread(service.stop)

    asyncio.run(run())
    assert threads.keys() == {*disk, *texts, *rest}
    loop = threading.get_ident()
    assert [name for name, found in threads.items() if loop in found] == []


def test_parameters_are_hashed_before_anybody_asks(tmp_path: pathlib.Path) -> None:
    model = hypermodel.__wrapped__()  # of which nobody has asked for a fingerprint
    Service(model, tmp_path)
    assert {"base_fingerprint", "hypernetwork_fingerprint"} <= vars(model.parts).keys()


def test_a_folder_that_cannot_be_read_hides_no_other_figure(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    model = hypermodel()
    with monkeypatch.context() as disk:
        disk.setattr("os.scandir", broken)
        service = Service(model, tmp_path)
        assert isinstance(service.store.listed.exception(60), CheckpointError)
    text = Figures(service).text().decode()
    assert "hyperflax_kept_adapters 0.0" in text
    assert "hyperflax_ready 0.0" in text
