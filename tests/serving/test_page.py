"""The page in a real browser, before the real service: what a user does, and that nothing else happens."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from hyperflax.adapters.kinds import build_spec
from hyperflax.adapters.prefix import Prefix
from hyperflax.checkpoints.artefacts import Adapter, AdapterMetadata, load_adapter
from hyperflax.errors import AdapterError
from hyperflax.serving.bounds import ServiceConfig
from hyperflax.serving.engine import Request
from hyperflax.serving.http import Limits, create_app
from hyperflax.serving.messages import MOST_ITEMS
from hyperflax.serving.page import load_page
from hyperflax.serving.service import Service
from hyperflax.serving.store import Made
from tests.evaluation.micro import hypermodel

PAIRS = [("ab", "AB"), ("cd", "CD"), ("ef", "EF")]
INPUTS = ["gh", "i", "jklm"]
TOKEN = "Sesam, öffne dich"
SECONDS, LONG = 30, 600  # until something is there; and where it may have to be compiled first
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,1000",
)


class Page:
    """The page as a user meets it, by ids and by what stands on the buttons."""

    def __init__(self, driver: webdriver.Chrome, downloads: pathlib.Path):
        self.driver, self.downloads = driver, downloads
        self.expected: set[int] = set()  # statuses of refusals, which a browser writes to its console

    def open(self, address: str) -> None:
        self.origin = address
        self.driver.get(address)

    def __getitem__(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def read(self, selector: str, what: str) -> list[str]:
        """One property of all that a selector finds, read at one instant: the page may be at work meanwhile."""
        script = "return [...document.querySelectorAll(arguments[0])].map((found) => found[arguments[1]])"
        return self.driver.execute_script(script, selector, what)

    def texts(self, selector: str) -> list[str]:
        return self.read(selector, "textContent")

    def said_by(self, name: str) -> Callable[[], list[str]]:
        """What an element says from now on, each text once it is there, however briefly: a slow machine looks late."""
        script = """
            const [element, said] = [arguments[0], []];
            new MutationObserver(() => said.push(element.textContent)).observe(element, { childList: true });
            element.said = said;
        """
        element = self[name]
        self.driver.execute_script(script, element)
        return lambda: self.driver.execute_script("return arguments[0].said", element)

    def press(self, label: str) -> None:
        self.driver.find_element(By.XPATH, f"//button[normalize-space()='{label}' or @aria-label='{label}']").click()

    def write(self, name: str, text: str) -> None:
        self[name].clear()
        self[name].send_keys(text)

    def wait(self, until: Callable[[], Any], seconds: float = SECONDS) -> Any:
        return WebDriverWait(self.driver, seconds, poll_frequency=0.1).until(lambda _: until())

    def wait_for_error(self, name: str, *parts: str) -> str:
        """Waits for an error beside a field, which then is all that is wrong, and says so."""
        text = self.wait(lambda: self[f"{name}-error"].text)
        assert all(part in text for part in parts), text
        assert [found for found in self.texts(".error") if found] == [text]
        return text

    def table(self) -> list[tuple[str, str]]:
        values = self.read("#rows textarea", "value")
        return list(zip(values[::2], values[1::2], strict=True))

    def give(self, pairs: list[tuple[str, str]], inputs: list[str] | None = None) -> None:
        """Fills in examples, as one who pastes, and inputs."""
        self.press("Clear")
        self.driver.execute_script("arguments[0].value = arguments[1]", self["pasted"], _tsv(pairs))
        self.press("Add to the table")
        if inputs is not None:
            self.write("inputs", "\n".join(inputs))

    def make(self) -> str:
        """Makes the adapter of the examples. Returns its id."""
        self.press("Make the adapter")
        self.wait(lambda: self["make-status"].text == "The adapter is ready.", LONG)
        return self["adapter-id"].text

    def predict(self) -> dict[str, list[str]]:
        """Returns the columns of the results."""
        self.press("Predict")
        self.wait(lambda: self["predict-status"].text.startswith("Done"), LONG)
        return {name: self.texts(f"#results td.{name}") for name in ("adapted", "bare")}

    def downloaded(self, pattern: str) -> pathlib.Path:
        return self.wait(lambda: next(self.downloads.glob(pattern), None))

    def resize(self, width: int) -> None:
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def close(self) -> None:
        """Nothing in the console but refusals that the test has asked for, and no request to anybody else."""
        console = self.driver.get_log("browser")
        told = [f"status of {status}" for status in self.expected]
        assert [line for line in console if not any(text in line["message"] for text in told)] == []
        events = [json.loads(line["message"])["message"] for line in self.driver.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        asked = [params["request"]["url"] for params in sent]
        own = [f"{self.origin}/", "data:", f"blob:{self.origin}/"]
        assert asked
        assert [url for url in asked if not url.startswith(tuple(own))] == []


def _tsv(rows: list[tuple[str, str]]) -> str:
    return "".join(f"{a}\t{b}\n" for a, b in rows)


@contextlib.contextmanager
def served(app: FastAPI, *, lifespan: Any = "off") -> Iterator[str]:
    """The app on a free port; yields its address. Without a lifespan it neither starts the service nor ends it."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan=lifespan))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("needs Chromium and its driver: on Debian, apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def service(driver: webdriver.Chrome, tmp_path_factory: pytest.TempPathFactory) -> Service:
    return Service(hypermodel(), tmp_path_factory.mktemp("adapters"), ServiceConfig(rows=4, resident=2, hosted=3))


