"""Chromium without a window: opens a page, runs a script in it, and tells what the page wrote, logged and requested."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in _NAMES if (path := shutil.which(name))), None)
"""The browser; None where there is none."""
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
)  # fmt: skip
_RESULT = "RESULT-OF-TEST:"
_RUNNER = """<script>
const started = setInterval(async () => {
  if (!document.body.dataset.drawn && document.getElementById("data")) return;
  clearInterval(started);
  const pause = () => new Promise((resolve) => setTimeout(resolve, 200));
  let result;
  try { result = await (async () => { SCRIPT })(); } catch (error) { result = { error: String(error) }; }
  const loaded = performance.getEntriesByType("resource").map((entry) => entry.name);
  console.log("RESULT-OF-TEST:" + btoa(encodeURIComponent(JSON.stringify([result, loaded]))) + ";");
}, 20);
</script></body>"""


@dataclass(frozen=True)
class Visit:
    """What came of opening a page."""

    result: Any
    """What the script returned."""
    console: list[str]
    """Messages on the browser's console, errors of the page among them."""
    requests: list[str]
    """Addresses that the page requested."""
    cpu_seconds: float
    """Processor time of the browser's processes until then; unlike the wall time, no neighbour makes it longer."""


def visit(page: Path, script: str = "return null;", *, width: int = 1280, dark: bool = False) -> Visit:
    """Opens a page, waits until its first charts are drawn, and runs `script`, which may await and returns a value."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        copy, log = Path(folder) / "page.html", Path(folder) / "net.json"
        head, _, tail = page.read_text(encoding="utf-8").rpartition("</body>")
        copy.write_text(head + _RUNNER.replace("SCRIPT", script) + tail, encoding="utf-8")
        options = [*_OPTIONS, f"--user-data-dir={folder}/profile", f"--window-size={width},1000"]
        options += [f"--blink-settings=preferredColorScheme={int(not dark)}", f"--log-net-log={log}"]
        process = subprocess.Popen(
            [CHROMIUM, *options, copy.as_uri()], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            lines = _read_until_result(process)
            seconds = _cpu_seconds(process.pid)
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # on which it writes its log to the end
            process.communicate(timeout=60)
        requests = _requests(log)
    found = re.search(rf"{_RESULT}([\w+/=]*);", lines[-1])
    assert found is not None, "".join(lines)[-2000:]
    result, loaded = json.loads(unquote(base64.b64decode(found[1]).decode()))
    assert not (isinstance(result, dict) and "error" in result), result
    embedded = ("data:", "blob:", copy.as_uri())
    requested = sorted(url for url in {*requests, *loaded} if not url.startswith(embedded))
    return Visit(result, [line for line in lines[:-1] if "CONSOLE" in line], requested, seconds)


def _read_until_result(process: subprocess.Popen[str]) -> list[str]:
    """The lines of the browser's log up to the one with the script's result."""
    assert process.stderr is not None
    lines: list[str] = []
    killer = threading.Timer(120, process.kill)
    killer.start()
    for line in process.stderr:
        lines.append(line)
        if _RESULT in line:
            break
    killer.cancel()
    return lines


def _cpu_seconds(group: int) -> float:
    """Processor time of all processes of a group, its dead children included."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()  # from the third field on: state, ppid, pgrp, ...
            ticks += sum(map(int, fields[11:15])) if int(fields[2]) == group else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def _requests(log: Path) -> set[str]:
    """Addresses in the browser's own log that a page caused it to fetch; what it fetches for itself has no origin."""
    started = re.compile(r'"initiator":"([^"]*)".*"url":"([^"]+)"')
    found = [match for line in log.read_text(encoding="utf-8").splitlines() if (match := started.search(line))]
    return {match[2] for match in found if match[1] != "not an origin"}
