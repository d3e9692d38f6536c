"""Models in a bucket, read through a server on this machine that speaks Google's protocol and Amazon's."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import tensorstore

from hyperflax.adapters import LoRA, build_spec
from hyperflax.buckets import Bucket, BucketPath, fetched, locate, locate_file
from hyperflax.checkpoints import t5x
from hyperflax.checkpoints.artefacts import Adapter, AdapterMetadata, load_adapter
from hyperflax.checkpoints.fingerprint import fingerprint
from hyperflax.checkpoints.forms import read_model
from hyperflax.checkpoints.huggingface import write_huggingface
from hyperflax.checkpoints.inspection import Entry, inspect_path
from hyperflax.checkpoints.model_directory import save_model_directory
from hyperflax.checkpoints.orbax_form import write_orbax
from hyperflax.checkpoints.peft import read_peft, write_peft
from hyperflax.checkpoints.t5_directory import save_t5
from hyperflax.checkpoints.t5x_writer import write_t5x_checkpoint
from hyperflax.checkpoints.zarr import inspect_array
from hyperflax.data.cache import write_cache
from hyperflax.data.cache_source import CachedSource
from hyperflax.data.examples import InMemorySource, stream_of
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import CheckpointError
from hyperflax.files import atomic_directory, require_directory_place
from hyperflax.hypermodel import WINDOW, load
from hyperflax.infer import infer
from hyperflax.training.base_model import read_base
from hyperflax.training.partitioning import Partitioner, make_mesh
from tests.adapters.micro import random_tree
from tests.checkpoints.bucket_server import PAGE, Server, serve
from tests.checkpoints.directories import CONFIG, base, model_parts
from tests.checkpoints.t5x_writer import write_zarr_with_tensorstore
from tests.evaluation.micro import hypermodel

# TensorStore takes the server's address from the environment when it starts, so every reader is a process of its own.
READERS = """
import json, sys
from hyperflax.checkpoints.fingerprint import fingerprint
from hyperflax.checkpoints.forms import read_model
from hyperflax.checkpoints.inspection import inspect_path
from hyperflax.checkpoints.onto_mesh import read_onto_mesh
from hyperflax.checkpoints.forms import load_base
from hyperflax.checkpoints.peft import read_peft
from hyperflax.errors import CheckpointError
from hyperflax.training.partitioning import Partitioner, make_mesh
from tests.checkpoints.directories import CONFIG

def told(read, *arguments):
    try:
        return read(*arguments)
    except CheckpointError as error:
        return f"refused: {error}"

def model(url, step=None):
    found = read_model(url, step=step)
    return [found.form, found.step, fingerprint(found.params)]

def peft(url):
    adapter = read_peft(url)
    return [fingerprint(adapter.tree), adapter.metadata.base_fingerprint, adapter.spec.to_json()]

