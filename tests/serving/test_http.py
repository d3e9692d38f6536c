"""The service over HTTP answers what the model says, whoever else asks."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import pathlib
import time
import zipfile
from typing import Any

import pytest
from fastapi.testclient import TestClient

import hyperflax
from hyperflax.adapters.kind_config import KindConfig
from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.lora import LoRA
from hyperflax.adapters.prefix import Prefix
from hyperflax.checkpoints.artefacts import Adapter
from hyperflax.errors import AdapterError, DataError
from hyperflax.evaluation.estimate import Estimate, estimate
from hyperflax.hypermodel import Hypermodel
from hyperflax.serving.downloads import fits_peft
from hyperflax.serving.http import create_app
from hyperflax.serving.service import Service
from hyperflax.serving.store import AdapterStore, Made
from tests.evaluation.micro import hypermodel
from tests.serving.http_clients import INPUTS, PAIRS, SIZES, adapters_made, client, examples, texts


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


def test_equal_examples_have_one_adapter(http: TestClient) -> None:
    first = http.post("/v1/adapters", json=examples(PAIRS[:2], estimate=False, refine_steps=1))
    again = http.post("/v1/adapters", json=examples(PAIRS[:2], estimate=False, refine_steps=1))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    other = http.post("/v1/adapters", json=examples(PAIRS[:2], estimate=False, refine_steps=2))
    assert other.json()["id"] != first.json()["id"]


def fail(*arguments: Any, **options: Any) -> None:
    raise DataError("there is no estimate")


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


def test_an_estimate_that_diverges_costs_nobody_the_adapter(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    estimates: list[Any] = []

    def diverge(*arguments: Any, **options: Any) -> None:
        estimates.append(arguments)
        raise AdapterError("condition 'refined': decode: the base model's logits are not finite")

    body = examples([("f", "F"), ("g", "G")])
    with monkeypatch.context() as broken:
        broken.setattr("hyperflax.serving.maker.estimate", diverge)
        answers = [http.post("/v1/adapters", json={**body, "metric": name}) for name in ("exact_match", "rouge_l")]
    assert [answer.status_code for answer in answers] == [201, 200]
    info = answers[0].json()
    assert answers[1].json() == info
    assert (info["estimate"], info["no_estimate"]) == (
        None,
        "condition 'refined': decode: the base model's logits are not finite",
    )
    assert len(estimates) == 1, "it would diverge again, whatever the metric"
    assert http.get(f"/v1/adapters/{info['id']}").json() == info
    texts(http.post("/v1/predictions", json={"inputs": INPUTS, "adapter": info["id"]}))


def test_what_the_model_does_not_read_whole_is_told(tmp_path: pathlib.Path) -> None:
    model = hypermodel()
    episodes = model.config.episodes.replace(support_layout="joint", definition="support", too_long="truncate")
    config = dataclasses.replace(model.config, episodes=episodes)
    joint = Hypermodel(config, model.base_params, model.hypernetwork_params, name="joint")
    with TestClient(create_app(Service(joint, tmp_path, SIZES))) as http:
        asked = examples([("a" * 11, "AB")] * 60, definition="d" * 400, estimate=False)
        info = http.post("/v1/adapters", json=asked).json()
        assert info["warnings"] == [
            "1 of 60 examples are read, a row of 32 tokens has no room for more; `supports` deals them out",
            "16 of 400 tokens of the definition are read, a row of 32 tokens has no room for more",
        ]
        assert http.get(f"/v1/adapters/{info['id']}").json() == info
        assert http.post("/v1/adapters", json=examples(estimate=False)).json()["warnings"] == []


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


def test_an_adapter_that_is_removed_before_its_estimate_is_there(http: TestClient) -> None:
    def removed(*arguments: Any, **options: Any) -> Estimate:
        assert http.delete(f"/v1/adapters/{key}").status_code == 204
        return estimate(*arguments, **options)

    body = examples([("v", "V"), ("w", "W")])
    key = http.post("/v1/adapters", json={**body, "estimate": False}).json()["id"]
    with pytest.MonkeyPatch.context() as raced:
        raced.setattr("hyperflax.serving.maker.estimate", removed)
        gone = http.post("/v1/adapters", json=body)
    assert (gone.status_code, gone.json()["detail"]) == (404, f"no adapter with the id '{key}'")
    assert str(gone.status_code) in http.get("/openapi.json").json()["paths"]["/v1/adapters"]["post"]["responses"]


def test_what_another_service_of_the_folder_makes_meanwhile_is_kept(http: TestClient) -> None:
    body = examples([("k", "K"), ("l", "L")], estimate=False)
    key = http.post("/v1/adapters", json=body).json()["id"]
    http.delete(f"/v1/adapters/{key}")
    adapt, found = http.service.model.adapt, {"metric": "exact_match", "advice": "use"}

    def slow(*arguments: Any, **options: Any) -> Adapter:
        AdapterStore(http.service.store.folder).save(Made(key, 2, estimate=found), adapt(*arguments, **options))
        return adapt(*arguments, **options)

    before = adapters_made(http)
    with pytest.MonkeyPatch.context() as raced:
        raced.setattr(http.service.model, "adapt", slow)
        answer = http.post("/v1/adapters", json=body)
    assert (answer.status_code, answer.json()["estimate"]) == (200, found)
    assert http.get(f"/v1/adapters/{key}").json()["estimate"] == found
    assert adapters_made(http) == before


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


def test_a_removed_adapter_is_gone(http: TestClient) -> None:
    key = http.post("/v1/adapters", json=examples([("q", "Q")])).json()["id"]
    texts(http.post("/v1/predictions", json={"inputs": ["a"], "adapter": key}))
    assert http.delete(f"/v1/adapters/{key}").status_code == 204
    assert http.post("/v1/predictions", json={"inputs": ["a"], "adapter": key}).status_code == 404


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
    assert paths["/v1/model"]["get"]["responses"].keys() == {"200", "401"}
    common = {"200", "400", "401", "404", "408", "413", "422", "429", "500", "503", "504"}
    assert paths["/v1/adapters"]["post"]["responses"].keys() == common | {"201", "507"}
    assert paths["/v1/predictions"]["post"]["responses"].keys() == common
    schemas = http.get("/openapi.json").json()["components"]["schemas"]
    for request in ("AdaptRequest", "PredictRequest"):
        assert "at most 300" in schemas[request]["properties"]["seconds"]["description"]
    listed = paths["/v1/adapters"]["get"]
    assert {"200", "404", "422"} <= listed["responses"].keys()
    limit, after = listed["parameters"]
    assert (limit["name"], after["name"], after["required"]) == ("limit", "after", False)
    assert limit["schema"].items() >= {"default": 100, "minimum": 1, "maximum": 1000}.items()


@pytest.mark.parametrize(("kind", "fits"), [(LoRA(rank=2), True), (Prefix(length=2), False)])
def test_a_service_tells_whether_peft_can_express_its_adapters(
    tmp_path: pathlib.Path, kind: KindConfig, fits: bool
) -> None:
    model = hypermodel()
    config = dataclasses.replace(model.config, spec=build_spec(kind, model.config.base))
    other = Hypermodel(config, model.base_params, model.hypernetwork_params)
    answer = TestClient(create_app(Service(other, tmp_path))).get("/v1/model")
    assert answer.json()["peft"] is fits


def test_a_full_disk_decides_nothing_about_peft_and_is_told_to_who_downloads(
    http: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    key = http.post("/v1/adapters", json=examples(estimate=False)).json()["id"]
    download = f"/v1/adapters/{key}/download?form=peft"
    with monkeypatch.context() as broken:
        broken.setattr("tempfile.mkdtemp", full)
        fits_peft.cache_clear()
        assert http.get("/v1/model").json()["peft"] is True
        answer = http.get(download)
    assert answer.status_code == 507
    assert answer.json()["detail"] == "the service's disk takes no change; its log says why"
    assert http.get(download).status_code == 200


def test_the_next_service_has_what_the_last_one_made(tmp_path: pathlib.Path) -> None:
    with client(tmp_path) as http:
        key = http.post("/v1/adapters", json=examples()).json()["id"]
        before = texts(http.post("/v1/predictions", json={"inputs": INPUTS, "adapter": key}))
    with client(tmp_path) as http:
        assert http.post("/v1/adapters", json=examples()).status_code == 200
        assert texts(http.post("/v1/predictions", json={"inputs": INPUTS, "adapter": key})) == before
