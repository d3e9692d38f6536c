"""`hyperflax tune questions`, as far as one command module goes."""

from __future__ import annotations

import argparse
import json
import pathlib

import pytest

from hyperflax.cli import tune_questions
from hyperflax.errors import ConfigError, DataError
from hyperflax.tuner.questions import Endpoint
from hyperflax_tasks import question_answer
from tests.tuner.stand_in import running


def call(*arguments: str | pathlib.Path) -> int:
    parser = argparse.ArgumentParser()
    tune_questions.add_arguments(parser)
    return tune_questions.run(parser.parse_args([str(argument) for argument in arguments]))


def test_files_and_texts_that_ship(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("Io orbits Jupiter. Nobody knows why.", "utf-8")
    assert call("--text", tmp_path / "mine.txt", "units", "--out", tmp_path / "out", "--seed", "4") == 0
    told = capsys.readouterr().out
    report = json.loads((tmp_path / "out/questions.json").read_text("utf-8"))
    assert report["seed"] == 4
    assert [text["name"] for text in report["texts"]] == ["mine", "units"]
    count = 1 + report["texts"][1]["facts"]
    assert "not read: Nobody knows why." in told
    assert f"{count} facts: {10 * count} train, {count} validation, {count} test pairs; 1 unread, 0 left out" in told


def test_an_endpoint_and_its_replies(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine.txt").write_text("Lead is soft.", "utf-8")
    with running() as server:
        arguments = ("--endpoint", server.url, "--endpoint_model", "m", "--text", tmp_path / "mine.txt")
        assert call(*arguments, "--out", tmp_path / "out") == 0
        assert len(server.requests) == 2
        assert len(list((tmp_path / "out.replies").iterdir())) == 2
        assert call(*arguments, "--out", tmp_path / "again", "--replies", tmp_path / "out.replies") == 0
        assert len(server.requests) == 2
    assert (tmp_path / "out/train.jsonl").read_bytes() == (tmp_path / "again/train.jsonl").read_bytes()


def test_replies_lie_beside_the_folder_that_a_user_is_in(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    given = ["--text", "units", "--endpoint", "http://localhost:1/v1", "--endpoint_model", "m", "--out", "."]
    parser = argparse.ArgumentParser()
    tune_questions.add_arguments(parser)
    extractor = tune_questions.choose_extractor(parser.parse_args(given))
    assert isinstance(extractor, Endpoint)
    assert extractor.cache == tmp_path / "here.replies"


def test_a_folder_of_its_name_hides_no_text_that_ships(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "units").mkdir()
    monkeypatch.chdir(tmp_path)
    assert tune_questions.find_text("units") == question_answer.read("units")


def test_what_does_not_fit_together(tmp_path: pathlib.Path) -> None:
    out = ("--text", "units", "--out", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"^--key_variable: expected --endpoint, too"):
        call(*out, "--key_variable", "A_KEY")
    with pytest.raises(ConfigError, match=r"^--endpoint: expected --endpoint_model, too"):
        call(*out, "--endpoint", "http://localhost:8000/v1")
    with pytest.raises(DataError, match=r"^--text: expected a file or one of animals, .*, got 'absent\.txt'"):
        call("--text", "absent.txt", "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_help_names_every_text_that_ships() -> None:
    parser = argparse.ArgumentParser()
    tune_questions.add_arguments(parser)
    assert ", ".join(question_answer.names()) in " ".join(parser.format_help().split())
