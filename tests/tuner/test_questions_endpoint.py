"""An LLM as the extractor, against a server on this machine that answers well, badly, late or never."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from hyperflax.errors import CheckpointError, ConfigError, DataError
from hyperflax.tuner.questions import Endpoint, Fact, Text, generate
from hyperflax.tuner.questions.endpoint import MAX_BODY_BYTES, PART_CHARACTERS, parts
from hyperflax.tuner.questions.post import check_url
from tests.tuner.stand_in import StandIn, body, good, running

TEXT = Text("metals", "Copper conducts heat. Lead is soft.")
FACT = Fact("Lead is soft.", "metals")
KEY = "sk-secret-0123456789"


@pytest.fixture
def server() -> Iterator[StandIn]:
    with running() as stand_in:
        yield stand_in


class Waits(list):
    """Takes the place of `sleep`, and remembers for how long."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def endpoint(server: StandIn, folder: pathlib.Path, **settings: Any) -> Endpoint:
    settings = {"cache": folder / "replies", "timeout": 20.0, "attempts": 3, "sleep": Waits(), **settings}
    return Endpoint(server.url, "a-model", **settings)


def pairs(count: int = 12, **fields: Any) -> bytes:
    made = [{"question": f"Which {n}?", "answer": "soft", **fields} for n in range(count)]
    return body(json.dumps({"pairs": made}))


# A good server


def test_a_data_set_from_an_endpoint(server: StandIn, tmp_path: pathlib.Path) -> None:
    report = generate([TEXT], endpoint(server, tmp_path), tmp_path / "out")
    assert [fact["statement"] for fact in report["facts"].values()] == ["Copper conducts heat.", "Lead is soft."]
    assert report["pairs"] == {"train": 20, "validation": 2, "test": 2}
    assert report["extractor"]["model"] == "a-model"
    assert server.paths == ["/v1/chat/completions"] * 3
    assert [request["messages"][1]["content"] for request in server.requests] == [
        TEXT.content,
        "Copper conducts heat.",
        "Lead is soft.",
    ]
    assert {tuple(sorted(request)) for request in server.requests} == {("messages", "model", "response_format")}
    assert all("Authorization" not in headers for headers in server.headers)


def test_a_reply_in_a_fence_and_on_several_lines(server: StandIn, tmp_path: pathlib.Path) -> None:
    made = json.loads(json.loads(pairs())["choices"][0]["message"]["content"])
    made["pairs"][0]["question"] = "What\n  is it?"
    server.answers = [(200, {}, body(f"```json\n{json.dumps(made)}\n```"))]
    assert endpoint(server, tmp_path).pairs(FACT)[0][:2] == ("What is it?", "soft")


def test_long_texts_go_in_parts(server: StandIn, tmp_path: pathlib.Path) -> None:
    content = " ".join(f"Stone {n} is hard." for n in range(1000))
    extraction = endpoint(server, tmp_path).facts(Text("stones", content))
    assert [fact.statement.strip() for fact in extraction.facts] == [f"Stone {n} is hard." for n in range(1000)]
    assert len(server.requests) == len(list(parts(content))) == -(-len(content) // PART_CHARACTERS)
    assert max(map(len, parts(content + "x" * 3 * PART_CHARACTERS))) == PART_CHARACTERS


def test_a_part_without_a_fact_is_unread(server: StandIn, tmp_path: pathlib.Path) -> None:
    server.answers = [(200, {}, body('{"facts": []}'))]
    extraction = endpoint(server, tmp_path).facts(Text("mood", "How lovely!"))
    assert (list(extraction.facts), list(extraction.unread)) == ([], ["How lovely!"])


# A server in trouble


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_busy_server_is_asked_again_after_a_while(server: StandIn, tmp_path: pathlib.Path, status: int) -> None:
    told: list[str] = []
    waits = Waits()
    server.answers = [(status, {}, b"slow down"), (status, {"Retry-After": "7"}, b"")]
    assert len(endpoint(server, tmp_path, sleep=waits, say=told.append).pairs(FACT)) == 12
    assert waits == [1.0, 7.0]
    assert f"expected status 200, got {status} ('slow down'); trying again in 1 seconds" in told[0]
    assert server.requests[0] == server.requests[1] == server.requests[2]


def test_waits_double_and_end(server: StandIn, tmp_path: pathlib.Path) -> None:
    waits = Waits()
    server.answers = [(429, {"Retry-After": "999999" if n == 1 else "soon"}, b"") for n in range(5)]
    with pytest.raises(DataError, match=r"got 429 .*; given up after 5 calls. Valid replies are kept in .*replies"):
        endpoint(server, tmp_path, sleep=waits, attempts=5).pairs(FACT)
    assert waits == [1.0, 300.0, 4.0, 8.0]
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "got 400 \\('no such model'\\)"),
        (401, "got 401 .*the key is read from nowhere"),
        (404, "got 404"),
        (302, "got 302"),
    ],
)
def test_a_refusal_is_final(server: StandIn, tmp_path: pathlib.Path, status: int, message: str) -> None:
    """A redirect is a refusal, too: a key goes nowhere but where the user said."""
    server.answers = [(status, {"Location": f"{server.url}/elsewhere"}, b"no such model")]
    with pytest.raises(DataError, match=message):
        endpoint(server, tmp_path).pairs(FACT)
    assert len(server.requests) == 1