@pytest.fixture(scope="module")
def address(service: Service) -> Iterator[str]:
    with served(create_app(service), lifespan="on") as found:
        while not service.ready:
            assert service.failure is None
            time.sleep(0.1)
        yield found


@pytest.fixture
def page(driver: webdriver.Chrome, address: str, tmp_path: pathlib.Path) -> Iterator[Page]:
    for log in ("browser", "performance"):
        driver.get_log(log)
    where = {"behavior": "allow", "downloadPath": str(tmp_path)}
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", where)
    page = Page(driver, tmp_path)
    page.open(address)
    page.wait(lambda: page["former-status"].text)
    yield page
    page.close()


def test_an_adapter_is_made_judged_used_kept_and_deleted(page: Page) -> None:
    model = hypermodel()
    page.give(PAIRS, INPUTS)
    assert page.table() == PAIRS
    key = page.make()
    # Of use at once, while the estimate is under way.
    assert page.predict() == {"adapted": model.predict(INPUTS, model.adapt(PAIRS)), "bare": model.predict(INPUTS)}
    page.press("Download TSV")
    lines = page.downloaded("predictions.tsv").read_text().splitlines()
    assert lines[0] == "input\tadapted\tbare"
    said = page.said_by("copy-results")
    for _ in range(2):
        page["copy-results"].click()
    page.wait(lambda: said().count("Copied") == 2 and said()[-1] == "Copy as TSV")
    page["inputs"].clear()
    page["inputs"].send_keys(Keys.CONTROL, "v")
    assert (page["inputs"].get_attribute("value") or "").startswith(f"input\tadapted\tbare\n{INPUTS[0]}\t")

    page.wait(lambda: page.all("#advice"), LONG)
    found = page_estimate(page, key)
    assert page["advice"].text.startswith(found["advice"].capitalize())
    assert found["reason"] in page["advice"].text
    bars = [line.text for line in page.all("#chart li")]
    assert [line.split()[0] for line in bars] == ["bare", "in_context", "mismatched", "generated", "refined"]
    for line in bars:
        interval = found["conditions"][line.split()[0]]
        assert line.endswith(f"{interval['mean']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]")
    whisker = page.all("#chart li .whisker")[0].rect
    track = page.all("#chart li .track")[0].rect
    bare = found["conditions"]["bare"]
    assert whisker["width"] / track["width"] == pytest.approx(bare["high"] - bare["low"], abs=0.02)
    assert len(page.all("#left-out tbody tr")) == len(PAIRS)

    for width in (375, 1200):  # on a phone nothing sticks out either
        page.resize(width)
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= width

    page.press("Download")
    with zipfile.ZipFile(page.downloaded("*-native.zip")) as archive:
        archive.extractall(page.downloads)
    adapter = load_adapter(page.downloads / f"adapter-{key[:8]}")
    assert model.predict(INPUTS, adapter) == model.predict(INPUTS, model.adapt(PAIRS))
    page.press("Download for PEFT")
    with zipfile.ZipFile(page.downloaded("*-peft.zip")) as archive:
        assert f"adapter-{key[:8]}/adapter_config.json" in archive.namelist()

    page.open(page.origin)
    page.wait(lambda: page.all("#former tr"))
    assert not page["adapter"].is_displayed()
    page.press(f"Use {key[:8]}")
    page.wait(lambda: page.all("#advice"))
    assert page["adapter-id"].text == key
    page.press("Delete")
    page.driver.switch_to.alert.accept()
    page.wait(lambda: page["former-status"].text == "There are none.")
    assert not page["adapter"].is_displayed()


