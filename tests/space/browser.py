"""A headless Chromium that drives the Space as a visitor does."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

PATIENCE_S = 300  # a busy machine is slow; only a failure waits so long


def open_chromium(width: int = 1280, height: int = 960) -> webdriver.Chrome:
    """Debian's Chromium with its driver; it fetches nothing."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--mute-audio"):
        options.add_argument(argument)
    options.add_argument("--autoplay-policy=no-user-gesture-required")
    options.add_argument(f"--window-size={width},{height}")
    options.set_capability("goog:loggingPrefs", {"browser": "SEVERE"})
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


class Visitor:
    """Someone at the page.

    Usage:
        visitor = Visitor(open_chromium(), "http://127.0.0.1:7860")
        visitor.open_tab("Write"); visitor.click("write-start"); visitor.wait_for("write-status", "Done")
    """

    def __init__(self, driver: webdriver.Chrome, url: str):
        self.driver = driver
        driver.get(url)
        self.until(lambda: driver.find_elements(By.ID, "write-start"), "the page")

    def until(self, found: Callable, what: str):
        """Wait for something to be there."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if value := found():
                return value
            time.sleep(0.05)
        raise AssertionError(
            f"{what} did not come; the page says: {self.driver.find_element(By.TAG_NAME, 'body').text}"
        )

    def find(self, name: str, inner: str = "") -> WebElement:
        """An element by its id, or the first inside it that a CSS selector names."""
        return self.driver.find_element(By.CSS_SELECTOR, f"#{name} {inner}".strip())

    def text(self, name: str) -> str:
        """What an element shows."""
        return self.find(name).text

    def open_tab(self, name: str) -> None:
        """Click a tab; its contents come when it is first opened."""
        tabs = self.driver.find_elements(By.CSS_SELECTOR, "button[role=tab]")
        next(tab for tab in tabs if tab.text == name and tab.is_displayed()).click()

    def see(self, name: str) -> None:
        """Wait until an element is on the page."""
        self.until(
            lambda: [e for e in self.driver.find_elements(By.ID, name) if e.is_displayed()], f"the element {name!r}"
        )

    def click(self, name: str) -> None:
        """Click a button."""
        self.see(name)
        element = self.find(name)
        fold = element.find_elements(By.CSS_SELECTOR, "button.label-wrap")  # an accordion is opened by its title
        (fold[0] if fold else element).click()

    def fill(self, name: str, text: str | float, inner: str = "textarea, input") -> None:
        """Type into a field, instead of what is there."""
        self.see(name)
        field = self.find(name).find_element(By.CSS_SELECTOR, inner)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.DELETE)
        field.send_keys(str(text), Keys.TAB)

    def wait_for(self, name: str, part: str) -> str:
        """Wait until an element shows some text; gives all that it shows."""
        return self.until(lambda: part in (shown := self.text(name)) and shown, f"{part!r} in {name}")

    def wait_for_message(self, part: str) -> None:
        """Wait until an error is shown as a message, and close it."""
        self.until(lambda: part in self.driver.find_element(By.TAG_NAME, "body").text, f"the message {part!r}")
        self.driver.find_element(By.CSS_SELECTOR, ".toast-close").click()

    def picture(self, name: str, file: Path) -> Path:
        """What is on the screen, from the top of the page."""
        self.driver.execute_script("window.scrollTo(0, 0)")
        self.driver.save_screenshot(str(file / f"{name}.png"))
        return file / f"{name}.png"