BROKEN = {
    "no json": b"<html>",
    "no choices": b'{"choices": []}',
    "null content": b'{"choices": [{"message": {"content": null}}]}',
    "not utf-8": b'{"choices": [{"message": {"content": "\xff"}}]}',
    "deep": b'{"choices": ' + b"[" * 100_000,
    "prose": body("Here are your pairs."),
    "cut off": pairs()[:-10],
    "eleven pairs": pairs(11),
    "thirteen pairs": pairs(13),
    "a number": pairs(answer=7),
    "no answer": pairs(answer="  "),
    "equal questions": pairs(question="Which?"),
    "a long question": pairs(question="x" * 301),
    "a control character": pairs(answer="so\x00ft"),
    "half a surrogate": pairs(answer="\ud800"),
    "a list": body("[1]"),
    "huge": b" " * (MAX_BODY_BYTES + 1),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_invalid_reply_is_asked_for_again(server: StandIn, tmp_path: pathlib.Path, name: str) -> None:
    server.answers = [(200, {}, BROKEN[name])]
    assert len(endpoint(server, tmp_path).pairs(FACT)) == 12
    assert len(server.requests) == 2
    (kept,) = (tmp_path / "replies").iterdir()
    assert (
        json.loads(kept.read_text("utf-8"))["content"]
        == json.loads(good(server.requests[0]))["choices"][0]["message"]["content"]
    )


def test_the_model_is_told_what_was_wrong(server: StandIn, tmp_path: pathlib.Path) -> None:
    server.answers = [(200, {}, pairs(11)), (200, {}, pairs(question="Which?"))]
    endpoint(server, tmp_path).pairs(FACT)
    assert [len(request["messages"]) for request in server.requests] == [2, 3, 3]
    assert "Your last reply could not be used" in server.requests[1]["messages"][2]["content"]
    assert "got 'Which?' twice" in server.requests[2]["messages"][2]["content"]


def test_replies_that_stay_invalid(server: StandIn, tmp_path: pathlib.Path) -> None:
    server.answers = [(200, {}, body('{"facts": ["?!"]}'))] * 3
    with pytest.raises(DataError, match=r"an invalid reply, expected statements in words, got '\?!'; given up after 3"):
        endpoint(server, tmp_path).facts(TEXT)
    assert not (tmp_path / "replies").exists()


def test_silence_and_trickling_end_at_the_deadline(server: StandIn, tmp_path: pathlib.Path) -> None:
    """A time-out for each read would never end the second."""
    over = threading.Event()

    def never(handler: Any) -> None:
        over.wait(30)

    def trickle(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not over.wait(0.05):
            handler.wfile.write(b" ")

    told: list[str] = []
    server.answers = [never, trickle]
    begun = time.monotonic()
    assert len(endpoint(server, tmp_path, timeout=3.0, say=told.append).pairs(FACT)) == 12
    over.set()
    assert time.monotonic() - begun < 25
    assert len(told) == 2
    assert "expected an answer within 3 seconds, got none" in told[1]


def test_no_server(tmp_path: pathlib.Path) -> None:
    with running() as stand_in:
        pass
    with pytest.raises(DataError, match=r"expected an answer, got URLError .*refused.*given up after 3 calls"):
        endpoint(stand_in, tmp_path).pairs(FACT)


def test_a_connection_that_breaks(server: StandIn, tmp_path: pathlib.Path) -> None:
    server.answers = [lambda handler: handler.wfile.write(b"nonsense\r\n\r\n"), (200, {"Content-Length": "99"}, b"{")]
    assert len(endpoint(server, tmp_path).pairs(FACT)) == 12
    assert len(server.requests) == 3


# Kept replies


def test_a_killed_run_repeats_no_call(server: StandIn, tmp_path: pathlib.Path) -> None:
    """The third call dies as a kill would; then the run is started anew, and a third time with nothing left to ask."""

    class KilledError(BaseException):
        pass

    def kill(seconds: float) -> None:
        raise KilledError

    def broken_at_the_third(request: Any) -> bytes:
        return good(request) if len(server.requests) < 3 else b"broken"

    server.well = broken_at_the_third
    with pytest.raises(KilledError):
        generate([TEXT], endpoint(server, tmp_path, sleep=kill), tmp_path / "out")
    assert len(server.requests) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["replies"]
    server.well = good
    report = generate([TEXT], endpoint(server, tmp_path), tmp_path / "out")
    assert len(server.requests) == 4
    assert server.requests[3] == server.requests[2]
    assert generate([TEXT], endpoint(server, tmp_path), tmp_path / "again") == report
    assert len(server.requests) == 4


def test_replies_of_another_model_or_text_are_not_taken(server: StandIn, tmp_path: pathlib.Path) -> None:
    first = endpoint(server, tmp_path)
    first.pairs(FACT)
    dataclasses.replace(first, model="another").pairs(FACT)
    first.pairs(Fact("Lead is heavy.", "metals"))
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"content": "{}"}', "a broken reply, expected a json object of the asked form"),
        ('{"content": 3}', "a broken reply, content: expected a string, got int"),
        ('{"content": ', "expected json"),
    ],
)
def test_a_broken_kept_reply_is_named(server: StandIn, tmp_path: pathlib.Path, content: str, message: str) -> None:
    endpoint(server, tmp_path).pairs(FACT)
    (kept,) = (tmp_path / "replies").iterdir()
    kept.write_text(content)
    with pytest.raises(CheckpointError, match=rf"{kept.name}: {message}"):
        endpoint(server, tmp_path).pairs(FACT)


