"""A real browser that opens a page and tells what it sees."""

import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from pathlib import Path

from tests.time_limits import seconds

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OWN_ERRANDS = (".google.com", ".googleapis.com", ".gstatic.com", ".gvt1.com")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--window-size=1500,900",
    "--virtual-time-budget=20000",
)

PROBE = """
<script>
addEventListener("load", async () => {
  const began = Date.now();
  const wanted = document.querySelectorAll(".chart").length;
  const plots = () => [...document.querySelectorAll(".js-plotly-plot")];
  const drawn = () => plots().filter((plot) => plot.querySelector("svg .trace"));
  while (drawn().length < wanted && Date.now() - began < 15000) await new Promise((go) => setTimeout(go, 50));
  const drawnAtOnce = drawn().length;
  const axis = document.querySelector(".axis [value=steps]");
  axis.click();
  await new Promise((go) => setTimeout(go, 300));
  const color = (part) => getComputedStyle(document.querySelector(`.js-plotly-plot ${part}`)).fill;
  parent.postMessage(JSON.stringify({
    charts: wanted,
    drawn: drawnAtOnce,
    overflow: document.documentElement.scrollWidth - innerWidth,
    width: innerWidth,
    page: getComputedStyle(document.body).backgroundColor,
    ticks: color(".xtick text"),
    legend: color(".legendtext"),
    axis: document.querySelector(".js-plotly-plot .xtitle").textContent,
    attacked: typeof window.attacked !== "undefined",
    bold: document.querySelectorAll("blockquote b").length,
  }), "*");
});
</script>
"""


@dataclass(frozen=True)
class Seen:
    """What a page looks like once its charts are drawn."""

    charts: int
    drawn: int
    overflow: int
    """Pixels that the page is wider than its window."""
    width: int
    page: str
    ticks: str
    legend: str
    axis: str
    """What the first chart runs along after a click on `steps`."""
    attacked: bool
    bold: int


def find_browser() -> str | None:
    """A Chromium on the path, if there is one."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


@contextmanager
def recording_proxy() -> Iterator[tuple[int, list[str]]]:
    """A proxy that lets nothing through: its port, and the hosts that were asked for."""
    asked: list[str] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                client.settimeout(seconds(2))
                try:
                    words = client.recv(4096).decode("latin-1").split()
                except OSError:
                    continue
                asked.append(words[1] if len(words) > 1 else "?")

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield server.getsockname()[1], asked
    finally:
        server.close()


def open_page(browser: str, page: Path, scratch: Path, width: int, dark: bool) -> tuple[Seen, list[str]]:
    """Open `page` in a window of `width`; also the outside addresses that it asked for."""
    scratch.mkdir()
    probed = scratch / "probed.html"
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    # A window cannot be narrower than 500 pixels, a frame in it can.
    frame = scratch / "frame.html"
    frame.write_text(
        "<body><script>addEventListener('message', (event) => { document.body.textContent = 'SEEN' + event.data; })"
        f"</script><iframe src='probed.html' width='{width}' height='900' style='border:0'></iframe></body>"
    )
    scheme = "0" if dark else "1"
    with recording_proxy() as (port, asked):
        command = [
            browser,
            *FLAGS,
            f"--user-data-dir={scratch / 'profile'}",
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--proxy-server=127.0.0.1:{port}",
            "--proxy-bypass-list=<-loopback>",
            "--dump-dom",
            frame.as_uri(),
        ]
        printed = subprocess.run(command, capture_output=True, text=True, timeout=seconds(120), check=True).stdout
    found = re.search(r"SEEN(\{.*?\})", unescape(printed))
    assert found is not None, printed[-2000:]
    outside = [address for address in asked if not any(own in address for own in OWN_ERRANDS)]
    return Seen(**json.loads(found[1])), outside