actions = {
    "model": model,
    "peft": peft,
    "base": lambda url: fingerprint(load_base(url, CONFIG)),
    "mesh": lambda url: fingerprint(
        read_onto_mesh(url, CONFIG, Partitioner(make_mesh(data=1, fsdp=1)).t5_sharding)
    ),
    "inspect": lambda url: [inspect_path(url).form, len(inspect_path(url).leaves), inspect_path(url).nbytes],
}
asked = [told(actions[name], *arguments) for name, *arguments in json.loads(sys.argv[1])]
print(json.dumps([asked, sorted({"tensorflow", "etils.epath"} & set(sys.modules))]))
"""


def adapter() -> Adapter:
    spec = build_spec(LoRA(rank=2), CONFIG)
    return Adapter(random_tree(spec, 0), spec, AdapterMetadata(fingerprint(base())))


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("bucket")
    write_t5x_checkpoint(folder / "legacy", base(), step=12)
    for run, write in (("runs", write_t5x_checkpoint), ("written", write_orbax)):
        (folder / run).mkdir()
        for step, seed in ((9, 1), (10, 2)):
            write(folder / "one", base(seed), step=step)
            (folder / "one" / f"checkpoint_{step}").rename(folder / run / f"checkpoint_{step}")
            (folder / "one").rmdir()
    (folder / "written" / "checkpoint_9" / "commit_success.txt").touch()  # Orbax's last file in a bucket
    write_orbax(folder / "orbax", base(), step=12)
    write_huggingface(folder / "huggingface", base(), CONFIG)
    write_huggingface(folder / "sharded", base(), CONFIG, shard_bytes=1500)
    for name in ("cut", "foreign"):
        write_huggingface(folder / name, base(), CONFIG)
        file = folder / name / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-40] if name == "cut" else b"PK" * 200)
    save_t5(folder / "t5", base(), CONFIG, Bytes())
    write_t5x_checkpoint(folder / "lr%3D1 #2?", base(), step=12)
    write_peft(folder / "peft", adapter())
    for name in ("gap", "blosc", "lie"):
        write_t5x_checkpoint(folder / name, base(), step=12)
    table = "checkpoint_12/target.token_embedder.embedding"
    (folder / "gap" / table / "0.0").unlink()
    array = base()["token_embedder"]["embedding"]
    for file in (folder / "blosc" / table).iterdir():
        file.unlink()
    compressor = {"id": "blosc", "cname": "zstd", "clevel": 1, "shuffle": 0}
    write_zarr_with_tensorstore(folder / "blosc" / table, array, array.shape, compressor)
    metadata = folder / "lie" / table / ".zarray"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "chunks": [2**17, 2**17]}))
    array = folder / "own" / "checkpoints" / "checkpoint_3" / "state" / "params" / "token_embedder" / "embedding"
    array.mkdir(parents=True)
    (array / "zarr.json").write_text("{}")
    with serve(folder) as running:
        yield running


def ask(server: Server, *questions: tuple) -> list:
    here = str(pathlib.Path(__file__).resolve().parents[2])
    path = os.pathsep.join([here, *sys.path])
    environment = {**os.environ, **server.environment, "PYTHONPATH": path}
    command = [sys.executable, "-W", "ignore", "-c", READERS, json.dumps(questions)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    answers, modules = json.loads(done.stdout.splitlines()[-1])
    assert "tensorflow" not in modules
    return answers


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_what_is_read_is_what_lies_there(server, scheme):
    local = read_model(server.folder / "legacy")
    assert fingerprint(local.params) == fingerprint(base())
    found = ask(
        server,
        ("model", f"{scheme}://bucket/legacy"),
        ("model", f"{scheme}://bucket/legacy/checkpoint_12/"),
        ("model", f"{scheme}://bucket/orbax/checkpoint_12"),
        ("model", f"{scheme}://bucket/runs"),
        ("model", f"{scheme}://bucket/runs", 9),
        ("model", f"{scheme}://bucket/written"),
        ("model", f"{scheme}://bucket/huggingface"),
        ("model", f"{scheme}://bucket/sharded"),
        ("model", f"{scheme}://bucket/t5"),
        ("model", f"{scheme}://bucket/lr%3D1 #2?"),
        ("base", f"{scheme}://bucket/t5"),
        ("base", f"{scheme}://bucket/legacy"),
        ("base", f"{scheme}://bucket/orbax"),
        ("base", f"{scheme}://bucket/sharded"),
        ("mesh", f"{scheme}://bucket/legacy"),
        ("mesh", f"{scheme}://bucket/orbax"),
        ("inspect", f"{scheme}://bucket/legacy"),
        ("inspect", f"{scheme}://bucket/orbax"),
        ("inspect", f"{scheme}://bucket/sharded"),
        ("peft", f"{scheme}://bucket/peft"),
    )
    whole, nbytes = fingerprint(base()), sum(entry.nbytes for entry in inspected(server.folder / "legacy"))
    assert found == [
        ["t5x", 12, whole],
        ["t5x", 12, whole],
        ["orbax", 12, whole],
        ["t5x", 10, fingerprint(base(2))],
        ["t5x", 9, fingerprint(base(1))],
        ["orbax", 9, fingerprint(base(1))],
        *[["huggingface", 0, whole]] * 2,
        ["t5", 0, whole],
        ["t5x", 12, whole],
        *[whole] * 6,
        ["t5x", len(inspected(server.folder / "legacy")), nbytes],
        ["orbax", len(inspected(server.folder / "orbax")), nbytes],
        [
            "huggingface",
            *(f(inspected(server.folder / "sharded")) for f in (len, lambda found: sum(e.nbytes for e in found))),
        ],
        [fingerprint(adapter().tree), whole, adapter().spec.to_json()],
    ]


def inspected(folder: pathlib.Path) -> list[Entry]:
    return inspect_path(folder).leaves


def test_what_is_damaged_or_no_checkpoint_is_refused(server):
    answers = ask(
        server,
        ("model", "gs://bucket/gap"),
        ("model", "gs://bucket/blosc"),
        ("model", "gs://bucket/lie"),
        ("model", "gs://bucket/cut"),
        ("model", "gs://bucket/foreign"),
        ("model", "gs://bucket/nothing"),
        ("model", "gs://other/nothing"),
        ("model", "gs://bucket/runs", 7),
        ("model", "gs://bucket/written", 10),
        ("mesh", "gs://bucket/own/checkpoints"),
    )
    told = (
        "chunk is missing",
        "compressor",
        "chunks",
        "model.safetensors: cannot be read",
        "its header cannot be",
        "found none",
        "listed",
        "checkpoint_7",
        "checkpoint_10: expected a finished checkpoint, found no commit_success.txt",
        "checkpoint_3: expected a checkpoint of T5X, found a training checkpoint of hyperflax",
    )
    for answer, words in zip(answers, told, strict=True):
        assert answer.startswith("refused: gs://"), answer
        assert words in answer


@pytest.fixture
def asked(server, monkeypatch) -> list[str]:
    """The calls of this process, at Amazon's addresses."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.requests.clear()
    return server.requests