# The key


def test_the_key_is_sent_and_nowhere_else(
    server: StandIn, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", f" {KEY}\n")
    told: list[str] = []
    server.answers = [(500, {}, f"wrong: {KEY}".encode()), (200, {}, pairs(answer=f"the key {KEY}"))]
    asker = endpoint(server, tmp_path, key_variable="A_KEY", say=told.append)
    assert asker.pairs(FACT)[0].answer == "the key [key]"
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    written = [path.read_text("utf-8") for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    for text in [*written, *told, repr(asker), json.dumps(asker.describe())]:
        assert KEY not in text
    server.answers = [(401, {}, KEY.encode())]
    with pytest.raises(DataError, match=r"got 401 \('\[key\]'\); the key is read from A_KEY"):
        asker.facts(TEXT)


def test_a_word_as_key_changes_no_reply(
    server: StandIn, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers at home take any key, and users give them one like this."""
    monkeypatch.setenv("A_KEY", "soft")
    assert endpoint(server, tmp_path, key_variable="A_KEY").pairs(FACT)[0].answer == "soft."


@pytest.mark.parametrize("key", [None, "", "two\nlines", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_not_shown(
    server: StandIn, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("A_KEY", key)
    with pytest.raises(ConfigError, match=r"^endpoint: expected a key in the environment variable A_KEY, found none$"):
        endpoint(server, tmp_path, key_variable="A_KEY").pairs(FACT)
    assert server.requests == []


def test_a_proxy_does_not_see_what_goes_to_this_machine(
    server: StandIn, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert len(endpoint(server, tmp_path, attempts=1).pairs(FACT)) == 12


@pytest.mark.parametrize(
    ("url", "has_key", "message"),
    [
        ("localhost:8000", False, "expected a URL such as"),
        ("file:///etc/passwd", False, "expected a URL such as"),
        ("http://", False, "expected a URL such as"),
        ("http://host:99999/v1", False, "expected a URL such as"),
        ("http://ho st/v1", False, "expected a URL such as"),
        ("http://host/v1\n", False, "expected a URL such as"),
        ("https://me:secret@host/v1", False, "without user, query and fragment; a key comes from a variable$"),
        ("https://host/v1?key=secret", False, "without user, query and fragment"),
        ("http://host/v1", True, "expected https for a key, got http to host"),
        ("http://localhost.example.org/v1", True, "expected https for a key"),
    ],
)
def test_urls_that_are_refused(url: str, has_key: bool, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_url(url, has_key)


@pytest.mark.parametrize(
    "url", ["https://host/v1", "http://localhost:1/v1", "http://127.0.0.2/v1", "http://[::1]:8/v1"]
)
def test_urls_that_a_key_may_go_to(url: str) -> None:
    check_url(url, has_key=True)


@pytest.mark.parametrize("settings", [{"model": ""}, {"timeout": 0}, {"attempts": 0}])
def test_settings_that_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected a model, a positive time-out and at least one attempt"):
        Endpoint(**{"url": "https://host/v1", "model": "m", "cache": "replies", **settings})
