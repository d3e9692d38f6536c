"""Every form that hyperflax reads, damaged in any file: read as what it says, or one kind of error; nothing is touched.

The hostile tests of the single forms name what must be refused, and with which words. Here nobody has thought of the
damage: a file cut off, bytes changed, another kind of file in its place, or any json value where another one stood.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperflax.adapters import LoRA, Prefix, SoftPrompt, build_spec
from hyperflax.checkpoints.artefacts import Adapter, AdapterMetadata, load_adapter
from hyperflax.checkpoints.forms import read_model
from hyperflax.checkpoints.huggingface import write_huggingface
from hyperflax.checkpoints.inspection import inspect_path
from hyperflax.checkpoints.layouts import to_scalable
from hyperflax.checkpoints.model_directory import save_model_directory
from hyperflax.checkpoints.onto_mesh import read_onto_mesh
from hyperflax.checkpoints.orbax_form import write_orbax
from hyperflax.checkpoints.peft import read_peft, write_peft
from hyperflax.checkpoints.t5_directory import save_t5
from hyperflax.checkpoints.t5x_writer import write_t5x_checkpoint
from hyperflax.checkpoints.task_adapters import TaskAdaptersMetadata, load_task_adapters, save_task_adapters
from hyperflax.data.vocabularies import Bytes
from hyperflax.errors import HyperflaxError
from tests.adapters.micro import random_tree
from tests.checkpoints.directories import CONFIG, adapter_tree, base, metadata, model_parts, spec
from tests.checkpoints.t5x_writer import write_msgpack


def peft(*kinds) -> Callable[[pathlib.Path], None]:
    own = build_spec(kinds, CONFIG)
    return lambda folder: write_peft(folder, Adapter(random_tree(own, 0), own, AdapterMetadata(None)))


def save_two_tasks(folder: pathlib.Path) -> None:
    of_two = TaskAdaptersMetadata(("a", "b"), base_fingerprint=metadata().base_fingerprint, base_digest=16 * "0")
    save_task_adapters(folder, random_tree(spec(), 0, (2,)), spec(), of_two)


def read_t5x(folder: pathlib.Path) -> Any:
    """Everything that is read of a checkpoint of T5X, whole and onto a mesh."""
    model = read_model(folder)
    if model.read_state is not None:
        model.read_state(lambda nbytes: None)
    read_onto_mesh(folder, model.config, lambda path, shape: jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    return model


STATE = {"param_states": {"encoder": {"encoder_norm": {"scale": {"m": np.ones(8, np.float32)}}}}}
PRECEDING = Prefix(length=3, position_bias="preceding", sites=("decoder/self_attention",))
FORMS: dict[str, tuple[Callable[[pathlib.Path], Any], Callable[[pathlib.Path], Any]]] = {
    "huggingface": (lambda folder: write_huggingface(folder, base(), CONFIG), read_model),
    "sharded": (lambda folder: write_huggingface(folder, base(), CONFIG, shard_bytes=1000), read_model),
    "t5x": (lambda folder: write_t5x_checkpoint(folder, base(), step=3, state=STATE), read_t5x),
    "scalable": (lambda folder: write_t5x_checkpoint(folder, to_scalable(base(), CONFIG), step=3), read_t5x),
    "inline": (lambda folder: write_msgpack(folder, base()), read_t5x),
    "orbax": (lambda folder: write_orbax(folder, base(), step=3, state=STATE), read_t5x),
    "scalable_orbax": (lambda folder: write_orbax(folder, to_scalable(base(), CONFIG), step=3), read_t5x),
    "t5": (lambda folder: save_t5(folder, base(), CONFIG, Bytes(extra_ids=0)), read_model),
    "hypermodel": (lambda folder: save_model_directory(folder, model_parts()), read_model),
    "adapter": (lambda folder: Adapter(adapter_tree(), spec(), metadata()).save(folder), load_adapter),
    "task_adapters": (save_two_tasks, load_task_adapters),
    "peft_lora": (peft(LoRA(rank=2)), read_peft),
    "peft_prefix": (peft(PRECEDING), read_peft),
    "peft_prompt": (peft(SoftPrompt(length=3)), read_peft),
}
OTHER_FILES = (
    b"",
    b"PK\x03\x04" + b"\0" * 60,
    b"\x80\x04\x95" + b"\0" * 60,
    b"\x1f\x8b\x08" + b"\0" * 60,
    b"\xff" * 64,
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31, 2**63, 2**200, -1, "../outside", "/etc/passwd", "..", "", "a\0b"])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module", params=FORMS)
def form(request, tmp_path_factory) -> tuple[str, pathlib.Path]:
    folder = tmp_path_factory.mktemp("whole") / request.param
    FORMS[request.param][0](folder)
    return request.param, folder


def files_of(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def content(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
    return {path: (folder / path).read_bytes() for path in files_of(folder)}


def read_or_refused(name: str, folder: pathlib.Path) -> None:
    """Inspects and reads; whatever happens is a result or a HyperflaxError, and every file is as it was."""
    before = content(folder.parent)
    for read in (inspect_path, FORMS[name][1]):
        with contextlib.suppress(HyperflaxError):
            assert read(folder) is not None
    assert content(folder.parent) == before


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value inside a json value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


def replaced(value: Any, path: tuple, new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def test_every_form_is_read_whole(form):
    name, folder = form
    assert inspect_path(folder).leaves
    assert FORMS[name][1](folder) is not None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_file_damaged(form, data, tmp_path_factory):
    name, folder = form
    copy = tmp_path_factory.mktemp("damaged") / name
    shutil.copytree(folder, copy)
    victim = copy / data.draw(st.sampled_from(files_of(folder)))
    whole = bytearray(victim.read_bytes())
    how = data.draw(st.sampled_from(["cut", "changed", "longer", "other", "gone", "directory"]))
    if how in ("gone", "directory"):
        victim.unlink()
        if how == "directory":
            victim.mkdir()
    elif how == "other":
        victim.write_bytes(data.draw(st.sampled_from(OTHER_FILES)))
    elif how == "longer":
        victim.write_bytes(whole + data.draw(st.binary(min_size=1, max_size=20)))
    elif whole:
        if how == "cut":
            whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
        else:
            for _ in range(data.draw(st.integers(1, 4))):
                # The beginning, where headers are, more often than the values behind it.
                end = data.draw(st.sampled_from([min(400, len(whole)), len(whole)]))
                whole[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
        victim.write_bytes(whole)
    read_or_refused(name, copy)
    shutil.rmtree(copy)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_any_json(form, data, tmp_path_factory):
    name, folder = form
    documents = {path: text for path, text in content(folder).items() if text.lstrip()[:1] == b"{"}
    if not documents:
        return  # T5X's index is msgpack, which test_t5x_hostile.py changes
    path = data.draw(st.sampled_from(sorted(documents)))
    document = json.loads(documents[path])
    new = replaced(document, data.draw(st.sampled_from(places(document))), data.draw(VALUES))
    copy = tmp_path_factory.mktemp("lies") / name
    shutil.copytree(folder, copy)
    (copy / path).write_text(json.dumps(new))
    read_or_refused(name, copy)
    shutil.rmtree(copy)