def test_of_a_model_directory_no_more_is_fetched_than_is_read(server, asked):
    save_model_directory(server.folder / "run" / "model", model_parts())
    (server.folder / "run" / "model" / "checkpoints").mkdir()
    (server.folder / "run" / "model" / "checkpoints" / "9").write_bytes(b"large")
    with pytest.raises(CheckpointError, match=r"model 's3://bucket/run': .*; one is s3://bucket/run/model$"):
        load("s3://bucket/run")
    with pytest.raises(CheckpointError, match=r"^s3://bucket/run/adapter\.json: expected a file, found nothing$"):
        load_adapter("s3://bucket/run")
    assert objects(asked) == ["run/adapter.json"]
    asked.clear()
    assert fingerprint(read_model("s3://bucket/run/model").params) == fingerprint(base())
    assert objects(asked) == [
        f"run/model/{name}" for name in ("hypermodel.json", "base.safetensors", "vocabulary.model")
    ]


def test_of_a_run_s_folder_an_adapter_alone_is_fetched(server, asked):
    """`hyperflax finetune` leaves it beside its own files."""
    adapter().save(server.folder / "tuned")
    write_peft(server.folder / "tuned_peft", adapter())
    for name in ("tuned", "tuned_peft"):
        (server.folder / name / "best.safetensors").write_bytes(b"large")
    assert fingerprint(load_adapter("s3://bucket/tuned").tree) == fingerprint(adapter().tree)
    assert objects(asked) == [f"tuned/{name}" for name in ("adapter.json", "adapter.safetensors")]
    asked.clear()
    assert fingerprint(read_peft("s3://bucket/tuned_peft").tree) == fingerprint(adapter().tree)
    files = ("adapter_config.json", "adapter_model.safetensors", "hyperflax.json")
    assert objects(asked) == [f"tuned_peft/{name}" for name in files]
    weights = server.folder / "tuned_peft" / "adapter_model.safetensors"
    weights.rename(weights.with_name("adapter_model.bin"))
    with pytest.raises(CheckpointError, match=r"found adapter_model\.bin: a pickle"):
        read_peft("s3://bucket/tuned_peft")