def test_an_adapter_that_somebody_else_has_deleted_can_be_put_away(page: Page, service: Service) -> None:
    page.expected = {404}
    page.give(PAIRS[:1])
    service.store.remove(page.make())
    page["delete"].click()
    page.driver.switch_to.alert.accept()
    page.wait(lambda: not page["adapter"].is_displayed())
    assert not page["adapter-error"].text


def test_former_adapters_are_listed_a_few_at_a_time(page: Page, service: Service) -> None:
    for key in service.store.listed.result().page(1000).ids:  # of other tests
        service.store.remove(key)
    adapter = hypermodel().adapt(PAIRS)
    keys = [f"{number:032x}" for number in range(25)]
    for number, key in enumerate(keys):
        service.store.save(Made(key, 3), adapter)
        file = service.store.folder / key / "adapter.json"
        os.utime(file, (2e9 + number, 2e9 + number))  # each newer than the one before
        assert key in service.store
    newest = [key[:8] for key in keys[::-1]]
    page.open(page.origin)
    page.wait(lambda: page.texts("#former td.id") == newest[:20])
    assert page["former-status"].text == "25 adapters, 20 of them shown."
    # Another process removes one that is listed: the page does without it.
    shutil.rmtree(service.store.folder / keys[-1])
    page.press("Show more")
    page.wait(lambda: page.texts("#former td.id") == newest[1:])
    assert not page["more-former"].is_displayed()
    assert page["former-status"].text == "24 adapters."
    for key in keys[:-1]:
        service.store.remove(key)
    page.expected = {404}


def test_a_damaged_adapter_is_listed_and_can_be_deleted(page: Page, service: Service) -> None:
    page.expected = {500}
    for key in service.store.listed.result().page(1000).ids:  # of other tests
        service.store.remove(key)
    keys = damaged, whole = "c" * 32, "d" * 32
    for key in keys:
        service.store.save(Made(key, 3), hypermodel().adapt(PAIRS))
    file = service.store.folder / damaged / "made.json"
    file.write_bytes(file.read_bytes()[:20])
    page.open(page.origin)
    page.wait(lambda: page["former-status"].text == "2 adapters.")
    (row,) = (text for text in page.texts("#former tr") if text.startswith(damaged[:8]))
    assert "It cannot be read" in row
    assert page.texts("#former .use") == ["Use"]
    page.press(f"Delete {damaged[:8]}")
    page.driver.switch_to.alert.accept()
    page.wait(lambda: page["former-status"].text == "1 adapter.")
    service.store.remove(whole)


def test_an_adapter_of_another_model_is_listed_and_not_offered(page: Page, service: Service) -> None:
    for key in service.store.listed.result().page(1000).ids:  # of other tests
        service.store.remove(key)
    spec = build_spec(Prefix(length=2), service.model.config.base)
    foreign, own = "c" * 32, "d" * 32
    origin = AdapterMetadata(service.model.base_fingerprint, hypermodel="other@0123456789ab")
    service.store.save(Made(foreign, 3), Adapter(spec.identity(), spec, origin))
    service.store.save(Made(own, 3), hypermodel().adapt(PAIRS))
    page.open(page.origin)
    page.wait(lambda: page["former-status"].text == "2 adapters.")
    (row,) = (text for text in page.texts("#former tr") if text.startswith(foreign[:8]))
    assert "Another model's: this service cannot use it." in row
    (why,) = filter(None, page.read("#former .note", "title"))
    assert f"was made by other@0123456789ab, this service runs {service.model.parts.id}" in why
    assert page.read("#former .use", "ariaLabel") == [f"Use {own[:8]}"]
    for key in (foreign, own):
        service.store.remove(key)


