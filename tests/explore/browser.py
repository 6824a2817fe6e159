"""A headless Chromium, driven over a pipe by DevTools' own protocol: nothing has to be installed for it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60  # seconds
KEYS = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Browser:
    """One page of a browser.

    Attributes:
        complaints: errors and warnings of its console, and exceptions.
        requests: addresses that it asked for, but for those of data.
    """

    def __init__(self, write: int, read: int) -> None:
        self._write = write
        self._read = read
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def open_tab(self) -> None:
        """Open the one page."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask the browser, and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(str(params["entry"]))
        elif method == "Network.requestWillBeSent":
            if not params["request"]["url"].startswith(("data:", "blob:")):
                self.requests.append(params["request"]["url"])

    def size(self, width: int, height: int, mobile: bool = False) -> None:
        """Give the page a window of so many pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def colours(self, scheme: str) -> None:
        """Prefer "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def go(self, address: str) -> None:
        """Open a page, and wait until its first maps are drawn."""
        self.call("Page.navigate", url=address)
        self.wait("document.body && document.body.dataset.drawn")

    def run(self, script: str) -> Any:
        """The value of an expression in the page, a promise's too."""
        result = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(f"!!({script})"):
            assert time.monotonic() < end, f"waited in vain for {script}: {self.complaints}"
            time.sleep(0.02)

    def drawn_by(self, act: Any) -> None:
        """Do something, and wait until maps are drawn for it."""
        before = self.run("document.body.dataset.drawn")
        act()
        self.wait(f"document.body.dataset.drawn !== {before!r}")

    def click(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """Click an element, at a fraction of its width and height."""
        place = self.run(
            "(() => { const element = document.querySelector(" + json.dumps(selector) + ");"
            "element.scrollIntoView({block: 'center'}); const box = element.getBoundingClientRect();"
            f"return [box.left + {x} * box.width, box.top + {y} * box.height]; }})()"
        )
        button = {"x": place[0], "y": place[1], "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **button)

    def press(self, key: str, shift: bool = False) -> None:
        """Press and release a key of `KEYS`."""
        event = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, modifiers=8 if shift else 0, **event)

    def slide(self, selector: str, value: float) -> None:
        """Move a slider."""
        self.run(
            f"(() => {{ const slider = document.querySelector({json.dumps(selector)});"
            f"slider.value = {value}; slider.dispatchEvent(new Event('input')); }})()"
        )


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own; tests that need one skip where there is none."""
    program = next((path for name in NAMES if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    from_us, write = os.pipe()
    read, to_us = os.pipe()
    options = (
        "headless=new no-sandbox disable-gpu disable-dev-shm-usage no-first-run hide-scrollbars"
    )
    words = [f"--{option}" for option in options.split()]
    command = [program, *words, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
    # Chromium reads what is asked from 3 and answers on 4; sh knows no numbers above 9.
    shell = ["bash", "-c", f'exec "$@" 3<&{from_us} 4>&{to_us}', "bash", *command]
    silent = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
    process = subprocess.Popen(shell, pass_fds=(from_us, to_us), start_new_session=True, **silent)
    os.close(from_us)
    os.close(to_us)
    try:
        browser = Browser(write, read)
        browser.open_tab()
        yield browser
    finally:
        os.close(write)
        os.close(read)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
