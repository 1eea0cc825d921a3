"""The page in a real browser: headless Chromium through Playwright, no network."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("playwright", reason="needs playwright (extra test)")
from PIL import Image
from playwright.sync_api import sync_playwright

from setr.data import scenes
from setr.images import encode_png, read_image
from setr.labels import Labels
from setr.metrics import summarize
from setr.pages.run_page import Shown, write_run
from setr.reading.masks import read_mask
from setr.serve.hosts import Hosts
from setr.serve.limits import Limits, Refusal
from setr.serve.models import Models
from tests.serving import running, save_models

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium (apt-get install chromium)"
)
LIMITS = Limits(max_bytes=200_000, max_patches=900, drain=3.0)
HOSTS = Hosts(["photos.example"], local=True)
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
DESKTOP = {"viewport": {"width": 1280, "height": 800}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    sources = save_models(tmp_path_factory.mktemp("models"))
    return Models(sources, LIMITS, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def url(models: Models) -> Iterator[str]:
    with running(models, LIMITS, hosts=HOSTS) as (url, _):
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = ["--host-resolver-rules=MAP *.example 127.0.0.1"]
    options += ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, url: str) -> Iterator[Any]:
    """A function that opens the page; at the end nothing may have gone wrong in it."""
    contexts, problems, foreign = [], [], []

    def open_page(address: str = url, ready: bool = True, **options: Any) -> Any:
        context = browser.new_context(**(options or DESKTOP))
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        own = (address, "blob:", "data:")
        page.on("request", lambda r: None if r.url.startswith(own) else foreign.append(r.url))
        page.goto(address)
        if ready:
            wait_until(page, "!!state.info")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems
    assert not foreign


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "street.png"
    path.write_bytes(encode_png(scenes.draw("page", 0, size=64)[0][:48]))
    return path


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """Another photo, of other sides."""
    path = tmp_path / "corner.png"
    path.write_bytes(encode_png(scenes.draw("page", 2, size=56)[0]))
    return path


@pytest.fixture
def letter(tmp_path: Path) -> Path:
    path = tmp_path / "letter.jpg"
    path.write_bytes(b"Dear reader")
    return path


def give(page: Any, file: Path) -> None:
    page.set_input_files("#file", str(file))


def wait_for_result(page: Any) -> None:
    page.wait_for_selector("#side:not([hidden])")
    page.wait_for_selector("#busy", state="hidden")


def click(page: Any, x: float, y: float) -> None:
    box = page.locator("#frame").bounding_box()
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])


def wait_for(page: Any, happened: Callable[[], Any], what: str, seconds: float = 60) -> None:
    """Wait until something is true, and let the page go on meanwhile."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, what
        page.wait_for_timeout(50)


def wait_until(page: Any, expression: str) -> None:
    """As `wait_for_function`, whose polling the page's Content-Security-Policy forbids."""
    wait_for(page, lambda: page.evaluate(expression), expression)


