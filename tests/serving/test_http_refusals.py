"""What the service over HTTP refuses, and that it says why."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import pathlib
from typing import Any

import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient

from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.prefix import Prefix
from hyperflax.checkpoints.artefacts import Adapter, AdapterMetadata
from hyperflax.serving.http import Limits
from hyperflax.serving.middleware import BodyLimit
from hyperflax.serving.store import Made
from tests.evaluation.micro import hypermodel
from tests.serving.http_clients import SIZES, client, examples, texts


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
        ("predictions", {"inputs": ["a"], "seconds": 301}, "seconds"),
        ("adapters", examples(seconds=3600), "seconds"),
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
    for content, status in ((b"{", 422), (b'{"inputs": ["\xff"]}', 400), (b"[" * 100_000, 400)):
        answer = http.post("/v1/predictions", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == status
    for key in ("0" * 32, "..%2f..", "x"):
        assert http.get(f"/v1/adapters/{key}").status_code == 404
        assert http.delete(f"/v1/adapters/{key}").status_code == 404
        assert http.get(f"/v1/adapters/{key}/download").status_code == 404
    for stream in (False, True):
        answer = http.post("/v1/predictions", json={"inputs": ["a"], "adapter": "0" * 32, "stream": stream})
        assert answer.status_code == 404


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


@pytest.mark.parametrize("change", ["kind", "base"])
def test_an_adapter_that_another_hypermodel_left_in_the_folder(http: TestClient, change: str) -> None:
    """It is told of where it is listed, and refused before anything is accepted; its files are its owner's."""
    model = hypermodel()
    if change == "kind":
        config = dataclasses.replace(model.config, spec=build_spec(Prefix(length=2), model.config.base))
        tree, base = config.spec.identity(), model.base_fingerprint
        told = "leaf 'encoder/layers_0/attention/prefix/"
    else:
        config = model.config
        tree, base = config.spec.identity(), f"sha256:{'0' * 64}"
        told = f"the adapter was made for the base model {base}; this base model is {model.base_fingerprint}"
    key = "abcdef0123456789" * 2
    adapter = Adapter(tree, config.spec, AdapterMetadata(base, hypermodel=f"other_{change}@0123456789ab"))
    http.service.store.save(Made(key, 3), adapter)
    refused = http.get(f"/v1/adapters/{key}").json()["unusable"]
    begin = f"adapter {key} was made by other_{change}@0123456789ab, this service runs {model.parts.id}: "
    assert refused.startswith(begin + told)
    for stream in (False, True):
        answer = http.post("/v1/predictions", json={"inputs": ["a"], "adapter": key, "stream": stream})
        assert (answer.status_code, answer.json()) == (422, {"detail": refused})
    assert http.get(f"/v1/adapters/{key}/download").status_code == 200
    peft = http.get(f"/v1/adapters/{key}/download", params={"form": "peft"})
    if change == "base":  # PEFT's directory tells the depth of the base model
        assert (peft.status_code, peft.json()) == (422, {"detail": told})
    http.service.store.remove(key)
    usable = http.post("/v1/adapters", json=examples(estimate=False)).json()
    assert usable["unusable"] is None
    assert http.get(f"/v1/adapters/{usable['id']}").json() == usable


def test_a_token_is_asked_for(tmp_path: pathlib.Path) -> None:
    token = "sésame 芝麻"
    with client(tmp_path, token=token) as http:
        for header in ({}, {b"Authorization": b"Bearer wrong"}, {b"Authorization": token.encode()}):
            for path in ("/v1/model", "/v1/adapters", "/metrics"):
                assert http.get(path, headers=header).status_code == 401
            assert http.post("/v1/predictions", json={"inputs": ["a"]}, headers=header).status_code == 401
            assert http.post("/v1/predictions", content=b"{", headers=header).status_code == 401  # unread
        for scheme in ("Bearer ", "bearer ", "BEARER  "):
            assert http.get("/v1/model", headers={b"Authorization": f"{scheme}{token}".encode()}).status_code == 200
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


def test_a_disk_that_takes_nothing_more_is_told(http: TestClient) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    body = examples([("q", "Q"), ("t", "T")], estimate=False)
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr("hyperflax.serving.store.Adapter.save", full)
        answer = http.post("/v1/adapters", json=body)
    told = "the service's disk takes no change; its log says why"
    assert (answer.status_code, answer.json()["detail"]) == (507, told)
    assert http.post("/v1/adapters", json=body).status_code == 201
    with pytest.MonkeyPatch.context() as broken:  # the adapter is there, and its estimate has no room
        broken.setattr("hyperflax.serving.store.write_json", full)
        answer = http.post("/v1/adapters", json={**body, "estimate": True})
    assert (answer.status_code, answer.json()["detail"]) == (507, told)
    made = http.post("/v1/adapters", json={**body, "estimate": True}).json()
    assert made["estimate"]
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr("pathlib.Path.rename", full)
        answer = http.delete(f"/v1/adapters/{made['id']}")
    assert (answer.status_code, answer.json()["detail"]) == (507, told)
    assert "507" in http.get("/openapi.json").json()["paths"]["/v1/adapters/{adapter}"]["delete"]["responses"]
    assert http.get(f"/v1/adapters/{made['id']}").json() == made


def test_what_the_system_does_not_let_the_service_read_is_its_own_fault(
    http: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    body = examples([("n", "N"), ("o", "O")], estimate=False)
    key = http.post("/v1/adapters", json=body).json()["id"]
    folder, found = http.service.store.folder / key, os.stat

    def denied(path: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(str(folder)):
            raise PermissionError(13, "Permission denied", str(path))
        return found(path, **options)

    with pytest.MonkeyPatch.context() as other_user:
        other_user.setattr(os, "stat", denied)
        for answer in (
            http.post("/v1/predictions", json={"inputs": ["a"], "adapter": key}),
            http.post("/v1/adapters", json=body),
            http.get(f"/v1/adapters/{key}"),
            http.get(f"/v1/adapters/{key}/download"),
        ):
            assert (answer.status_code, set(answer.json())) == (500, {"detail"})
            assert str(folder) not in answer.text
    assert f"{folder}: the system refuses it (Permission denied)" in caplog.text
    assert http.post("/v1/adapters", json=body).status_code == 200


def test_a_full_folder_takes_no_new_adapter_and_loses_none(tmp_path: pathlib.Path) -> None:
    with client(tmp_path, dataclasses.replace(SIZES, kept=2)) as http:
        bodies = [examples([(letter, "x"), (letter * 2, "y")], estimate=False) for letter in "abc"]
        made = [http.post("/v1/adapters", json=body) for body in bodies]
        assert [answer.status_code for answer in made] == [201, 201, 507]
        assert "2 adapters are kept" in made[2].json()["detail"]
        assert "delete some, or raise the bound (--max_adapters)" in made[2].json()["detail"]
        # What is there is answered, and may get its estimate.
        keys = [answer.json()["id"] for answer in made[:2]]
        again = http.post("/v1/adapters", json={**bodies[0], "estimate": True})
        assert (again.status_code, again.json()["id"]) == (200, keys[0])
        assert again.json()["estimate"]
        assert http.get("/v1/adapters").json()["adapters"] == keys[::-1]
        assert http.delete(f"/v1/adapters/{keys[0]}").status_code == 204
        assert http.post("/v1/adapters", json=bodies[2]).status_code == 201
