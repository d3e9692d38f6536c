"""The dependency rule, held by walking every import in the source.

    types/errors/trees <- adapters <- models <- hypernets <- objectives <- training <- cli

`data`, `checkpoints`, `evaluation` and `tuner` look down, never up to training or the command line. `integrations` look
at everything but the jobs, and nobody looks at them. Imports inside functions count like those at the top of a file:
they delay the cost, not the dependency.
"""

from __future__ import annotations

import ast
import importlib.metadata
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

FILES = {"buckets", "files", "json_files", "locks"}
WORDS = FILES | {"types", "errors", "trees", "configs", "padding", "versions", "processes"}
BASE = WORDS | {"adapters", "models", "hypernets"}
SIDE = {"data", "checkpoints", "evaluation"}

# What gin files configure, one file per command; run as `python -m hyperflax.train` they hand over to the command line.
JOBS = {"train", "evaluate", "evaluate_suite", "infer", "finetune"}

# room -> the rooms it may import. "" is the package itself: `from hyperflax import __version__`.
MAY_IMPORT = {
    "errors": set(),
    "trees": WORDS,
    "types": WORDS,
    "configs": WORDS,
    "buckets": WORDS,
    "files": WORDS,
    "json_files": WORDS,
    "locks": WORDS,
    "padding": WORDS,
    "processes": WORDS,
    "versions": {""},
    "adapters": WORDS,
    "models": WORDS | {"adapters"},
    "hypernets": WORDS | {"adapters", "models"},
    "objectives": BASE,
    "data": BASE | {""},
    "checkpoints": BASE | {"", "data"},
    "evaluation": BASE | {"", "objectives", "data", "checkpoints"},
    "tuner": BASE | SIDE | {""},
    "training": BASE | SIDE | {"", "objectives"},
    "hypermodel": BASE | SIDE | {"", "objectives", "training"},
    "trainables": BASE | SIDE | {"", "objectives", "training", "hypermodel"},
    "serving": BASE | SIDE | {"", "hypermodel"},
    "integrations": BASE | SIDE | {"", "objectives", "training", "hypermodel"},
    "tune": BASE | SIDE | {"", "objectives", "training", "hypermodel", "finetune", "tuner"},
    "compile": BASE | SIDE | {"", "objectives", "training", "trainables"},
    "cli": BASE
    | SIDE
    | {"", "objectives", "training", "hypermodel", "trainables", "compile", "serving", "tune", "tuner", *JOBS},
    **{job: BASE | SIDE | {"", "objectives", "training", "hypermodel", "trainables"} for job in JOBS},
}
# The package's own doors: `import hyperflax` and `python -m hyperflax`.
DOORS = {"__init__", "__main__"}

# Where an optional or slow package may be imported, as globs of files; and whether only inside a function.
RESTRICTED = {
    "seqio": (["hyperflax/data/seqio_source.py", "tasks/**", "hyperflax/cli/**"], False),
    "tensorflow": (
        ["hyperflax/data/seqio_source.py", "hyperflax/integrations/**", "tasks/**", "hyperflax/cli/**"],
        True,
    ),
    "tensorflow_datasets": (["hyperflax/data/seqio_source.py", "tasks/**", "hyperflax/cli/**"], True),
    "gin": (["hyperflax/cli/**"], False),
    "matplotlib": (["**"], True),
    "ConfigSpace": (["hyperflax/tuner/**"], True),
    "pyarrow": (["hyperflax/tuner/table.py"], True),
    "dehb": (["hyperflax/tuner/packages.py"], True),
    "smac": (["hyperflax/tuner/packages.py"], True),
    "ray": (["hyperflax/tune/workers.py"], True),
    "fastapi": ([f"hyperflax/serving/{name}.py" for name in ("http", "middleware", "streams")], False),
    "pydantic": (["hyperflax/serving/messages.py"], False),
    "prometheus_client": (["hyperflax/serving/middleware.py"], False),
    "uvicorn": (["hyperflax/cli/serve.py"], True),
    "torch": ([], True),
    "pickle": ([], True),
    "t5x": (["hyperflax/integrations/t5x.py"], False),
    "clu": (["hyperflax/integrations/t5x.py"], False),
}
# On no package index, and what comes with it: whoever has T5X has them.
UNDECLARED = {"t5x", "clu"}


class Import(NamedTuple):
    file: str
    line: int
    module: str
    lazy: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def imports_of(path: pathlib.Path, root: pathlib.Path = REPOSITORY) -> Iterator[Import]:
    """Yields every import in a file; `from a import b` is yielded as `a.b`.

    Not those under `if TYPE_CHECKING:`, which never run, nor those under `if __name__ == "__main__":`, where the
    file of a job hands over to the command line.
    """

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and re.search("TYPE_CHECKING|__name__", ast.unparse(node.test)):
            return
        file = path.relative_to(root).as_posix()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, lazy)
        elif isinstance(node, ast.ImportFrom):
            package = "." * node.level + (node.module or "")
            for alias in node.names:
                yield Import(file, node.lineno, f"{package}.{alias.name}", lazy)
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, lazy)

    yield from visit(ast.parse(path.read_text("utf-8")), False)


def sources(*folders: str) -> list[pathlib.Path]:
    return sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))


def room_of(module: str) -> str | None:
    """`hyperflax.models.t5.T5` -> `models`; None for what is not ours; `` for the package itself."""
    first, _, rest = module.partition(".")
    if first != "hyperflax":
        return None
    room = rest.partition(".")[0]
    return room if room in MAY_IMPORT or (REPOSITORY / "hyperflax" / f"{room}.py").exists() else ""