def download(page: Any, kind: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.click(f"[data-save={kind}]")
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def enter_key(page: Any, key: str) -> None:
    page.wait_for_selector("#keydialog[open]")
    page.fill("#key", key)
    page.keyboard.press("Enter")


def screen(page: Any) -> list[str]:
    """What is seen of a result: picture, overlay, legend, figures, models chosen."""
    return page.evaluate(
        "[base.toDataURL(), overlayA.toDataURL(), legendA.innerText, under.innerText,"
        " modelA.value, modelB.value]"
    )


def no_sideways_scrolling(page: Any) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_domain_that_resolves_to_this_machine_gets_nothing(browser, url):
    """DNS rebinding: to the browser it is one site, so only the name tells."""
    page = browser.new_page()
    port = url.rpartition(":")[2]
    for path in ("", "v1/models"):
        assert page.goto(f"http://evil.example:{port}/{path}").status == 403
    status = page.evaluate("async () => (await fetch('/v1/segment', {method: 'POST'})).status")
    assert status == 403
    page.close()


@pytest.mark.parametrize("name", ["127.0.0.1", "photos.example"])
def test_a_form_of_another_site_gets_nothing(browser, url, name, monkeypatch):
    """To localhost browsers say that they cross sites; over plain http to a name they do not."""
    sent, check = {}, Hosts.check_page
    monkeypatch.setattr(
        Hosts, "check_page", lambda self, headers: (sent.update(headers), check(self, headers))
    )
    port = url.rpartition(":")[2]
    page = browser.new_page()
    form = f"<form method=post enctype=multipart/form-data action=http://{name}:{port}/v1/segment>"
    page.route(
        "http://evil.example/", lambda route: route.fulfill(body=form, content_type="text/html")
    )
    page.goto("http://evil.example/")
    with page.expect_response("**/v1/segment") as waiting:
        page.evaluate("document.forms[0].submit()")
    assert sent["origin"] == "http://evil.example"
    assert ("sec-fetch-site" in sent) == (name == "127.0.0.1")
    assert waiting.value.status == 403
    page.close()


def test_the_page_works_under_a_name_that_is_allowed(open_page, url, photo):
    """Not even https, so the browser says no more than where the page is from."""
    page = open_page(url.replace("127.0.0.1", "photos.example"))
    give(page, photo)
    wait_for_result(page)
    assert page.locator("#legendA .name").count() > 1


def test_from_a_picture_to_pixels_and_files(open_page, models, photo, tmp_path):
    page = open_page()
    give(page, photo)
    wait_for_result(page)
    expected = models.by_name["pup"].predict(photo)
    names = page.locator("#legendA .name").all_inner_texts()
    assert names == list(expected.shares)
    assert len(names) > 1
    # the page reads the very ids of the mask
    ids = page.evaluate("Array.from(state.shown.answers[0].mask.data)")
    assert ids == expected.mask.ravel().tolist()
    sure = page.evaluate("Array.from(state.shown.answers[0].sure.data)")
    assert max(abs(a - 255 * b) for a, b in zip(sure, expected.confidence.ravel(), strict=True)) < 1
    # a pixel
    click(page, 0.51, 0.26)
    page.wait_for_selector("#heat:not([hidden])")
    assert page.inner_text("#pointclass") == expected.labels.classes[expected.mask[12, 32]]
    assert "column 32, row 12" in page.inner_text("#pointwhere")
    page.select_option("#layer", "0")
    page.wait_for_selector("#ring.asking", state="hidden")
    page.keyboard.press("Escape")
    assert page.is_hidden("#heat")
    # the legend lights its class alone
    before = page.evaluate("document.querySelector('#overlayA').toDataURL()")
    page.hover("#legendA button >> nth=0")
    lit = page.evaluate("document.querySelector('#overlayA').toDataURL()")
    assert lit != before
    page.mouse.move(5, 5)
    assert page.evaluate("document.querySelector('#overlayA').toDataURL()") == before
    # files
    for kind in ("mask", "overlay", "polygons"):
        download(page, kind, tmp_path)
    assert (read_mask(tmp_path / "street_mask.png") == expected.mask).all()
    overlay = read_image(tmp_path / "street_overlay.png")
    assert abs(overlay.astype(int) - expected.overlay()).max() <= 2
    features = json.loads((tmp_path / "street.geojson").read_text())["features"]
    assert sum(f["properties"]["pixels"] for f in features) == expected.mask.size


def test_a_picture_that_hangs_does_not_cover_the_next_one(open_page, photo, second):
    """A browser cannot stop decoding: the page stops waiting for it."""
    page = open_page()
    page.evaluate(
        "() => { real = createImageBitmap; createImageBitmap = () => new Promise(() => {}); }"
    )
    give(page, second)
    page.wait_for_selector("#busy:not([hidden])")
    page.evaluate("() => { createImageBitmap = real; }")
    give(page, photo)
    wait_for_result(page)
    assert "street.png" in page.inner_text("#under")


def test_the_interface_is_read_on_a_phone(open_page, url):
    page = open_page(**PHONE)
    page.goto(f"{url}/docs")
    page.wait_for_selector("section")
    assert page.evaluate(
        "[...document.querySelectorAll('.wide')].every(e => e.scrollWidth <= e.clientWidth)"
    )
    text = page.inner_text("#routes")
    assert "Accept decides" in text
    assert "`" not in text
    assert ".." not in text


def test_two_models_and_a_slider(open_page, photo):
    page = open_page()
    give(page, photo)
    wait_for_result(page)
    page.select_option("#modelB", "mla")
    page.wait_for_selector("#legendB:not([hidden])")
    assert page.inner_text("#tagA") == "pup"
    assert page.inner_text("#tagB") == "mla"
    assert re.search(r"pup: .*mean confidence \d+%\nmla: .*mean", page.inner_text("#under"))
    page.focus("#split")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert page.get_attribute("#split", "aria-valuenow") == "60"
    box = page.locator("#frame").bounding_box()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 80)
    page.mouse.up()
    assert page.get_attribute("#split", "aria-valuenow") == "25"
    assert "inset(0px 75% 0px 0px)" in page.evaluate("overlayA.style.clipPath")
    click(page, 0.8, 0.2)
    page.wait_for_selector("#heat:not([hidden])")
    assert "mla" in page.inner_text("#pointwhere")


