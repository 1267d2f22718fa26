"""The page in a real browser, from the login to a camera that dies and comes back."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from playwright.sync_api import expect, sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

ROOT = Path(__file__).parents[3]
SECRET = "correct horse battery"
WAIT_MS = 60_000

COUNT_RED = """canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let red = 0;
  for (let i = 0; i < data.length; i += 4) red += data[i] > 220 && data[i + 1] < 110;
  return red;
}"""

expect.set_options(timeout=WAIT_MS)


@pytest.fixture
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


@contextmanager
def program(config: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run it; yield the process and the page's address."""
    command = [sys.executable, str(ROOT / "run_stream.py"), "--config", str(config)]
    options: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "REDIS_URL": ""}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup, it would be ignored
    with subprocess.Popen(command, env=environment, **options) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"page: (http\S+)", line):
                    break
            else:
                raise AssertionError("it ended before it served a page")
            yield process, found[1]
        finally:
            process.kill()


def problems_of(page: Page) -> list[str]:
    """Collect what the browser complains of, such as a breach of the content security policy."""
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    return problems


def test_people_see_what_the_cameras_show_and_hear_of_what_happens(
    browser, rtsp_camera, write_two_faces, tiny_engine, tmp_path
):
    live = {"preset": "ultrafast", "g": "25", "sc_threshold": "0", "threads": "1"}
    camera = rtsp_camera(write_two_faces(tmp_path / "camera.mp4", seconds=8, options=live))
    first = {"id": "door", "uri": camera.url, "retry_first_s": 0.2, "retry_max_s": 0.4}
    first |= {"recovered_after_s": 0.5}
    options = {
        "sources": [first],
        "score": {"engines": [{"manifest": str(tiny_engine)}]},
        "sinks": [{"kind": "jsonl", "path": str(tmp_path / "messages.jsonl")}],
        "page": {"port": 0, "secret": SECRET},
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(options), encoding="utf-8")
    with program(config) as (process, url):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        problems = problems_of(page)
        card = page.locator("[data-camera=door].camera")
        canvas = card.locator("canvas")

        # Nobody gets in without the secret.
        page.goto(url)
        expect(page).to_have_url(f"{url}/login")
        page.fill("#secret", "wrong")
        page.click("text=Log in")
        expect(page.locator("[role=alert]")).to_have_text("This is not the secret.")
        assert problems.pop().startswith("Failed to load resource: the server responded with")
        page.fill("#secret", SECRET)
        page.keyboard.press("Enter")
        expect(page).to_have_url(f"{url}/")

        # The frames with their boxes, and an alert with the face and the map of the evidence.
        expect(canvas).to_have_attribute("data-faces", re.compile("attack"))
        expect(card.locator(".picture")).to_have_attribute(
            "aria-label", re.compile(r"attack 0\.\d")
        )
        alert = page.locator("#alerts [data-type='track.verdict'].attack").first
        expect(alert).to_contain_text("door")
        for image in (alert.locator("img").first, alert.locator("img").last):
            image.scroll_into_view_if_needed()
            expect(image).to_have_js_property("complete", value=True)
            expect(image).not_to_have_js_property("naturalWidth", 0)
        red = canvas.evaluate(COUNT_RED)
        assert red > 200  # pixels of the box of an attack, on a grey picture
        expect(page.locator("#tracks li").first).to_contain_text("door #")
        expect(page.locator("#stages")).to_contain_text("infer")

        # A camera that dies says why and since when, and is shown again when it is back.
        camera.kill()
        away = card.locator(".away")
        expect(away).to_contain_text("Lost")
        expect(away).to_contain_text(re.compile(r"since \d\d:\d\d:\d\d"))
        expect(away).to_contain_text("refused")
        expect(page.locator("#alerts [data-type='source.lost']")).to_contain_text("door")
        frames = int(canvas.get_attribute("data-frames"))
        camera.start()
        expect(away).to_be_hidden()
        expect(page.locator("#alerts [data-type='source.regained']")).to_contain_text("door")
        expect(canvas).not_to_have_attribute("data-frames", str(frames))

        # Paused and resumed by hand; a second camera comes by the configuration file.
        card.get_by_role("button", name="Pause door").press("Enter")
        expect(card.locator(".state")).to_have_text("paused")
        card.get_by_role("button", name="Resume door").press("Enter")
        expect(card.locator(".state")).to_have_text("open")
        options["sources"].append({**first, "id": "yard"})
        config.write_text(yaml.safe_dump(options), encoding="utf-8")
        process.send_signal(signal.SIGHUP)
        page.reload()
        yard = page.locator("[data-camera=yard].camera")
        expect(yard.locator(".state")).to_have_text("open")

        # The keyboard shows one camera, and all again.
        page.keyboard.press("2")
        expect(card).to_be_hidden()
        expect(yard).to_be_visible()
        expect(page.locator("#filter")).to_have_value("yard")
        page.keyboard.press("Escape")
        expect(card).to_be_visible()

        # Phone width: nothing sticks out.
        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360

        # Who stops the program need not wait for those who look on.
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert [text for text in problems if "ERR_" not in text] == []
    assert camera.url not in (tmp_path / "messages.jsonl").read_text(encoding="utf-8")
