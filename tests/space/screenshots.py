"""Pictures of the Space at work with the embedded checkpoint: `python -m tests.space.screenshots docs/space`.

What it draws and says is as poor as its card says. For `refused` it is told that it was not trained to draw.
"""

import re
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

from hf_unified_diffusion import ArrowEngine
from tests.space.browser import Visitor, open_chromium

SPACE = Path(__file__).parents[2] / "examples" / "space"
WRITING = {"write": "Write", "infill": "Infill", "tools": "Tools by schema", "memory": "Memory"}
MEDIA = {"draw": "Draw", "speak": "Speak and clone", "joint": "Together"}
COLOURS, WIDTH, HEIGHT = 64, 1280, 960
MANY_WORDS = 60  # characters
SCORE = re.compile(r"\b0\.\d+\b")  # and not "0.1s", which is a clock


def main(folder: Path) -> None:
    sys.path.insert(0, str(SPACE))
    from studio import Studio

    folder.mkdir(parents=True, exist_ok=True)
    driver = open_chromium(WIDTH, HEIGHT)
    try:
        with TemporaryDirectory() as memory:
            studio = Studio(ArrowEngine.from_pretrained(memory=memory))
            visitor, page = opened(studio, driver)
            for name, tab in WRITING.items():
                visitor.open_tab(tab)
                visitor.click(f"{name}-start")
                if name == "write":
                    visitor.until(lambda: len(written(driver)) > MANY_WORDS and drafted(driver), "words and a draft")
                    shrink(visitor.picture("write", folder))
                visitor.wait_for(f"{name}-status", "Remembered" if name == "memory" else "Done")
                if name == "memory":
                    visitor.click("memory-search")
                    visitor.until(lambda: SCORE.search(visitor.text("memory-table")), "scores")
                if name != "write":
                    shrink(visitor.picture(name, folder))
            page.close()
            facts = studio.engine.model.checkpoint_facts
            trained = facts["supported_modalities"]
            facts["supported_modalities"] = ["code", "text"]
            visitor, page = opened(studio, driver)
            visitor.open_tab(MEDIA["draw"])
            visitor.click("draw-start")
            visitor.until(lambda: driver.find_elements(By.CSS_SELECTOR, ".toast-close"), "the refusal")
            time.sleep(3)  # it fades in
            shrink(visitor.picture("refused", folder))
            page.close()
            facts["supported_modalities"] = trained
            visitor, page = opened(studio, driver)
            for name, tab in MEDIA.items():
                visitor.open_tab(tab)
                visitor.click(f"{name}-start")
                visitor.wait_for(f"{name}-status", "Done")
                shrink(visitor.picture(name, folder))
            page.close()
    finally:
        driver.quit()


def opened(studio: Any, driver: WebDriver) -> tuple[Visitor, Any]:
    """A page of the studio, and a visitor at it."""
    from app import build, look

    page = build(studio)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **look())
    return Visitor(driver, url), page


def written(driver: WebDriver) -> str:
    """What is finished of the text."""
    script = "return [...document.querySelectorAll('#write-paper .written')].map(x => x.textContent).join('')"
    return driver.execute_script(script)  # at once: the elements are others after each step


def drafted(driver: WebDriver) -> bool:
    """Whether some of it is not finished yet."""
    return bool(driver.find_elements(By.CSS_SELECTOR, "#write-paper .draft"))


def shrink(file: Path) -> None:
    """The same picture in few colours: a tenth of the size."""
    with Image.open(file) as picture:
        small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(file, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
