"""Pictures of the Space with a checkpoint at work: `python -m tests.space.screenshots docs/space [CHECKPOINT]`."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from selenium.webdriver.common.by import By

from hf_unified_diffusion import ArrowEngine
from tests.space.browser import Visitor, open_chromium

SPACE = Path(__file__).parents[2] / "examples" / "space"
TABS = {"write": "Write", "infill": "Infill", "draw": "Draw", "speak": "Speak and clone", "joint": "Together"}
TABS |= {"tools": "Tools by schema", "memory": "Memory"}
NEEDS = {"draw": ("image",), "speak": ("audio",), "joint": ("audio", "avatar")}
COLOURS, WIDTH, HEIGHT = 64, 1280, 960


def main(folder: Path, checkpoint: str | None) -> None:
    sys.path.insert(0, str(SPACE))
    from app import build, look
    from studio import Studio

    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as memory:
        studio = Studio(ArrowEngine.from_pretrained(checkpoint, memory=memory))
        page = build(studio)
        _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **look())
        driver = open_chromium(WIDTH, HEIGHT)
        try:
            visitor = Visitor(driver, url)
            for name, tab in TABS.items():
                visitor.open_tab(tab)
                visitor.click(f"{name}-start")
                lacking = studio.lacks(*NEEDS.get(name, ()))
                if name == "write":
                    visitor.until(lambda: driver.find_elements(By.CSS_SELECTOR, "#write-paper .written"), "words")
                    visitor.until(lambda: driver.find_elements(By.CSS_SELECTOR, "#write-paper .draft"), "a draft")
                    shrink(visitor.picture("write", folder))
                if lacking:
                    visitor.wait_for_message("must be one that the checkpoint was trained for")
                else:
                    visitor.wait_for(f"{name}-status", "Remembered" if name == "memory" else "Done")
                if name != "write":
                    shrink(visitor.picture(name, folder))
        finally:
            driver.quit()
            page.close()


def shrink(file: Path) -> None:
    """The same picture in few colours: a tenth of the size."""
    with Image.open(file) as picture:
        small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(file, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