def test_attention_lets_the_picture_through(open_page, photo):
    page = open_page()
    give(page, photo)
    wait_for_result(page)
    opacities = """levels => {
        const map = {width: 4, height: 3, data: Uint8Array.from(levels)};
        drawHeat(map, [48, 64], state.shown.answers[0]);
        const drawn = heat.getContext('2d').getImageData(0, 0, heat.width, heat.height).data;
        return [3, drawn.length - 1].map(i => drawn[i]);
    }"""
    # left above is the least, right below the most
    least, most = page.evaluate(opacities, [0, *[40] * 10, 255])
    assert least < 5
    assert 200 < most < 255
    least, most = page.evaluate(opacities, [240, *[244] * 10, 255])  # almost uniform
    assert least < 5
    assert 20 < most < 128
    assert page.evaluate("document.querySelector('#most').textContent") == "most, 1.1 × the least"


def test_keyboard_alone(open_page, photo):
    page = open_page()
    with page.expect_file_chooser() as waiting:  # the browser needs a moment to pass dialogs on

        def opened() -> bool:
            page.keyboard.press("o")
            return waiting.is_done()

        wait_for(page, opened, "a file dialog")
    waiting.value.set_files(str(photo))
    wait_for_result(page)
    page.focus("#frame")
    for key in ("ArrowLeft", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    page.wait_for_selector("#ring:not([hidden])")
    assert page.inner_text("#live")
    page.keyboard.press("]")
    assert page.inner_text("#opacityout") == "60%"


def test_drop_and_paste(open_page, photo):
    page = open_page()
    script = """([bytes, kind]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], 'dropped.png', {type: 'image/png'}));
        const event = kind === 'drop' ? new DragEvent('drop', {dataTransfer: data, bubbles: true})
            : new ClipboardEvent('paste', {clipboardData: data, bubbles: true});
        document.body.dispatchEvent(event);
    }"""
    page.evaluate(script, [list(photo.read_bytes()), "drop"])
    wait_for_result(page)
    assert "dropped" in page.inner_text("#under")
    page.evaluate(script, [list(photo.read_bytes()), "paste"])
    wait_until(page, "document.querySelector('#under').innerText.includes('pasted')")


def test_bad_files_in_plain_words(open_page, photo, tmp_path):
    page = open_page()
    bad = {
        "empty.png": (b"", "empty"),
        "letter.jpg": (b"Dear reader", "not a picture"),
        "cut.png": (photo.read_bytes()[:700], "damaged"),
        "large.bin": (bytes(300_000), "too large"),
    }
    for name, (data, words) in bad.items():
        (tmp_path / name).write_bytes(data)
        give(page, tmp_path / name)
        wait_until(page, f"!banner.hidden && banner.innerText.includes({words!r})")
        assert page.is_visible("#welcome")
        page.click("#dismiss")
    give(page, photo)  # and goes on
    wait_for_result(page)
    assert page.is_hidden("#banner")


def test_limits_of_outlines_and_rollout_in_plain_words(open_page, models, photo, monkeypatch):
    page = open_page()
    give(page, photo)
    wait_for_result(page)
    monkeypatch.setattr("setr.serve.regions.MAX_REGIONS", 1)
    page.click("[data-save=polygons]")
    wait_until(page, "banner.innerText.includes('Save the mask, or take a smaller picture')")
    page.click("#dismiss")
    monkeypatch.setattr(models, "limits", dataclasses.replace(LIMITS, rollout_patches=4))
    click(page, 0.5, 0.5)
    page.wait_for_selector("#heat:not([hidden])")
    page.select_option("#layer", "0")
    wait_until(page, "banner.innerText.includes('Choose a single layer')")
    assert "4" not in page.inner_text("#banner span")
    page.select_option("#layer", "1")
    page.wait_for_selector("#heat:not([hidden])")


def test_a_server_that_stopped_working_says_so(open_page, models, photo, monkeypatch):
    def broken(*_: Any, **__: Any) -> None:
        raise Refusal(504, "deadline", "no answer within 60 seconds")

    with running(models, LIMITS) as (address, app):
        page = open_page(address)
        monkeypatch.setattr(models, "check", broken)
        give(page, photo)
        wait_until(page, "banner.innerText.includes('A smaller picture is faster')")
        monkeypatch.setattr(app.service, "trouble", lambda: "a batch has not ended")
        page.click("#again")
        wait_until(page, "banner.innerText.includes('has to start it anew')")
        assert page.get_attribute("#banner", "data-code") == "unhealthy"


def test_formats_browsers_cannot_show_and_sizes_models_cannot_take(open_page, models, tmp_path):
    page = open_page()
    image = Image.fromarray(scenes.draw("page", 1, size=64)[0])
    image.save(tmp_path / "map.tif")
    give(page, tmp_path / "map.tif")
    wait_for_result(page)
    assert page.evaluate("[state.shown.picture.width, state.shown.picture.height]") == [64, 64]
    image.resize((480, 300)).save(tmp_path / "wide.jpg")
    give(page, tmp_path / "wide.jpg")
    wait_until(page, "under.innerText.includes('scaled from 480 × 300')")
    width, height = page.evaluate("[state.shown.answers[0].width, state.shown.answers[0].height]")
    assert width * height <= 900 * 64


def test_a_file_that_fails_leaves_the_last_result(open_page, models, photo, letter, tmp_path):
    page = open_page()
    give(page, photo)
    wait_for_result(page)
    before = screen(page)
    give(page, letter)
    wait_until(page, "banner.innerText.includes('letter.jpg: This file is not a picture')")
    assert page.is_visible("#side")
    assert screen(page) == before
    mask = download(page, "mask", tmp_path)
    assert mask.name == "street_mask.png"
    assert (read_mask(mask) == models.by_name["pup"].predict(photo).mask).all()
    assert download(page, "polygons", tmp_path).name == "street.geojson"
    click(page, 0.5, 0.5)
    page.wait_for_selector("#heat:not([hidden])")


def test_a_server_lost_in_between_leaves_the_last_result(open_page, models, photo, second):
    with running(models, LIMITS) as (address, _):
        page = open_page(address)
        port = int(address.rsplit(":", 1)[1])
        give(page, photo)
        wait_for_result(page)
        before = screen(page)
    give(page, second)
    wait_until(page, "banner.innerText.includes('corner.png: The server does not answer')")
    assert screen(page) == before
    page.select_option("#modelA", "mla")
    wait_until(page, "banner.innerText.includes('street.png: The server does not answer')")
    assert screen(page) == before  # the choice of model too
    give(page, second)
    wait_until(page, "banner.innerText.includes('corner.png')")
    with running(models, LIMITS, port=port):
        page.click("#again")
        wait_for_result(page)
        assert "corner.png" in page.inner_text("#under")


@pytest.mark.parametrize("name", ["map.tif", "map.png"])
def test_while_a_picture_waits_no_answers_are_shown(open_page, photo, tmp_path, name):
    page = open_page()
    give(page, photo)
    wait_for_result(page)
    before = screen(page)
    Image.fromarray(scenes.draw("page", 1, size=64)[0]).save(tmp_path / name)
    held: list[Any] = []
    page.route("**/v1/segment*", lambda route: held.append(route))
    give(page, tmp_path / name)
    wait_until(page, "!busy.hidden")
    assert page.is_hidden("#side")
    assert page.is_hidden("#under")
    wait_for(page, lambda: held, "the picture is sent")
    page.evaluate("askPixel(0.5, 0.5)")
    assert page.is_hidden("#ring")
    page.click("#cancel")
    assert screen(page) == before
    page.unroute("**/v1/segment*")
    give(page, tmp_path / name)
    wait_for_result(page)
    assert name in page.inner_text("#under")


def test_a_lit_class_does_not_outlive_its_picture(open_page, photo, second):
    page = open_page()
    faintest = """Math.min(...overlayA.getContext('2d')
        .getImageData(0, 0, overlayA.width, overlayA.height).data.filter((_, i) => i % 4 === 3))"""
    for change in (lambda: give(page, second), lambda: page.select_option("#modelA", "mla")):
        give(page, photo)
        wait_for_result(page)
        page.click("#legendA button >> nth=1")
        page.mouse.move(5, 5)
        assert page.locator("[aria-pressed=true]").count() == 1
        assert page.evaluate(faintest) < 255
        change()
        wait_for_result(page)
        assert page.locator("[aria-pressed=true]").count() == 0
        assert page.evaluate("[state.pinned, state.lit]") == [None, None]
        assert page.evaluate(faintest) == 255


def test_waiting_for_a_place_ends_with_what_waits(open_page, models, photo):
    with running(models, LIMITS) as (address, app):
        page = open_page(address)
        give(page, photo)
        wait_for_result(page)
        app.service.admission.requests += 1000  # the server is full; the next try is in 20 s
        try:
            for key in ("Escape", None):
                click(page, 0.5, 0.5)
                wait_until(page, "busytext.innerText.includes('free place')")
                page.keyboard.press(key) if key else page.click("#cancel")
                page.wait_for_selector("#busy", state="hidden", timeout=5000)
                assert page.evaluate("waits.length") == 0
                assert page.locator(".asking").count() == 0
        finally:
            app.service.admission.requests -= 1000
        click(page, 0.5, 0.5)
        page.wait_for_selector("#heat:not([hidden])")


def test_a_lost_server_and_its_return(open_page, models, photo):
    with running(models, LIMITS) as (address, _):
        page = open_page(address)
        port = int(address.rsplit(":", 1)[1])
    give(page, photo)
    wait_until(page, "banner.innerText.includes('does not answer')")
    with running(models, LIMITS, port=port):
        wait_until(page, "banner.innerText.includes('is back')")
        page.click("#again")
        wait_for_result(page)
        assert page.is_hidden("#banner")


def test_a_key_is_asked_for(open_page, models, photo):
    with running(models, LIMITS, keys=("secret",)) as (address, _):
        page = open_page(address, ready=False)
        enter_key(page, "wrong")
        enter_key(page, "secret")
        wait_until(page, "!!state.info")
        give(page, photo)
        wait_for_result(page)


def test_two_requests_ask_for_one_key(open_page, models, photo):
    with running(models, LIMITS, keys=("secret",)) as (address, _):
        page = open_page(address, ready=False)
        enter_key(page, "secret")
        wait_until(page, "!!state.info")
        give(page, photo)
        wait_for_result(page)
        page.evaluate("sessionStorage.setItem('setr-key', 'withdrawn')")
        refused: list[Any] = []
        page.on("response", lambda r: refused.append(r) if r.status == 401 else None)
        page.select_option("#modelB", "mla")
        wait_for(page, lambda: len(refused) == 2, "both requests are refused")
        enter_key(page, "secret")
        page.wait_for_selector("#legendB:not([hidden])")
        assert page.is_hidden("#keydialog")
        # no key: said, and tried again
        page.evaluate("sessionStorage.setItem('setr-key', 'withdrawn')")
        page.select_option("#modelB", "")
        page.wait_for_selector("#keydialog[open]")
        page.click("#nokey")
        wait_until(page, "banner.innerText.includes('only with a key')")
        page.click("#again")
        enter_key(page, "secret")
        wait_for_result(page)
        assert page.is_hidden("#legendB")


def test_the_example_takes_no_runtime_from_its_address(browser):
    page = (Path(__file__).parents[1] / "examples" / "browser" / "index.html").read_text("utf-8")
    runtime = "export const env = {wasm: {}}, InferenceSession = {create: async () => ({})}"
    asked: list[str] = []

    def answer(route: Any) -> None:
        url = route.request.url
        asked.append(url)
        kinds = {".mjs": ("text/javascript", runtime), "model.json": ("application/json", "{}")}
        kind, body = next((kinds[end] for end in kinds if url.endswith(end)), ("text/html", page))
        headers = {"Access-Control-Allow-Origin": "*"}
        route.fulfill(content_type=kind, body=body, headers=headers)

    context = browser.new_context()
    example = context.new_page()
    example.route("**/*", answer)
    example.goto("http://localhost/?ort=https://other.example/")
    wait_until(example, "document.querySelector('#state').textContent === 'ready'")
    context.close()
    assert not [url for url in asked if url.startswith("https://other.example")]
    assert len([url for url in asked if url.endswith(".mjs")]) == 1


def test_the_example_says_what_did_not_work(browser):
    page = (Path(__file__).parents[1] / "examples" / "browser" / "index.html").read_text("utf-8")
    context = browser.new_context(**PHONE)
    example = context.new_page()

    def answer(route: Any) -> None:
        if route.request.url.endswith((".mjs", ".json", ".onnx")):
            route.abort()
        else:
            route.fulfill(content_type="text/html", body=page)

    example.route("**/*", answer)
    example.goto("http://localhost/")
    wait_until(example, "document.querySelector('#state').textContent.startsWith('This did not')")
    assert no_sideways_scrolling(example)
    context.close()


@pytest.mark.parametrize("device", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_a_report_keeps_its_figures_in_sight_of_long_names(browser, device, tmp_path):
    names = ("a", "one-word-without-a-place-to-break-it" * 4, "many words " * 12)
    matrix = np.eye(3, 4, dtype=np.int64) + 1
    figures = {**summarize(matrix, names), "protocol": "whole image", "seconds": 60.0}
    (tmp_path / "log.jsonl").write_text("")
    ids = np.arange(3, dtype=np.uint8).repeat(8).reshape(4, 6)
    shown = [Shown(np.zeros((4, 6, 3), np.uint8), ids, ids)]
    metrics = {"single_scale": figures, "seconds": 60.0}
    about = {"labels": Labels(names), "shown": shown, "log": tmp_path / "log.jsonl"}
    write_run(tmp_path / "report.html", title="run", metrics=metrics, **about)
    context = browser.new_context(**device)
    page = context.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    assert no_sideways_scrolling(page)
    figure = page.evaluate("document.querySelector('td .num').getBoundingClientRect().right")
    assert figure < device["viewport"]["width"]
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_every_size_and_theme(open_page, photo, device, scheme, tmp_path):
    page = open_page(color_scheme=scheme, **device)
    assert no_sideways_scrolling(page)
    give(page, photo)
    wait_for_result(page)
    click(page, 0.4, 0.4)
    page.wait_for_selector("#heat:not([hidden])")
    assert no_sideways_scrolling(page)
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, back[4:-1].split(","))) < 60) == (scheme == "dark")
    sizes = page.evaluate(
        "[...document.querySelectorAll('button, select')].filter(e => e.offsetParent)"
        ".map(e => e.offsetHeight)"
    )
    assert min(sizes) >= 36  # a finger hits them
    # one row of downloads, bars with an edge that dark classes need, a lone class in a full row
    assert (
        len(
            set(
                page.evaluate("[...document.querySelectorAll('[data-save]')].map(e => e.offsetTop)")
            )
        )
        == 1
    )
    assert page.evaluate("getComputedStyle(document.querySelector('.bar i')).boxShadow") != "none"
    lone = """([answer]) => {
        legend(legendA, [{...answer, classes: answer.classes.slice(0, 1)}], 0);
        const list = legendA.querySelector('ul');
        return list.firstChild.offsetWidth / list.offsetWidth;
    }"""
    assert page.evaluate(f"({lone})(state.shown.answers)") > 0.95
    # words for the hand at work, and a name at each choice
    touch = device is PHONE
    page.keyboard.press("Escape")
    assert page.inner_text("#nopoint").startswith("Tap" if touch else "Click")
    for label in ("Model", "Compare with"):
        assert page.get_by_text(label, exact=True).is_visible()
    assert re.search(r"pup, \d+ K parameters", page.inner_text("#facts"))
    if folder := os.environ.get("SETR_SCREENSHOTS"):
        name = f"{'phone' if device is PHONE else 'desktop'}_{scheme}.png"
        page.screenshot(path=Path(folder) / name)