def test_what_is_cut_off_does_not_look_finished(page: Page, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = service.engine.turn

    def unfinished() -> list[Request]:
        """The half of what one turn decodes, and no end."""
        turn()
        for request in (request for call in service._calls for request in call.requests):
            request.tokens, request.done = request.tokens[: len(request.tokens) // 2], False
        return []

    page.write("inputs", "gh")
    with monkeypatch.context() as patch:
        patch.setattr(service.engine, "turn", unfinished)
        page.press("Predict")
        page.wait(lambda: any(page.texts("#results td.bare")))
        page.press("Stop")
        page.wait(lambda: page["predict-status"].text == "Stopped.")
    whole, (shown,) = hypermodel().predict(["gh"])[0], page.texts("#results td.bare")
    assert whole.startswith(shown)
    assert shown != whole
    after = 'return getComputedStyle(document.querySelector("#results td.bare"), "::after").content'
    assert page.driver.execute_script(after) == '" (cut off)"'
    page.press("Download TSV")
    assert page.downloaded("predictions.tsv").read_text() == "input\tbare\ngh\t\n"


def test_what_an_adapter_was_not_read_from_is_said(page: Page, service: Service) -> None:
    key, told = "e" * 32, "1 of 3 examples are read, a row of 32 tokens has no room for more"
    service.store.save(Made(key, 3, warnings=[told]), hypermodel().adapt(PAIRS))
    page.open(page.origin)
    page.wait(lambda: key[:8] in page.texts("#former td.id"))
    page.press(f"Use {key[:8]}")
    page.wait(lambda: page["adapter-about"].text == f"Made of 3 examples; {told}")
    service.store.remove(key)


def test_an_adapter_without_an_estimate_says_why(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_: Any, **__: Any) -> None:
        raise AdapterError("condition 'refined': the logits are not finite")

    monkeypatch.setattr("hyperflax.serving.maker.estimate", diverge)
    page.give([("pq", "PQ"), ("rs", "RS")])
    page.make()
    told = "There is no estimate: condition 'refined': the logits are not finite."
    page.wait(lambda: page["estimate-status"].text == told)
    assert not page["estimate-again"].is_displayed()


def test_the_adapter_that_is_picked_last_is_used(page: Page, service: Service) -> None:
    slow, fast = keys = ["a" * 32, "b" * 32]
    for key in keys:
        service.store.save(Made(key, 3), hypermodel().adapt(PAIRS))
    page.open(page.origin)
    page.wait(lambda: {key[:8] for key in keys} <= set(page.texts("#former td.id")))
    late = """
        const [ask, slow] = [window.fetch, arguments[0]];
        window.fetch = async (...given) => {
          const answer = await ask(...given);
          if (given[0].endsWith(slow)) await new Promise((resolve) => (window.goOn = resolve));
          return answer;
        };
    """
    page.driver.execute_script(late, slow)
    page.press(f"Use {slow[:8]}")
    page.press(f"Use {fast[:8]}")
    page.wait(lambda: page["adapter-id"].text == fast)
    page.driver.execute_script("window.goOn()")
    page.driver.execute_async_script("setTimeout(arguments[0], 200)")
    assert page["adapter-id"].text == fast
    for key in keys:
        service.store.remove(key)


def page_estimate(page: Page, key: str) -> dict[str, Any]:
    """What the service says of an adapter."""
    script = "fetch(`v1/adapters/${arguments[0]}`).then((r) => r.json()).then(arguments[1])"
    return page.driver.execute_async_script(script, key)["estimate"]


def test_examples_come_in_by_text_file_cells_and_keys(page: Page, tmp_path: pathlib.Path) -> None:
    two = [('say "a", then', "b;c"), ("d\te", "f")]
    forms = {
        "a.csv": '\ufeffinput,target\n"say ""a"", then",b;c\n"d\te",f\n',
        "b.tsv": '"say ""a"", then"\tb;c\r\n"d\te"\tf\r\n',
        "c.jsonl": "".join(json.dumps({"input": x, "target": y}) + "\n" for x, y in two),
        "d.json": json.dumps([{"input": x, "target": y} for x, y in two]),
        "e.json": json.dumps([{"input": x, "target": y} for x, y in two], indent=1),
    }
    for name, text in forms.items():
        page.press("Clear")
        (tmp_path / name).write_text(text)
        page["file"].send_keys(str(tmp_path / name))
        page.wait(lambda: len(page.table()) == len(two))
        assert page.table() == two, name
    page.press("Clear")
    page.write("pasted", "[x],y")
    page.press("Add to the table")
    assert page.table() == [("[x]", "y")]
    page.press("Clear")
    (tmp_path / "rows.tsv").write_text('[{"id": 1}]\tone\n')
    page["file"].send_keys(str(tmp_path / "rows.tsv"))
    page.wait(lambda: page.table() == [('[{"id": 1}]', "one")])
    page.press("Clear")
    (tmp_path / "inches.tsv").write_text('5"\t6"\n7"\t8"\n')  # two quotes of two cells, and no quoted one
    page["file"].send_keys(str(tmp_path / "inches.tsv"))
    page.wait(lambda: page.table() == [('5"', '6"'), ('7"', '8"')])
    # Pasted by keys: into the field, then into the second column of the table.
    page.press("Clear")
    page["inputs"].send_keys("p,q\nr,s", Keys.CONTROL, "ax")
    page["pasted"].send_keys(Keys.CONTROL, "v")
    page.wait(lambda: page.table() == [("p", "q"), ("r", "s")])
    page["inputs"].send_keys("1\n2\n3", Keys.CONTROL, "ax")
    page.all("#rows textarea")[1].send_keys(Keys.CONTROL, "v")
    assert page.table() == [("p", "1"), ("r", "2"), ("", "3")]
    page.all("#rows textarea")[4].send_keys("t", Keys.ENTER, "u", Keys.TAB, "4")
    assert page.table() == [("p", "1"), ("r", "2"), ("t", "3"), ("u", "4")]
    page.press("Remove row 1")
    assert [area.accessible_name for area in page.all("#rows textarea")[:2]] == ["Input 1", "Target 1"]
    assert page.table()[0] == ("r", "2")
    page.press("Fill in a sample")
    assert page.table()[0] == ("ada lovelace", "Lovelace, A.")
    assert len(page.table()) == 4


def test_what_is_wrong_is_told_beside_its_field(page: Page, tmp_path: pathlib.Path) -> None:
    page.expected = {422}
    page.press("Make the adapter")
    page.wait_for_error("examples", "at least one example")
    page.all("#rows textarea")[0].send_keys("alone")
    page.press("Make the adapter")
    page.wait_for_error("examples", "an input and a target")
    assert page.driver.switch_to.active_element == page.all("#rows textarea")[1]
    page.write("pasted", "1,2\n3,4,5")
    page.press("Add to the table")
    assert page["pasted-error"].text == "Row 2: expected two columns, found 3."
    page.write("pasted", '{"input": 1, "target": "b"}')
    page.press("Add to the table")
    assert page["pasted-error"].text == 'Line 1: expected texts named "input" and "target".'
    page.write("pasted", '[{"input": "a", "target": "b"}, {"input": "c"}]')
    page.press("Add to the table")
    assert page["pasted-error"].text == 'Example 2: expected texts named "input" and "target".'
    page.write("pasted", '[{"input": "a", "target": "b"},]')
    page.press("Add to the table")
    assert page["pasted-error"].text == "The list: this is no JSON."
    (tmp_path / "many.csv").write_text("a,b\n" * 20_000)
    page["file"].send_keys(str(tmp_path / "many.csv"))
    page.wait(lambda: page["pasted-error"].text == f"Expected at most {MOST_ITEMS} examples in all, got 20001.")
    assert len(page.table()) == 3

    page.open(page.origin)
    page.give([*PAIRS, ("much too long for a support of so few tokens", "x")])
    page.press("Make the adapter")
    page.wait_for_error("examples", "Example 4: expected at most 32 tokens")
    assert page.all("#rows textarea")[6].get_attribute("aria-invalid") == "true"
    page.give(PAIRS)
    page.write("steps", "1000")
    page.press("Make the adapter")
    page.wait_for_error("steps", "expected at most 200, got 1000")
    page.write("steps", "-1")
    page.press("Make the adapter")
    page.wait_for_error("steps", "a whole number")

    page.open(page.origin)
    long = "this one is longer than it may be"
    page.write("inputs", f"fine\n\n{long}")
    page.press("Predict")
    page.wait_for_error("inputs", f"Line 3: expected at most 15 tokens, got {len(long)}")
    assert page.driver.switch_to.active_element == page["inputs"]
    assert not page["predicted"].is_displayed()


def test_a_service_under_pressure_says_so(page: Page, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    page.expected = {429, 503, 504}
    page.give(PAIRS[::-1], INPUTS)
    with monkeypatch.context() as patch:
        patch.setattr(service.maker, "_making", dict.fromkeys(map(str, range(16))))
        patch.setattr(service, "waiting", 1024)
        page.press("Make the adapter")
        page.wait_for_error("make", "as much to do as it takes on", "Try again in 1 second.")
        page.open(page.origin)
        page.write("inputs", "ab")
        page.press("Predict")
        page.wait_for_error("inputs", "as much to do as it takes on", "Try again in 1 second.")
    with monkeypatch.context() as patch:
        patch.setattr(service, "_closing", True)
        page.press("Predict")
        page.wait(lambda: "the service is ending" in page["inputs-error"].text)
    with served(create_app(service, limits=Limits(seconds=1e-3))) as hasty:
        page.close()
        page.open(hasty)
        page.write("inputs", "ab")
        page.press("Predict")
        page.wait_for_error("inputs", "The service took too long")


def test_a_service_that_will_never_be_ready_is_not_called_starting(page: Page, tmp_path: pathlib.Path) -> None:
    def fail() -> None:
        go_on.wait()
        raise RuntimeError("no device")

    service, go_on = Service(hypermodel(), tmp_path), threading.Event()
    service.engine.compile = fail
    page.expected = {500, 503}
    with served(create_app(service), lifespan="on") as failing:
        page.close()
        try:
            page.open(failing)
            page.wait(lambda: page["page-status"].text.startswith("The service is still starting."))
        finally:
            go_on.set()
        page.wait(lambda: page["page-error"].text == "The service has failed. Its log says why.")
        assert not page["page-status"].text


def test_a_download_for_peft_is_offered_where_there_is_one(
    page: Page, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "e" * 32
    service.store.save(Made(key, 3), hypermodel().adapt(PAIRS))
    with monkeypatch.context() as patch:
        patch.setattr("hyperflax.serving.http.fits_peft", lambda *_: False)
        page.open(page.origin)
        page.wait(lambda: page.all("#former tr"))
        page.press(f"Use {key[:8]}")
        page.wait(page["download-native"].is_displayed)
        assert not page["download-peft"].is_displayed()
    service.store.remove(key)


def test_text_that_looks_like_markup_stays_text(page: Page) -> None:
    told = "<script>window.broken = 1</script><img src=x onerror='window.broken = 2'>"
    page.give([("<script>", "<b>x</b>"), *PAIRS[1:]], ["<img src=x>", "<b>y</b>"])
    page.expected.add(422)
    page.write("definition", told)
    page.press("Make the adapter")
    page.wait_for_error("definition", told[:40])  # the model reads none
    page.write("definition", "")
    page.make()
    page.predict()
    assert page.texts("#results td:first-child") == ["<img src=x>", "<b>y</b>"]
    page.wait(lambda: page.all("#left-out tbody tr"), LONG)
    assert {"<script>", "<b>x</b>"} <= set(page.texts("#left-out td"))
    assert page.all("main img, main script, main td b") == []
    assert page.driver.execute_script("return window.broken") is None


def test_the_token_is_asked_for_and_kept_in_memory_alone(page: Page, service: Service) -> None:
    page.expected = {401}
    with served(create_app(service, token=TOKEN)) as guarded:
        page.close()
        page.open(guarded)
        page.wait(page["token"].is_displayed)
        page["token"].send_keys("wrong", Keys.ENTER)
        page.wait(lambda: page["token-error"].text == "The service did not take this token.")
        page["token"].send_keys(TOKEN, Keys.ENTER)
        page.wait(lambda: page["model"].text.startswith("Model micro"))
        page.give(PAIRS, INPUTS)
        key = page.make()
        assert len(page.predict()["adapted"]) == len(INPUTS)
        page.press("Download")
        with zipfile.ZipFile(page.downloaded("*-native.zip")) as archive:
            assert f"adapter-{key[:8]}/adapter.json" in archive.namelist()
        kept = "return JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
        assert page.driver.execute_script(kept) == '[{},{},""]'
        page.open(guarded)
        page.wait(page["token"].is_displayed)
        page["token"].send_keys(Keys.ESCAPE)
        page.wait(lambda: "wants a token" in page["page-error"].text)
        # Entered later, it is as good: the page no longer says that there is none, but who answers.
        page.write("inputs", "ab")
        page.press("Predict")
        page.wait(page["token"].is_displayed)
        page["token"].send_keys(TOKEN, Keys.ENTER)
        page.wait(lambda: page["model"].text.startswith("Model micro"))
        page.wait(lambda: page["predict-status"].text.startswith("Done"), LONG)
        assert not page["page-error"].text


def test_policy(tmp_path: pathlib.Path) -> None:
    """Without a browser: the page comes with its headers, and its own parts are all that they allow."""
    answer = TestClient(create_app(Service(hypermodel(), tmp_path), token=TOKEN)).get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for kind in ("script-src", "style-src"):
        assert all(source.startswith("'sha256-") for source in policy[kind].split()), policy[kind]
    assert answer.content == load_page()[0]
    text = answer.text
    assert "innerHTML" not in text
    assert "//" not in re.sub(r"^// .*|\s// .*|http://www.w3.org/2000/svg", "", text, flags=re.MULTILINE)
