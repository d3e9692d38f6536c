"""A pretended world for the launchers: real processes of `tests/launch/bin` stand in for gcloud, ssh and Slurm."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
BIN = pathlib.Path(__file__).with_name("bin")

TIMEOUT = 600  # seconds; on an idle machine the longest of them takes half a minute

# Values that a shell, gin or scp would take apart if it got the chance.
HOSTILE = ("'gs://bucket/a b'", "['it''s', \"$HOME\"]", "`id`", "$(id)", "a;b|c>d&", "\\n'\"'", "*", "--x={'y': 1}")


class World:
    """A folder with the launcher's working directory `here`, the hosts' folders, and what was called."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.here, self.hosts = folder, folder / "here", folder / "hosts"
        self.here.mkdir()
        self.hosts.mkdir()
        (self.here / "a.whl").write_text("a wheel")
        self.environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "WORLD": str(folder)}

    def start(self, launcher: str, *arguments: str, **environment: str) -> subprocess.Popen:
        """Starts a launcher of the repository, in a session of its own."""
        return subprocess.Popen(
            [REPOSITORY / launcher, *arguments],
            cwd=self.here,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, launcher: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Runs a launcher to its end."""
        process = self.start(launcher, *arguments, **environment)
        try:
            out, error = process.communicate(timeout=TIMEOUT)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return subprocess.CompletedProcess(arguments, process.returncode, out, error)

    def plan(self, host: str, *ends: str | int) -> None:
        """Says how the runs of a host end, one after the other; see `bin/remote-python`."""
        (self.folder / f"plan-{host}").write_text("".join(f"{end}\n" for end in ends))

    def make_slice(self) -> None:
        """A slice of two hosts that is READY."""
        for host in ("0", "1"):
            (self.hosts / host).mkdir()
        (self.folder / "node").write_text("READY\n")

    def stop_the_clock(self) -> None:
        """`date` gives one and the same second to every launcher from here on."""
        folder = self.folder / "bin"
        folder.mkdir()
        (folder / "date").write_text("#!/bin/sh\necho 20260101T000000\n")
        (folder / "date").chmod(0o755)
        self.environment["PATH"] = f"{folder}:{self.environment['PATH']}"

    def lines(self, name: str) -> list[str]:
        """A file that the pretended programs wrote, as lines."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def state(self, name: str) -> str | None:
        """State of the `node` or the `queue`, None if there is none."""
        return next(iter(self.lines(name)), None)

    def calls(self, *verbs: str) -> list[str]:
        """Calls of gcloud with these verbs, without their flags."""
        made = [" ".join(line.split()[:2]) for line in self.lines("calls")]
        return [call for call in made if not verbs or call.split()[1] in verbs]

    def logs(self) -> dict[str, str]:
        """Collected logs, `ATTEMPT/NAME` -> text."""
        paths = sorted((self.here / "hyperflax-logs").glob("*/*.log"))
        return {f"{path.parent.name.rpartition('-')[2]}/{path.name}": path.read_text() for path in paths}