def breaches(found: Import) -> list[str]:
    """What is wrong with one import, in words; empty if nothing is."""
    wrong = []
    inside = pathlib.PurePosixPath(found.file)
    if found.module.startswith(".") and inside.parts[0] == "hyperflax":
        wrong.append(f"{found}: write the full name, so that a reader sees the room")
    room = inside.parts[1].removesuffix(".py")
    target = room_of(found.module)
    if inside.parts[0] == "hyperflax" and room not in DOORS and target is not None and target != room:
        if room not in MAY_IMPORT:
            wrong.append(f"{found.file}: no rule for the room '{room}'")
        elif target not in MAY_IMPORT[room]:
            wrong.append(f"{found}: {room} may import {sorted(MAY_IMPORT[room]) or 'nothing of ours'}")
    folders = ("hyperflax_tasks", "hyperflax_gin_configs")
    if inside.parts[0] == "hyperflax" and room not in ("cli", *DOORS) and found.module.startswith(folders):
        wrong.append(f"{found}: only the command line imports task modules and gin files")
    globs, lazily = RESTRICTED.get(found.module.partition(".")[0], (["**"], False))
    if not any(_matches(found.file, glob) for glob in globs):
        wrong.append(f"{found}: allowed only in {globs or 'no file'}")
    elif lazily and not found.lazy:
        wrong.append(f"{found} at the top of the file: import it inside the function that needs it")
    return wrong


def _matches(file: str, glob: str) -> bool:
    return re.fullmatch(re.escape(glob).replace(r"\*\*", ".*").replace(r"\*", "[^/]*"), file) is not None


def test_every_import_keeps_the_dependency_rule():
    files = sources("hyperflax", "tasks")
    assert len(files) > 20
    wrong = [line for path in files for found in imports_of(path) for line in breaches(found)]
    assert not wrong, "\n".join(wrong)


def test_the_design_names_every_room():
    page = (REPOSITORY / "docs" / "design.md").read_text("utf-8").partition("## Rooms")[2].partition("The chain is")[0]
    first_column = " ".join(row.split("|")[1] for row in page.splitlines() if row)
    named = [name.removesuffix("/").removesuffix(".py") for name in re.findall("`(.+?)`", first_column)]
    assert sorted(named) == sorted(MAY_IMPORT)


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("hyperflax/adapters/a.py", "from hyperflax.models import t5", "adapters may import"),
        ("hyperflax/models/a.py", "def f():\n  import hyperflax.training.loop", "models may import"),
        ("hyperflax/data/a.py", "from hyperflax import training", "data may import"),
        ("hyperflax/evaluation/a.py", "import hyperflax.cli.main", "evaluation may import"),
        ("hyperflax/new/a.py", "import hyperflax.types", "no rule for the room 'new'"),
        ("hyperflax/data/a.py", "from .batches import f", "write the full name"),
        ("hyperflax/data/a.py", "import hyperflax_tasks.strings", "only the command line"),
        ("hyperflax/data/a.py", "def f():\n  import seqio", "allowed only in"),
        ("hyperflax/data/seqio_source.py", "import tensorflow as tf", "inside the function"),
        ("hyperflax/training/a.py", "import gin", "allowed only in"),
        ("hyperflax/evaluation/a.py", "from matplotlib import pyplot", "inside the function"),
        ("hyperflax/checkpoints/a.py", "import pickle", "allowed only in no file"),
        ("hyperflax/cli/a.py", "import hyperflax.integrations.t5x", "cli may import"),
        ("hyperflax/training/a.py", "from t5x import models", "allowed only in"),
    ],
)
def test_a_breach_is_found(tmp_path: pathlib.Path, file: str, source: str, complaint: str):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    (found,) = imports_of(path, tmp_path)
    assert complaint in "\n".join(breaches(found))


def test_third_party_imports_are_declared():
    """Whatever the package imports is among its requirements: no help from another package's requirements."""
    core, extras = set(), set()
    for line in importlib.metadata.requires("hyperflax"):
        (extras if "extra ==" in line else core).add(normal(re.match(r"[\w.-]+", line).group()))
    distributions = importlib.metadata.packages_distributions()
    for path in sources("hyperflax", "tasks"):
        for found in imports_of(path):
            top = found.module.partition(".")[0]
            if found.module.startswith((".", "hyperflax")) or top in sys.stdlib_module_names | UNDECLARED:
                continue
            names = {normal(name) for name in distributions.get(top, [top])}
            assert names & (core | extras), f"{found}: {sorted(names)} is not among the requirements in setup.py"
            assert names & core or top in RESTRICTED, f"{found}: RESTRICTED says nothing of where an extra may be used"


def normal(name: str) -> str:
    """A distribution's name as the package index compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_no_code_is_made_from_text():
    """No eval, exec or pickle-like loading: a model or adapter directory is data."""
    for path in sources("hyperflax", "tasks"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "compile"), f"{path}:{node.lineno} calls {called}"
                for keyword in node.keywords:
                    allowed = keyword.arg != "allow_pickle" or ast.unparse(keyword.value) == "False"
                    assert allowed, f"{path}:{node.lineno} allows pickle"


@pytest.mark.parametrize("statement", ["import hyperflax", "import hyperflax.cli.main"])
def test_import_brings_nothing_heavy(statement: str, tmp_path: pathlib.Path):
    """`import hyperflax` stays quick; `python -m benchmarks.peers --only start` measures the seconds."""
    code = f"{statement}; import sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    loaded = set(done.stdout.split())
    assert "hyperflax" in loaded
    assert not loaded & {"tensorflow", "seqio", "gin", "torch", "tensorflow_datasets", "matplotlib", "clu", "t5x"}