@pytest.mark.parametrize("name", ["runs", "written"])
def test_a_base_is_looked_for_once(server, asked, name):
    read_base(f"s3://bucket/{name}", CONFIG, Partitioner(make_mesh(data=1, fsdp=1)))
    step = {"runs": 10, "written": 9}[name]
    pages = [-(-len(server.names(f"{name}/{below}")) // PAGE) for below in ("", f"checkpoint_{step}/")]
    assert asked.count("/bucket/") == sum(pages)


def test_what_describes_the_arrays_is_read_many_at_a_time(server, monkeypatch):
    begun, both = [], threading.Event()

    def inspect(*arguments):
        begun.append(arguments)
        if len(begun) == 2:
            both.set()
        assert both.wait(60)
        return inspect_array(*arguments)

    monkeypatch.setattr(t5x, "inspect_array", inspect)
    assert fingerprint(t5x.read_t5x_checkpoint(server.folder / "legacy")) == fingerprint(base())


def objects(requests: list[str]) -> list[str]:
    return [path.removeprefix("/bucket/") for path in requests if path.startswith("/bucket/") and path != "/bucket/"]


@pytest.mark.usefixtures("asked")
def test_who_may_not_write_is_told_before_the_work(server, monkeypatch):
    server.changes.clear()
    require_directory_place("s3://bucket/new", in_bucket=True)
    assert [verb for verb, _ in server.changes] == ["write", "delete"]
    assert not list((server.folder / "new").iterdir())
    monkeypatch.setattr(server, "forbids", ("write",))
    with pytest.raises(CheckpointError, match=r"^s3://bucket/new/\.tmp-.*: cannot be written, .*403"):
        require_directory_place("s3://bucket/new", in_bucket=True)


@pytest.mark.usefixtures("asked")
def test_nothing_is_removed_from_an_empty_place(server, monkeypatch):
    monkeypatch.setattr(server, "forbids", ("delete",))
    with atomic_directory("s3://bucket/created", marker="adapter.json") as folder:
        (folder / "adapter.json").write_text("{}")
    assert (server.folder / "created" / "adapter.json").read_text() == "{}"


@pytest.mark.usefixtures("asked")
def test_answers_are_written_by_who_may_write_and_not_remove(server, monkeypatch, tmp_path):
    monkeypatch.setattr(server, "forbids", ("delete",))
    monkeypatch.setattr("hyperflax.infer.KEEP_EVERY", -1.0)
    inputs = tmp_path / "in.jsonl"
    inputs.write_text('{"input": "a"}\n' * (WINDOW + 1))
    infer(model=hypermodel(), inputs=str(inputs), out="s3://bucket/answers.jsonl")
    assert len((server.folder / "answers.jsonl").read_text().splitlines()) == WINDOW + 1
    assert [*server.folder.glob("answers.jsonl.*.partial")]


@pytest.mark.usefixtures("asked")
def test_a_cache_is_written_by_who_may_write_and_not_remove(server, monkeypatch):
    monkeypatch.setattr(server, "forbids", ("delete",))
    require_directory_place("s3://bucket/cached", in_bucket=True)
    stream = stream_of(InMemorySource.from_strings({"upper": [(text, text.upper()) for text in "abcd"]}, Bytes()))
    write_cache(stream, "s3://bucket/cached", Bytes())
    assert CachedSource("s3://bucket/cached").sizes.tolist() == [4]


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_a_place_was_tried_with_and_could_not_be_removed_is_in_nobody_s_way(server, monkeypatch, overwrite):
    monkeypatch.setattr(server, "forbids", ("delete",))
    place = f"s3://bucket/tried-{overwrite}"
    options = {"overwrite": overwrite, "owned": ("adapter.json",)}
    for _ in range(2):
        require_directory_place(place, in_bucket=True, **options)
    with atomic_directory(place, marker="adapter.json", **options) as folder:
        (folder / "adapter.json").write_text("{}")
    written = sorted(path.name for path in (server.folder / f"tried-{overwrite}").iterdir())
    assert [name.startswith(".tmp-") for name in written] == [True, True, False]
    assert written[-1] == "adapter.json"


def test_convert_takes_an_address(server, tmp_path):
    here = str(pathlib.Path(__file__).resolve().parents[2])
    environment = {**os.environ, **server.environment, "PYTHONPATH": os.pathsep.join([here, *sys.path])}
    command = [sys.executable, "-m", "hyperflax", "convert", "gs://bucket/orbax", str(tmp_path / "out")]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    assert fingerprint(read_model(tmp_path / "out").params) == fingerprint(base())


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("gs://bucket", "gs://bucket"),
        ("gs://bucket/a/b/", "gs://bucket/a/b"),
        (pathlib.Path("gs://bucket/a"), "gs://bucket/a"),
        ("s3://bucket/a", "s3://bucket/a"),
    ],
)
def test_addresses(path, address):
    found = locate(path)
    assert isinstance(found, BucketPath)
    assert str(found) == address
    assert str(found / "c" / "d") == f"{address}/c/d"
    assert str((found / "c" / "d").parent) == f"{address}/c"
    assert locate(found) is found


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("~/runs/x", "/home/somebody/runs/x"),
        ("~", "/home/somebody"),
        (pathlib.Path("~/x"), "/home/somebody/x"),
        ("runs/~/x", "runs/~/x"),
        ("~no_such_user/x", "~no_such_user/x"),
    ],
)
def test_a_home_is_found_where_no_shell_has_put_it(monkeypatch, path, place):
    """As in --gin.MODEL_DIR=~/runs/x and --out=~/x."""
    monkeypatch.setenv("HOME", "/home/somebody")
    assert locate(path) == locate_file(path) == pathlib.Path(place)


@pytest.mark.parametrize("path", ["http://host/a", "file:///etc", "gcs://bucket/a", "gs://", "gs://B?x/a"])
def test_other_addresses_are_refused(path):
    with pytest.raises(CheckpointError, match="expected a local path, gs://"):
        locate(path)


def test_a_bucket_of_no_such_name_is_refused():
    with pytest.raises(CheckpointError, match=r"gs://b\.\.b/a/: cannot be opened, .*Invalid GCS bucket name"):
        locate("gs://b..b/a").exists()


def test_folders_that_a_console_made_are_no_files(tmp_path):
    bucket = Bucket("s3://bucket/run/")
    bucket.store = tensorstore.KvStore.open("memory://").result()
    for name in ("", "sub/", "sub//lost"):
        bucket.store.write(name, b"").result()
    place = BucketPath(bucket)
    require_directory_place(place, in_bucket=True)  # nothing is in the way
    assert not place.exists()
    bucket.store.write("sub/file", b"content").result()
    bucket.changed()
    assert [str(found) for found in place.iterdir()] == ["s3://bucket/run/sub"]
    assert not place.is_file()
    bucket.store.write("marker", b"").result()
    bucket.changed()
    with fetched(place, "marker") as folder:
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert found == {"marker"}  # what lies deeper is not asked for
