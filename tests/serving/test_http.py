"""The service over HTTP: what it answers is what the model says, whoever else asks; what is wrong is named; what was
accepted is answered."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import itertools
import json
import pathlib
import re
import threading
import time
import zipfile
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient

import hyperflax
from hyperflax.errors import DataError
from hyperflax.serving.bounds import ServiceConfig
from hyperflax.serving.http import Limits, create_app
from hyperflax.serving.middleware import BodyLimit
from hyperflax.serving.service import Service
from tests.evaluation.micro import hypermodel

PAIRS = [("ab", "AB"), ("cd", "CD"), ("ef", "EF")]
INPUTS = ["gh", "i", "jklm"]
SIZES = ServiceConfig(rows=4, resident=2, hosted=3)


def examples(pairs: list[tuple[str, str]] = PAIRS, **options: Any) -> dict[str, Any]:
    return {"examples": [{"input": x, "target": y} for x, y in pairs], **options}


@contextlib.contextmanager
def client(folder: pathlib.Path, config: ServiceConfig = SIZES, **options: Any) -> Iterator[TestClient]:
    service = Service(hypermodel(), folder, config)
    with TestClient(create_app(service, **options)) as http:
        http.service = service
        wait_until_ready(http)
        yield http


def wait_until_ready(http: Any) -> None:
    while http.get("/readyz").status_code != 200:
        assert http.get("/healthz").status_code == 200
        time.sleep(0.05)


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with client(tmp_path_factory.mktemp("adapters")) as started:
        yield started


def texts(response: httpx2.Response) -> list[str]:
    assert response.status_code == 200, response.text
    rows = response.json()["predictions"]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    assert all(row["done"] for row in rows)
    return [row["text"] for row in rows]


def test_adapters_answer_as_the_model_does(http: TestClient) -> None:
    model = hypermodel()
    made = http.post("/v1/adapters", json=examples(estimate=False))
    assert made.status_code == 201
    info = made.json()
    assert (info["examples"], info["refine_steps"], info["estimate"]) == (3, 0, None)
    assert info["id"] in http.get("/v1/adapters").json()["adapters"]
    adapted = texts(http.post("/v1/predictions", json={"inputs": INPUTS, "adapter": info["id"]}))
    assert adapted == model.predict(INPUTS, model.adapt(PAIRS))
    bare = texts(http.post("/v1/predictions", json={"inputs": INPUTS}))
    assert bare == model.predict(INPUTS)
    assert adapted != bare
    short = texts(http.post("/v1/predictions", json={"inputs": INPUTS, "max_length": 2, "adapter": info["id"]}))
    assert short == model.predict(INPUTS, model.adapt(PAIRS), max_length=2)


def test_adapters_are_listed_in_pages(tmp_path: pathlib.Path) -> None:
    with client(tmp_path) as http:
        assert http.get("/v1/adapters").json() == {"adapters": [], "next": None, "total": 0}
        keys = [
            http.post("/v1/adapters", json=examples([(letter, "x")], estimate=False)).json()["id"] for letter in "abcde"
        ][::-1]
        assert http.get("/v1/adapters").json() == {"adapters": keys, "next": None, "total": 5}
        first = http.get("/v1/adapters", params={"limit": 2}).json()
        assert first == {"adapters": keys[:2], "next": keys[1], "total": 5}
        rest = http.get("/v1/adapters", params={"limit": 1000, "after": first["next"]}).json()
        assert rest == {"adapters": keys[2:], "next": None, "total": 5}
        for wrong in ("0", "1001", "x"):
            answer = http.get("/v1/adapters", params={"limit": wrong})
            assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["query", "limit"])
        assert http.delete(f"/v1/adapters/{keys[1]}").status_code == 204
        gone = http.get("/v1/adapters", params={"after": keys[1]})
        assert gone.status_code == 404
        assert f"'{keys[1]}', so that nothing follows it: begin again without it" in gone.json()["detail"]
        assert "hyperflax_kept_adapters 4.0" in http.get("/metrics").text


def test_a_full_folder_takes_no_new_adapter_and_loses_none(tmp_path: pathlib.Path) -> None:
    with client(tmp_path, dataclasses.replace(SIZES, kept=2)) as http:
        bodies = [examples([(letter, "x"), (letter * 2, "y")], estimate=False) for letter in "abc"]
        made = [http.post("/v1/adapters", json=body) for body in bodies]
        assert [answer.status_code for answer in made] == [201, 201, 507]
        assert "2 adapters are kept" in made[2].json()["detail"]
        assert "delete some, or raise the bound (--max-adapters)" in made[2].json()["detail"]
        # What is there is answered, and may get its estimate.
        keys = [answer.json()["id"] for answer in made[:2]]
        again = http.post("/v1/adapters", json={**bodies[0], "estimate": True})
        assert (again.status_code, again.json()["id"]) == (200, keys[0])
        assert again.json()["estimate"]
        assert http.get("/v1/adapters").json()["adapters"] == keys[::-1]
        assert http.delete(f"/v1/adapters/{keys[0]}").status_code == 204
        assert http.post("/v1/adapters", json=bodies[2]).status_code == 201


def test_equal_examples_have_one_adapter(http: TestClient) -> None:
    first = http.post("/v1/adapters", json=examples(PAIRS[:2], estimate=False, refine_steps=1))
    again = http.post("/v1/adapters", json=examples(PAIRS[:2], estimate=False, refine_steps=1))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    other = http.post("/v1/adapters", json=examples(PAIRS[:2], estimate=False, refine_steps=2))
    assert other.json()["id"] != first.json()["id"]


def fail(*arguments: Any, **options: Any) -> None:
    raise DataError("there is no estimate")


def adapters_made(http: TestClient) -> int:
    (line,) = re.findall(r"^hyperflax_adapters_made_total (\S+)$", http.get("/metrics").text, re.MULTILINE)
    return int(float(line))


def test_an_estimate_is_made_by_the_metric_that_was_asked_for(http: TestClient) -> None:
    pairs = [("m", "M N"), ("o", "O P")]
    for metric, new in (("rouge_l", True), ("exact_match", False)):
        answer = http.post("/v1/adapters", json=examples(pairs, metric=metric))
        assert answer.status_code == (201 if new else 200)
        estimate = answer.json()["estimate"]
        assert (estimate["metric"], estimate["made"]) == (metric, "generated")
    for metric, told in (("macro_f1", "expected one that scores an example alone"), ("none", "metric")):
        answer = http.post("/v1/adapters", json=examples(pairs, metric=metric))
        assert answer.status_code == 422
        assert told in answer.text


def test_an_adapter_has_a_deadline_and_is_made_all_the_same(http: TestClient) -> None:
    body = examples([("late", "L"), ("later", "LL")], estimate=False)
    before = adapters_made(http)
    assert http.post("/v1/adapters", json={**body, "seconds": 1e-6}).status_code == 504
    while adapters_made(http) == before:
        time.sleep(0.01)
    assert http.post("/v1/adapters", json=body).status_code == 200


def test_a_disk_that_takes_nothing_more_is_told(http: TestClient) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    body = examples([("q", "Q"), ("t", "T")], estimate=False)
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr("hyperflax.serving.store.save_adapter", full)
        answer = http.post("/v1/adapters", json=body)
    assert (answer.status_code, answer.json()["detail"]) == (
        507,
        "the service cannot save adapters: its disk refuses them",
    )
    assert http.post("/v1/adapters", json=body).status_code == 201


def test_equal_inputs_are_drawn_apart_and_equal_requests_alike(http: TestClient) -> None:
    body = {"inputs": ["ab"] * 8, "temperature": 5.0, "seed": 3}
    first, again, other = (texts(http.post("/v1/predictions", json={**body, **more})) for more in ({}, {}, {"seed": 4}))
    assert first == again != other
    assert len(set(first)) > 1


def test_an_adapter_counts_once_it_is_saved(http: TestClient) -> None:
    before = adapters_made(http)
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr("hyperflax.serving.maker.estimate", fail)
        assert http.post("/v1/adapters", json=examples([("r", "R"), ("s", "S")])).status_code == 422
    assert adapters_made(http) == before + 1
    again = http.post("/v1/adapters", json=examples([("r", "R"), ("s", "S")], estimate=False))
    assert again.status_code == 200
    assert adapters_made(http) == before + 1


def test_the_estimate_is_kept_and_may_come_later(http: TestClient) -> None:
    body = examples([*PAIRS, ("x", "X")])
    assert http.post("/v1/adapters", json={**body, "estimate": False}).json()["estimate"] is None
    before = adapters_made(http)
    later = http.post("/v1/adapters", json=body)
    assert later.status_code == 200
    assert adapters_made(http) == before
    found = later.json()["estimate"]
    assert found["advice"] in ("use", "refine", "give more examples", "fine-tune")
    assert {"bare", "in_context", "generated", "refined", "mismatched"} == set(found["conditions"])
    assert http.get(f"/v1/adapters/{later.json()['id']}").json()["estimate"] == found
    assert http.post("/v1/adapters", json=body).status_code == 200


def test_a_stream_grows_to_the_whole_answer(http: TestClient) -> None:
    with http.stream("POST", "/v1/predictions", json={"inputs": INPUTS, "stream": True}) as response:
        assert response.status_code == 200
        rows = [json.loads(line) for line in response.iter_lines()]
    last = {row["index"]: row for row in rows}
    assert [last[index]["text"] for index in range(3)] == hypermodel().predict(INPUTS)
    assert all(row["done"] for row in last.values())
    steps = [row["text"] for row in rows if row["index"] == 0]
    assert all(len(before) <= len(after) for before, after in itertools.pairwise(steps))


def test_sampling_with_one_seed_is_one_answer(http: TestClient) -> None:
    body = {"inputs": ["a"] * 4, "temperature": 5.0, "seed": 7}
    first, again = (texts(http.post("/v1/predictions", json=body)) for _ in range(2))
    assert first == again
    assert texts(http.post("/v1/predictions", json={**body, "seed": 8})) != first


def test_download_is_an_adapter(http: TestClient, tmp_path: pathlib.Path) -> None:
    key = http.post("/v1/adapters", json=examples(estimate=False)).json()["id"]
    for form, names in (
        ("native", {"adapter.json", "adapter.safetensors"}),
        ("peft", {"adapter_config.json", "adapter_model.safetensors"}),
    ):
        answer = http.get(f"/v1/adapters/{key}/download", params={"form": form})
        assert answer.headers["content-type"] == "application/zip"
        archive = zipfile.ZipFile(io.BytesIO(answer.content))
        assert names <= {pathlib.PurePath(name).name for name in archive.namelist()}
        archive.extractall(tmp_path / form)
    (folder,) = (tmp_path / "native").iterdir()
    model = hypermodel()
    assert model.predict(INPUTS, hyperflax.load_adapter(folder)) == model.predict(INPUTS, model.adapt(PAIRS))


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("adapters", {}, "examples"),
        ("adapters", {"examples": []}, "examples"),
        ("adapters", {"examples": [{"input": "a"}]}, "target"),
        ("adapters", {"examples": [{"input": "a", "target": 3}]}, "target"),
        ("adapters", examples(refine_steps=-1), "refine_steps"),
        ("adapters", examples(refine_steps=10**6), "refine_steps"),
        ("adapters", examples(supports=4), "supports"),
        ("adapters", examples(misspelt=1), "misspelt"),
        ("adapters", examples([("a" * 500, "b")]), "example"),
        ("predictions", {"inputs": []}, "inputs"),
        ("predictions", {"inputs": "abc"}, "inputs"),
        ("predictions", {"inputs": ["a"] * 1000}, "inputs"),
        ("predictions", {"inputs": ["fine", "a" * 500]}, "input 1: expected at most 15 tokens, got 500"),
        ("predictions", {"inputs": ["a" * 500], "stream": True}, "input 0"),
        ("predictions", {"inputs": ["a"], "max_length": 0}, "max_length"),
        ("predictions", {"inputs": ["a"], "max_length": 1000}, "max_length"),
        ("predictions", {"inputs": ["a"], "topp": 1.5}, "topp"),
        ("predictions", {"inputs": ["a"], "seed": 2**32}, "seed"),
        ("predictions", {"inputs": ["a"], "topk": 2**31}, "topk"),
        ("predictions", {"inputs": ["a"], "temperature": 1e300}, "temperature"),
        ("predictions", {"inputs": ["a"], "seconds": -1}, "seconds"),
    ],
)
def test_wrong_input_is_named(http: TestClient, path: str, body: dict[str, Any], field: str) -> None:
    answer = http.post(f"/v1/{path}", json=body)
    assert answer.status_code == 422
    assert field in answer.text


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("adapters", r'{"examples": [{"input": "a\ud800", "target": "b"}]}', '["body","examples",0,"input"]'),
        ("adapters", r'{"examples": [{"input": "a", "target": "\udfff"}]}', '["body","examples",0,"target"]'),
        ("adapters", r'{"examples": [{"input": "a", "target": "b"}], "definition": "\ud800"}', "definition"),
        ("adapters", r'{"examples": [{"input": "a", "target": "b"}], "\ud800": 1}', "body"),
        ("predictions", r'{"inputs": ["fine", "\ud800"]}', '["body","inputs",1]'),
        ("predictions", r'{"inputs": ["a"], "adapter": "\ud800"}', "adapter"),
        ("predictions", '{"inputs": ["a"], "temperature": NaN}', "temperature"),
        ("predictions", '{"inputs": ["a"], "temperature": Infinity}', "temperature"),
        ("predictions", '{"inputs": ["a"], "seconds": NaN}', "seconds"),
    ],
)
def test_what_json_lets_through_is_refused_as_well(http: TestClient, path: str, body: str, field: str) -> None:
    answer = http.post(f"/v1/{path}", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert field in answer.text
    assert set(answer.json()["detail"][0]) == {"type", "loc", "msg"}


def test_a_body_full_of_mistakes_is_answered_with_a_few(http: TestClient) -> None:
    many = {f"x{number}": 0 for number in range(1000)}
    wrong = [
        ("predictions", {"inputs": [1] * 100_000}, ["Input should be a valid string"]),
        ("adapters", {"examples": [{}] * 50_000}, ["Field required"] * 2),  # the first one's two fields
        ("adapters", {"examples": [many]}, ["Value error, expected no fields but input, target, got 1000"]),
        ("predictions", {"inputs": ["a"], **many}, ["Value error, expected no fields but inputs, adapter, "]),
        ("predictions", {"inputs": [*["a"] * 256, 1]}, ["List should have at most 256 items"]),  # without the last one
    ]
    for path, body, told in wrong:
        answer = http.post(f"/v1/{path}", json=body)
        assert answer.status_code == 422
        for found, expected in zip(answer.json()["detail"], told, strict=True):
            assert found["msg"].startswith(expected)


def test_a_form_of_another_site_is_no_request(http: TestClient) -> None:
    """A browser asks before it sends JSON elsewhere, and is not allowed to; plain text it would send unasked."""
    body = json.dumps({"inputs": ["a"]}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert http.post("/v1/predictions", content=body, headers={"content-type": kind}).status_code == 422
    asked = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in http.options("/v1/predictions", headers=asked).headers


def test_no_json_and_no_such_adapter(http: TestClient) -> None:
    assert http.post("/v1/predictions", content=b"{", headers={"content-type": "application/json"}).status_code == 422
    for key in ("0" * 32, "..%2f..", "x"):
        assert http.get(f"/v1/adapters/{key}").status_code == 404
        assert http.delete(f"/v1/adapters/{key}").status_code == 404
        assert http.get(f"/v1/adapters/{key}/download").status_code == 404
    for stream in (False, True):
        answer = http.post("/v1/predictions", json={"inputs": ["a"], "adapter": "0" * 32, "stream": stream})
        assert answer.status_code == 404


def test_a_removed_adapter_is_gone(http: TestClient) -> None:
    key = http.post("/v1/adapters", json=examples([("q", "Q")])).json()["id"]
    texts(http.post("/v1/predictions", json={"inputs": ["a"], "adapter": key}))
    assert http.delete(f"/v1/adapters/{key}").status_code == 204
    assert http.post("/v1/predictions", json={"inputs": ["a"], "adapter": key}).status_code == 404


def test_a_damaged_adapter_is_the_services_fault(http: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    body = examples([("t", "T"), ("u", "U")], estimate=False)
    key = http.post("/v1/adapters", json=body).json()["id"]
    file = http.service.store.folder / key / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    asked = {"inputs": ["a"], "adapter": key}
    for answer in (
        http.post("/v1/predictions", json=asked),
        http.get(f"/v1/adapters/{key}/download", params={"form": "peft"}),
    ):
        assert answer.status_code == 500
        assert str(file.parent) not in answer.text
    assert str(file) in caplog.text
    assert http.delete(f"/v1/adapters/{key}").status_code == 204
    assert http.post("/v1/adapters", json=body).status_code == 201
    texts(http.post("/v1/predictions", json=asked))


def test_what_goes_wrong_for_one_ends_nobody_else(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def submit(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("a defect")

    with monkeypatch.context() as broken:
        broken.setattr(http.service.engine, "submit", submit)
        with pytest.raises(RuntimeError, match="a defect"):
            http.post("/v1/predictions", json={"inputs": INPUTS, "seconds": 30})
    assert texts(http.post("/v1/predictions", json={"inputs": INPUTS})) == hypermodel().predict(INPUTS)
    assert http.service.waiting == 0


def test_more_adapters_than_memory_holds(http: TestClient) -> None:
    model = hypermodel()
    keys, expected = [], []
    for letter in "abcde":
        pairs = [(letter, letter.upper()), (letter * 2, letter)]
        keys.append(http.post("/v1/adapters", json=examples(pairs, estimate=False)).json()["id"])
        expected.append(model.predict(INPUTS, model.adapt(pairs)))
    for _ in range(2):
        for key, answers in zip(keys, expected, strict=True):
            assert texts(http.post("/v1/predictions", json={"inputs": INPUTS, "adapter": key})) == answers
    assert len(http.service.engine.pool) <= SIZES.hosted


def test_what_prometheus_reads(http: TestClient) -> None:
    texts(http.post("/v1/predictions", json={"inputs": INPUTS}))
    http.get("/no/such/path")
    http.request("BREW", "/healthz")
    figures = http.get("/metrics").text
    assert 'hyperflax_requests_total{method="POST",route="/v1/predictions",status="200"}' in figures
    assert 'hyperflax_requests_total{method="GET",route="other",status="404"}' in figures
    assert 'hyperflax_requests_total{method="other",route="/healthz",status="405"}' in figures
    assert "BREW" not in figures
    assert "hyperflax_waiting_inputs 0.0" in figures
    assert "hyperflax_ready 1.0" in figures


def test_the_schema_names_every_route(http: TestClient) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert {"/v1/adapters", "/v1/adapters/{adapter}", "/v1/adapters/{adapter}/download", "/v1/predictions"} < set(paths)
    assert http.get("/v1/model").json()["inputs_length"] == 16
    assert {"200", "201", "401", "422", "429", "507"} <= paths["/v1/adapters"]["post"]["responses"].keys()
    listed = paths["/v1/adapters"]["get"]
    assert {"200", "404", "422"} <= listed["responses"].keys()
    limit, after = listed["parameters"]
    assert (limit["name"], after["name"], after["required"]) == ("limit", "after", False)
    assert limit["schema"].items() >= {"default": 100, "minimum": 1, "maximum": 1000}.items()
    assert {"200", "404", "429", "504"} <= paths["/v1/predictions"]["post"]["responses"].keys()


def test_a_token_is_asked_for(tmp_path: pathlib.Path) -> None:
    token = "sésame 芝麻"
    with client(tmp_path, token=token) as http:
        for header in ({}, {b"Authorization": b"Bearer wrong"}, {b"Authorization": token.encode()}):
            for path in ("/v1/model", "/v1/adapters", "/metrics"):
                assert http.get(path, headers=header).status_code == 401
            assert http.post("/v1/predictions", json={"inputs": ["a"]}, headers=header).status_code == 401
            assert http.post("/v1/predictions", content=b"{", headers=header).status_code == 401  # unread
        assert http.get("/v1/model", headers={b"Authorization": f"Bearer {token}".encode()}).status_code == 200
        for path in ("/", "/healthz", "/readyz", "/openapi.json"):
            assert http.get(path).status_code == 200


def test_another_name_and_a_large_body_are_refused(tmp_path: pathlib.Path) -> None:
    with client(tmp_path, hosts=("testserver", "::1"), limits=Limits(body=1000)) as http:
        for host in ("evil.example", "[::2]:8765", "[::1].evil.example"):
            assert http.get("/healthz", headers={"host": host}).status_code == 400
        for host in ("[::1]:8765", "[::1]", "testserver:8765"):
            assert http.get("/healthz", headers={"host": host}).status_code == 200
        large = json.dumps(examples([("a", "b" * 1000)])).encode()
        json_type = {"content-type": "application/json"}
        assert http.post("/v1/adapters", content=large, headers=json_type).status_code == 413
        parts = (large[i : i + 100] for i in range(0, len(large), 100))  # chunked: no length is told
        assert http.post("/v1/adapters", content=parts, headers=json_type).status_code == 413


def test_a_body_that_does_not_come_is_given_up() -> None:
    async def read(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass

    async def slow() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def run() -> None:
        with pytest.raises(HTTPException) as error:
            await BodyLimit(read, limit=1000, seconds=0.1)({"type": "http", "headers": []}, slow, None)
        assert error.value.status_code == 408

    asyncio.run(run())


def test_the_next_service_has_what_the_last_one_made(tmp_path: pathlib.Path) -> None:
    with client(tmp_path) as http:
        key = http.post("/v1/adapters", json=examples()).json()["id"]
        before = texts(http.post("/v1/predictions", json={"inputs": INPUTS, "adapter": key}))
    with client(tmp_path) as http:
        assert http.post("/v1/adapters", json=examples()).status_code == 200
        assert texts(http.post("/v1/predictions", json={"inputs": INPUTS, "adapter": key})) == before


# Many callers at once, on one loop


@contextlib.asynccontextmanager
async def served(
    folder: pathlib.Path, config: ServiceConfig = SIZES
) -> AsyncIterator[tuple[Service, httpx2.AsyncClient]]:
    service = Service(hypermodel(), folder, config)
    service.start()
    transport = httpx2.ASGITransport(create_app(service))
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as http:
            yield service, http
    finally:
        await asyncio.to_thread(service.stop)


def test_many_callers_get_what_each_would_get_alone(tmp_path: pathlib.Path) -> None:
    model = hypermodel()
    tasks = [[(letter, letter.upper()), (letter * 2, letter)] for letter in "abcd"]
    expected = [model.predict(INPUTS, model.adapt(pairs)) for pairs in tasks]

    async def run() -> None:
        async with served(tmp_path) as (service, http):
            # Two ask for each adapter at once: it is made once.
            bodies = [examples(pairs, estimate=False) for pairs in tasks for _ in range(2)]
            made = await asyncio.gather(*(http.post("/v1/adapters", json=body) for body in bodies))
            assert sorted(answer.status_code for answer in made) == [200] * 4 + [201] * 4
            keys = [answer.json()["id"] for answer in made[::2]]
            asked = [number % 4 for number in range(40)]
            answers = await asyncio.gather(
                *(http.post("/v1/predictions", json={"inputs": INPUTS, "adapter": keys[n]}) for n in asked)
            )
            for number, answer in zip(asked, answers, strict=True):
                assert texts(answer) == expected[number]
            assert len(service.engine.pool) == SIZES.hosted < len(keys)

    asyncio.run(run())


def test_too_much_at_once_is_refused_and_nothing_accepted_is_lost(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with served(tmp_path, ServiceConfig(rows=2, resident=2, hosted=2, waiting=6, adapting=1)) as (
            service,
            http,
        ):
            answers = await asyncio.gather(*(http.post("/v1/predictions", json={"inputs": INPUTS}) for _ in range(20)))
            refused = [answer for answer in answers if answer.status_code == 429]
            assert len(refused) == 18
            assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
            for answer in answers:
                if answer not in refused:
                    assert texts(answer) == hypermodel().predict(INPUTS)
            assert service.waiting == 0
            go_on, adapt = threading.Event(), service.model.adapt

            def held(*arguments: Any, **options: Any) -> Any:
                go_on.wait()
                return adapt(*arguments, **options)

            monkeypatch.setattr(service.model, "adapt", held)
            bodies = [examples([(letter, "x")], estimate=False) for letter in "abcde"]
            made = [asyncio.ensure_future(http.post("/v1/adapters", json=body)) for body in bodies]
            while sum(answer.done() for answer in made) < 4:
                await asyncio.sleep(0.01)
            go_on.set()
            assert sorted(answer.status_code for answer in await asyncio.gather(*made)) == [201, 429, 429, 429, 429]
            assert service.maker.adapting == 0

    asyncio.run(run())


def test_what_is_being_made_counts_among_what_is_kept(tmp_path: pathlib.Path) -> None:
    async def run() -> None:
        async with served(tmp_path, dataclasses.replace(SIZES, kept=3)) as (service, http):
            bodies = [examples([(letter, "x")], estimate=False) for letter in "abcde"]
            made = await asyncio.gather(*(http.post("/v1/adapters", json=body) for body in bodies))
            assert sorted(answer.status_code for answer in made) == [201, 201, 201, 507, 507]
            assert service.maker.kept == 3

    asyncio.run(run())


def test_a_caller_who_reads_nothing_holds_no_place(tmp_path: pathlib.Path) -> None:
    async def run() -> None:
        async with served(tmp_path, ServiceConfig(rows=2, resident=2, hosted=2, waiting=3)) as (service, _):
            asked = [service.predict(INPUTS, steps=True) for _ in range(3)]
            for answers in asked:
                await anext(answers)  # and no further
                async with asyncio.timeout(60):
                    while service.waiting:
                        await asyncio.sleep(0.01)
            for answers in asked:
                # Nothing of what came meanwhile has been kept for him but the end.
                assert [answer.done for answer in await anext(answers)] == [True] * len(INPUTS)
                await answers.aclose()
            assert service.waiting == 0

    asyncio.run(run())


def test_a_deadline_ends_the_decoding(tmp_path: pathlib.Path) -> None:
    async def run() -> None:
        async with served(tmp_path) as (service, http):
            late = {"inputs": ["a"] * 50, "seconds": 1e-6}
            assert (await http.post("/v1/predictions", json=late)).status_code == 504
            # The same rows serve the next caller, and nobody is left behind.
            assert texts(await http.post("/v1/predictions", json={"inputs": INPUTS})) == hypermodel().predict(INPUTS)
            assert service.waiting == 0
            assert service.engine.idle
            streamed = await http.post("/v1/predictions", json={**late, "stream": True})
            assert streamed.status_code == 504

    asyncio.run(run())


def test_what_was_accepted_is_answered_before_the_end(tmp_path: pathlib.Path) -> None:
    async def run() -> None:
        async with served(tmp_path) as (service, http):
            asked = [asyncio.ensure_future(http.post("/v1/predictions", json={"inputs": INPUTS})) for _ in range(10)]
            made = asyncio.ensure_future(http.post("/v1/adapters", json=examples(estimate=False)))
            # Of the inputs some are still being tokenised, in threads: they are accepted all the same.
            while service.waiting < 30 or service.maker.adapting < 1:
                await asyncio.sleep(0)
            ending = asyncio.ensure_future(asyncio.to_thread(service.stop))
            while not service._closing:
                await asyncio.sleep(0)
            late = await http.post("/v1/predictions", json={"inputs": INPUTS})
            assert late.status_code == 503
            for answer in await asyncio.gather(*asked):
                assert texts(answer) == hypermodel().predict(INPUTS)
            assert (await made).status_code == 201
            await ending

    asyncio.run(run())


def test_an_end_waits_no_longer_than_it_may(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with served(tmp_path) as (service, http):
            go_on, began, adapt = threading.Event(), threading.Event(), service.model.adapt

            def slow(*arguments: Any, **options: Any) -> Any:
                began.set()
                go_on.wait()
                return adapt(*arguments, **options)

            monkeypatch.setattr(service.model, "adapt", slow)
            made = asyncio.ensure_future(http.post("/v1/adapters", json=examples(estimate=False)))
            await asyncio.to_thread(began.wait)
            assert not await asyncio.to_thread(service.stop, 0.1)
            go_on.set()
            assert (await made).status_code == 201
            assert await asyncio.to_thread(service.stop)

    asyncio.run(run())


def test_an_engine_that_breaks_at_the_end_ends(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call to end is taken already, and no other will come."""

    async def run() -> None:
        async with served(tmp_path) as (service, http):
            ended = threading.Event()

            def turn() -> None:
                ended.wait()
                raise RuntimeError("device lost")

            monkeypatch.setattr(service.engine, "turn", turn)
            asked = asyncio.ensure_future(http.post("/v1/predictions", json={"inputs": INPUTS}))
            while not service.waiting:
                await asyncio.sleep(0)
            ending = asyncio.ensure_future(asyncio.to_thread(service.stop, 60))
            while not service._closing:
                await asyncio.sleep(0)
            await asyncio.sleep(0.2)
            ended.set()
            assert await ending
            assert (await asked).status_code == 503

    asyncio.run(run())


def test_a_broken_engine_says_so(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with served(tmp_path) as (service, http):
            texts(await http.post("/v1/predictions", json={"inputs": INPUTS}))

            def turn() -> None:
                raise RuntimeError("device lost")

            monkeypatch.setattr(service.engine, "turn", turn)
            answers = await asyncio.gather(*(http.post("/v1/predictions", json={"inputs": INPUTS}) for _ in range(3)))
            assert [answer.status_code for answer in answers] == [503] * 3
            assert (await http.get("/healthz")).status_code == 500
            assert (await http.get("/readyz")).status_code == 503
            assert (await http.post("/v1/predictions", json={"inputs": INPUTS})).status_code == 503

    asyncio.run(run())
