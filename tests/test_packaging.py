"""What a user gets by installing: the right files under the right names, from a wheel, an sdist or an editable install.

The package is built from a copy of the tree, without a network, and installed into an empty virtual environment, one
that has no third-party package at all: `import hyperflax` and `hyperflax --help` need none.
"""

from __future__ import annotations

import ast
import email
import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
from packaging.requirements import Requirement

import hyperflax

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = {"hyperflax": "hyperflax", "tasks": "hyperflax_tasks", "gin_configs": "hyperflax_gin_configs"}
BESIDE_IT = ("docs", "launch", "requirements")  # folders of an sdist alone
SHIPPED = {".py", ".gin", ".json", ".jsonl", ".txt", ".html", ".parquet", ".safetensors", ".typed"}
LOCKS = {path.stem: path.read_text("utf-8") for path in sorted((REPOSITORY / "requirements").glob("*.lock"))}


def in_the_tree() -> set[str]:
    """Every file that belongs into the package, by its installed name."""
    names = set()
    for folder, installed in FOLDERS.items():
        for path in (REPOSITORY / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.suffix in SHIPPED, f"{path}: setup.py ships no file of this kind"
                names.add((pathlib.PurePosixPath(installed) / path.relative_to(REPOSITORY / folder)).as_posix())
    return names


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A copy of the tree to build in, so that the build leaves nothing in the repository."""
    out = tmp_path_factory.mktemp("source") / "hyperflax"
    out.mkdir()
    for folder in (*FOLDERS, *BESIDE_IT):
        shutil.copytree(REPOSITORY / folder, out / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in REPOSITORY.iterdir():
        if path.is_file():
            shutil.copy(path, out / path.name)
    return out


def build(source: pathlib.Path, kind: str, out: pathlib.Path) -> pathlib.Path:
    """Builds a 'wheel', an 'sdist' or an 'editable' wheel with this environment's setuptools."""
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(out)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = [path for path in out.iterdir() if path.suffix in (".whl", ".gz")]
    return built


@pytest.fixture(scope="module")
def wheel(copy: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return build(copy, "wheel", tmp_path_factory.mktemp("wheel"))


def files_in(wheel: pathlib.Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def metadata(wheel: pathlib.Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_holds_the_tree_and_nothing_else(wheel: pathlib.Path):
    assert files_in(wheel) == in_the_tree()


def test_the_sdist_is_whole_and_builds_the_same_wheel(copy: pathlib.Path, wheel: pathlib.Path, tmp_path: pathlib.Path):
    for name in ("sdist", "unpacked", "wheel"):
        (tmp_path / name).mkdir()
    with tarfile.open(build(copy, "sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    for folder in BESIDE_IT:
        unpacked, tree = ({path.relative_to(root) for path in (root / folder).rglob("*")} for root in (source, copy))
        assert unpacked == tree
    assert files_in(build(source, "wheel", tmp_path / "wheel")) == files_in(wheel)


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_installed_names_are_found_in_any_directory(
    kind: str, copy: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    built, elsewhere, environment = tmp_path / "built", tmp_path / "elsewhere", tmp_path / "venv"
    built.mkdir()
    elsewhere.mkdir()
    package = build(copy, kind, built)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-qq", "--no-deps", "--no-index", package]
    subprocess.run(install, check=True)

    def run(*command: str | pathlib.Path) -> str:
        return subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=True).stdout.strip()

    code = """if True:
        import importlib.resources, pathlib, hyperflax, hyperflax_gin_configs, hyperflax_tasks
        for package in (hyperflax, hyperflax_tasks, hyperflax_gin_configs):
            print(pathlib.Path(package.__file__).parent)
        print(sum(1 for path in pathlib.Path(hyperflax_gin_configs.__file__).parent.rglob("*.gin")))
        print(hyperflax.__version__)"""
    *places, gin_files, version = run(python, "-c", code).splitlines()
    if kind == "editable":
        assert places == [str(copy / folder) for folder in FOLDERS]
    else:
        site = pathlib.Path(places[0]).parent
        assert site.is_relative_to(environment)
        assert places == [str(site / name) for name in FOLDERS.values()]
    assert int(gin_files) == len(list((REPOSITORY / "gin_configs").rglob("*.gin")))
    assert version == hyperflax.__version__
    assert run(environment / "bin" / "hyperflax", "--version") == f"hyperflax {hyperflax.__version__}"
    assert "demo" in run(environment / "bin" / "hyperflax", "--help")


def test_metadata(metadata: email.message.Message):
    assert metadata["Version"] == hyperflax.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra")) >= {"seqio", "cuda", "tpu", "test"}
    core = {Requirement(line).name for line in metadata.get_all("Requires-Dist") if "extra" not in line}
    assert core >= {"jax", "flax", "optax", "orbax-checkpoint", "tensorstore", "safetensors", "sentencepiece"}
    assert not core & {"seqio", "tensorflow", "tensorflow-datasets", "torch"}


def test_every_requirement_of_the_core_is_imported(metadata: email.message.Message):
    """Nobody downloads what nothing uses."""
    files = [path for folder in ("hyperflax", "tasks") for path in (REPOSITORY / folder).rglob("*.py")]
    statement = re.compile(r"^ *(?:import|from) (\w+)", re.MULTILINE)
    imported = {name for path in files for name in statement.findall(path.read_text("utf-8"))}
    providers = importlib.metadata.packages_distributions()
    used = {_normal(provider) for name in imported for provider in providers.get(name, ())}
    needs = [Requirement(line) for line in metadata.get_all("Requires-Dist") if "extra" not in line]
    assert [need.name for need in needs if _normal(need.name) not in used] == []


def test_the_changelog_leads_with_this_version():
    first = re.search(r"^## \[([^\]]+)\]", (REPOSITORY / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert first.group(1) in (hyperflax.__version__, "Unreleased")


def test_named_extras_exist(metadata: email.message.Message):
    """`MissingExtraError(module, extra)` answers with a pip command that works."""
    named = {}
    for folder in FOLDERS:
        for path in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("MissingExtraError"):
                    named[ast.literal_eval(node.args[1])] = f"{path}:{node.lineno}"
    assert named.keys() <= set(metadata.get_all("Provides-Extra")), named


def pins(lock: str) -> list[Requirement]:
    lines = [line.split("#")[0].strip() for line in lock.splitlines()]
    return [Requirement(line) for line in lines if line]


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_is_a_plain_list_of_pins(name: str):
    for requirement in pins(LOCKS[name]):
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), requirement
        assert requirement.url is None
    assert not re.search(r"://|file:|--|@|\\|/", LOCKS[name]), "an address, an option, a hash or a path"


@pytest.mark.parametrize("name", ["test", "interop"])
def test_the_core_lock_is_part_of_the_others(name: str):
    assert {str(pin) for pin in pins(LOCKS["core"])} <= {str(pin) for pin in pins(LOCKS[name])}


def test_the_locks_agree():
    """A package is pinned in the same way wherever it is: `make lock` has test.lock bind the others."""
    ways: dict[str, dict[str, set[str]]] = {}
    for lock, text in LOCKS.items():
        for pin in pins(text):
            ways.setdefault(_normal(pin.name), {}).setdefault(lock, set()).add(str(pin))
    assert [locks for locks in ways.values() if len(set(map(frozenset, locks.values()))) > 1] == []


def applies(line: Requirement, python: str, extra: str = "") -> bool:
    here = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux", "extra": extra}
    return not line.marker or line.marker.evaluate(here)


def pinned(lock: str, python: str) -> dict[str, str]:
    """The version of each package under a version of Python."""
    found = {}
    for pin in pins(LOCKS[lock]):
        if applies(pin, python):
            assert _normal(pin.name) not in found, f"{pin.name} is pinned twice for Python {python}"
            found[_normal(pin.name)] = next(iter(pin.specifier)).version
    return found


@pytest.mark.parametrize("lock", ["core", "test", "interop"])
@pytest.mark.parametrize(("python", "jax"), [("3.11", "0.10."), ("3.12", "0.12.")])
def test_a_lock_satisfies_the_requirements(metadata: email.message.Message, lock: str, python: str, jax: str):
    """Under each Python everything that it is compiled from is pinned exactly once, within its bounds."""
    (command,) = re.findall(rf"(.*) -o requirements/{lock}\.lock", (REPOSITORY / "Makefile").read_text("utf-8"))
    extras = ["", *re.findall(r"--extra (\S+)", command)]
    found = pinned(lock, python)
    for need in map(Requirement, metadata.get_all("Requires-Dist")):
        if any(applies(need, python, extra) for extra in extras):
            assert need.specifier.contains(found[_normal(need.name)]), f"{lock}.lock: {need}; run make lock"
    assert found["jax"].startswith(jax)


def test_the_tpu_lock_has_the_compiler_that_jax_asks_for():
    for python in ("3.11", "3.12"):
        assert list(pinned("tpu", python)) == ["libtpu"]
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if importlib.metadata.version("jax") != pinned("core", python)["jax"]:
        pytest.skip("needs the jax of core.lock, which names its compiler")
    (need,) = [need for need in map(Requirement, importlib.metadata.requires("jax")) if need.name == "libtpu"]
    assert need.specifier.contains(pinned("tpu", python)["libtpu"])


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
