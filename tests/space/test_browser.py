"""Every tab of the Space in a real Chromium: type, click, wait, and look at what appears."""

import json
import re
import shutil
import warnings

import pytest

from tests.space.busy_engine import busy

pytest.importorskip("gradio", reason="the Space needs gradio (the extra 'demo')")
by = pytest.importorskip("selenium.webdriver.common.by", reason="a browser is driven by selenium (the extra 'browser')")
if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
    pytest.skip("no chromium and chromedriver here (apt-get install chromium chromium-driver)", allow_module_level=True)
browser = pytest.importorskip("tests.space.browser")

# of gradio's own, which follows its libraries at its own pace
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def url(studio):
    from app import build, look

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        page = build(studio)
        _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **look())
    yield url
    page.close()


@pytest.fixture(scope="module")
def driver():
    driver = browser.open_chromium()
    yield driver
    driver.quit()


@pytest.fixture
def visitor(url, driver):
    visitor = browser.Visitor(driver, url)
    yield visitor
    assert driver.get_log("browser") == []


def test_writing_live(visitor):
    visitor.fill("write-prompt", "def <b>")
    visitor.click("write-kind")
    visitor.find("write-way").find_elements(by.By.CSS_SELECTOR, "label")[1].click()
    visitor.fill("write-length", 32, "input[type=number]")
    visitor.fill("write-steps", 32, "input[type=number]")
    visitor.record("write-paper", ".hidden", "textContent")
    visitor.click("write-start")
    visitor.wait_for("write-status", "32 passes")
    assert len(visitor.recorded()) >= 2  # drafts with fewer and fewer hidden tokens
    assert visitor.text("write-paper").startswith("def <b>")
    assert not visitor.driver.find_elements(by.By.CSS_SELECTOR, "#write-paper .hidden")


def test_waiting_stopping_and_errors(visitor, studio):
    with busy(studio.engine):
        visitor.click("write-start")
        visitor.wait_for("write-status", "Waiting for a turn")
        visitor.click("write-stop")
        visitor.wait_for("write-status", "Stopped after 0 steps.")
    assert studio.running == {}
    visitor.open_tab("Infill")
    visitor.fill("infill-text", "there is no gap")
    visitor.click("infill-start")
    visitor.wait_for_message("must hold the gap ____ once, got it 0 times")


def test_infilling(visitor):
    visitor.open_tab("Infill")
    visitor.fill("infill-text", "left____right")
    visitor.click("infill-start")
    visitor.wait_for("infill-status", "8 passes")
    shown = visitor.text("infill-paper")
    assert shown.startswith("left") and shown.endswith("right")


def test_drawing_with_previews(visitor):
    visitor.open_tab("Draw")
    visitor.fill("draw-prompt", "a red apple")
    for name, value in (("height", 64), ("width", 96), ("steps", 8)):
        visitor.fill(f"draw-{name}", value, "input[type=number]")
    for _ in range(3):  # the same picture: its files must not be written while they are read
        visitor.record("draw-picture", "img", "src")
        visitor.click("draw-start")
        visitor.until(lambda: len(visitor.recorded()) >= 2, "previews, and then the picture")
        visitor.wait_for("draw-status", "16 passes")
        visitor.until(lambda: visitor.find("draw-picture", "img").get_property("naturalWidth") == 96, "the picture")
        assert visitor.find("draw-picture", "img").get_property("naturalHeight") == 64


def test_speaking_in_an_uploaded_voice(visitor, voice_file):
    visitor.open_tab("Speak and clone")
    visitor.fill("speak-text", "Two red fish.")
    visitor.fill("speak-steps", 2, "input[type=number]")
    visitor.click("speak-start")
    visitor.wait_for("speak-status", "s of sound")
    visitor.until(lambda: visitor.driver.find_elements(by.By.CSS_SELECTOR, "#speak-sound audio"), "the sound")
    visitor.click("speak-voice")
    visitor.see("speak-said")
    visitor.find("speak-reference", "input[type=file]").send_keys(str(voice_file))
    visitor.until(lambda: visitor.driver.find_elements(by.By.CSS_SELECTOR, "#speak-reference audio"), "the upload")
    visitor.fill("speak-said", "One fish.")
    visitor.fill("speak-seed", 7, "input[type=number]")
    visitor.click("speak-start")
    visitor.wait_for("speak-status", "seed 7")


def test_a_face_moves_with_its_sound(visitor):
    visitor.open_tab("Together")
    visitor.fill("joint-text", "Two red fish.")
    visitor.fill("joint-steps", 2, "input[type=number]")
    visitor.click("joint-start")
    visitor.wait_for("joint-status", "faces")
    face, sound = visitor.find("joint-face", ".face"), visitor.find("joint-face", "audio")
    assert face.size == {"width": 200, "height": 200}
    visitor.until(lambda: sound.get_property("readyState") >= 1, "the sound")
    assert sound.get_property("duration") > 0.3
    sound.parent.execute_script("arguments[0].play()", sound)
    visitor.until(lambda: face.value_of_css_property("background-position") != "0px 0px", "another face")


def test_calling_tools(visitor):
    visitor.open_tab("Tools by schema")
    visitor.click("tools-start")
    visitor.wait_for("tools-status", "it parses and validates")
    lines = visitor.driver.find_elements(by.By.CSS_SELECTOR, "#tools-answer .cm-line")
    assert json.loads("\n".join(line.text for line in lines))["name"] == "get_weather"


def test_remembering_for_one_visitor(visitor, url, studio):
    visitor.open_tab("Memory")
    visitor.fill("memory-texts", "Anna drinks tea.")
    visitor.click("memory-start")
    visitor.wait_for("memory-table", "Anna drinks tea.")
    visitor.fill("memory-query", "tea")
    visitor.click("memory-search")
    visitor.until(lambda: re.search(r"\b0\.\d+\b", visitor.text("memory-table")), "a score")  # "0.1s" is a clock
    visitor.click("memory-forget")
    visitor.wait_for("memory-status", "Forgot 1. No file holds it any more.")
    assert "Anna" not in visitor.text("memory-table")
    visitor.click("memory-start")
    visitor.wait_for("memory-table", "Anna drinks tea.")
    browser.Visitor(visitor.driver, url)  # the page is left, and another one opened
    visitor.until(lambda: studio.engine.memory.stats()["memories"] == 0, "an empty memory")
