"""Two real processes that answer a file, one of which takes longer than JAX would wait for it at the end."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator

from tests.launch.test_two_hosts import free_port
from tests.launch.worlds import REPOSITORY, TIMEOUT


@contextlib.contextmanager
def job(folder: pathlib.Path, seconds: float) -> Iterator[list[subprocess.Popen]]:
    """Yields the job's processes, the second of which takes so long for a batch; none of them stays."""
    port, environment = str(free_port()), {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.launch.job_of_two", str(folder / "in.jsonl"), str(folder / "out"), port]
    both = [
        subprocess.Popen(
            [*command, index, str(seconds)],
            env=environment,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in "01"
    ]
    try:
        yield both
    finally:
        for process in both:
            process.kill()
            process.communicate()


def test_the_host_that_is_done_waits_and_does_not_answer_again(tmp_path: pathlib.Path):
    """Longer, too, than a collective of CPUs would wait, which is half a minute."""
    texts = [f"x{number}" for number in range(10)]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps({'input': text})}\n" for text in texts))
    shards = [tmp_path / f"out-0000{index}-of-00002" for index in (0, 1)]
    with job(tmp_path, seconds=TIMEOUT) as (first, _):
        while not shards[0].exists() and first.poll() is None:
            time.sleep(0.1)
        answered = shards[0].read_bytes()
    assert len(list(tmp_path.glob(f"{shards[0].name}.*.partial"))) == 1
    with job(tmp_path, seconds=35) as both:
        said = [process.communicate(timeout=TIMEOUT) for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(error for _, error in said)
    assert [out for out, _ in said] == ["", "decoding\n"]
    assert shards[0].read_bytes() == answered
    rows = [json.loads(line) for shard in shards for line in shard.read_text().splitlines()]
    assert [row["input"] for row in rows] == texts
    assert sorted(tmp_path.iterdir()) == [tmp_path / "in.jsonl", *shards]
