"""The report in a real browser: it draws, sorts, hides, smooths, zooms and hovers, and requests nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import CHROMIUM, visit
from run_samples import write_run

from kdkit.report import write_report
from kdkit.report.config import ReportConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium"),
]
EVIL = '<img src=x onerror="document.title=1">&lt;'

COLUMN = """
  const column = (title) => {
    const heads = [...document.querySelectorAll("#runs th")];
    const index = heads.findIndex((head) => head.textContent === title);
    return { button: heads[index].querySelector("button"), head: heads[index],
             texts: () => [...document.querySelectorAll("#runs tbody tr")].map((row) => row.cells[index].textContent) };
  };
  const plot = document.getElementById("curve-loss");
  plot.scrollIntoView();
  while (!plot.querySelector(".nsewdrag")) await pause();
  const box = () => plot.querySelector(".nsewdrag").getBoundingClientRect();
  const mouse = (target, type, x, y) => target.dispatchEvent(new MouseEvent(type, {
    bubbles: true, cancelable: true, view: window, clientX: box().left + x, clientY: box().top + y, buttons: 1 }));
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report about three runs, one of them with HTML in all its names, one without validation."""
    root = tmp_path_factory.mktemp("report")
    write_run(root / "runs" / "plain", [50.0, 61.0, 55.0], num_parameters=11_000_000)
    write_run(root / "runs" / EVIL, [70.0, 9.5], config={"student": EVIL, "cache": f"{EVIL}.h5"}, num_parameters=500)
    logger_only = write_run(root / "runs" / "zz cut off", [10.0])
    (logger_only / "metrics.jsonl").write_text('{"kind": "step", "epoch": 0, "step": 0, "loss": 3.5, "lr": 0.1}\n{"ki')
    (logger_only / "summary.csv").unlink()
    config = ReportConfig(runs=(str(root / "runs"),), output=str(root / "report.html"))
    return write_report(config).output


def test_the_page_draws_every_chart_without_an_error_and_requests_nothing(page: Path) -> None:
    for dark in (False, True):
        seen = visit(
            page,
            """const plots = [...document.querySelectorAll(".plot")];
               for (const plot of plots) { plot.scrollIntoView(); await pause(); }
               return { plots: document.querySelectorAll(".plot").length,
                        drawn: plots.filter((plot) => plot.querySelector(".main-svg")).length,
                        images: document.querySelectorAll('img[src="x"]').length, title: document.title,
                        background: getComputedStyle(document.body).backgroundColor };""",
            dark=dark,
        )
        assert seen.console == []
        assert seen.requests == []
        assert seen.result["drawn"] == seen.result["plots"] >= 6
        assert seen.result["images"] == 0  # the names with HTML in them are text
        assert seen.result["title"] == "3 runs"
        assert seen.result["background"] == ("rgb(18, 22, 28)" if dark else "rgb(246, 247, 249)")


def test_a_request_would_be_seen(page: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.html"
    other.write_text("<body><img src='https://example.com/y.png'><script>console.error('noted')</script></body>")
    seen = visit(other, "await pause(); await pause(); return null;")
    assert seen.requests == ["https://example.com/y.png"]
    assert any("noted" in line for line in seen.console)


def test_a_click_on_a_heading_sorts_numbers_by_size_and_texts_by_letter(page: Path) -> None:
    seen = visit(
        page,
        COLUMN
        + """
        const parameters = column("parameters"), run = column("run"), found = {};
        parameters.button.click();
        found.down = [parameters.head.ariaSort, parameters.texts()];
        parameters.button.click();
        found.up = [parameters.head.ariaSort, parameters.texts()];
        run.button.click(); run.button.click();
        found.names = run.texts();
        found.other = parameters.head.ariaSort;
        return found;""",
    )
    assert seen.result["down"] == ["descending", ["11 M", "500", "-"]]
    assert seen.result["up"] == ["ascending", ["500", "11 M", "-"]]
    assert [name.rsplit("/", 1)[-1] for name in seen.result["names"]] == [EVIL, "plain", "zz cut off"]
    assert seen.result["other"] == "none"


def test_hovering_shows_the_run_and_its_value(page: Path) -> None:
    seen = visit(
        page,
        COLUMN
        + """
        mouse(plot.querySelector(".nsewdrag"), "mousemove", box().width - 2, box().height - 2);
        await pause();
        return [...plot.querySelectorAll(".hoverlayer .hovertext")].map((label) => label.textContent);""",
    )
    assert len(seen.result) == 1
    assert "plain" in seen.result[0] or EVIL[:8] in seen.result[0]


def test_dragging_zooms_in(page: Path) -> None:
    seen = visit(
        page,
        COLUMN
        + """
        const before = [...plot._fullLayout.xaxis.range];
        mouse(plot.querySelector(".nsewdrag"), "mousedown", 100, 20);
        mouse(document, "mousemove", 180, 120);
        mouse(document, "mouseup", 180, 120);
        await pause();
        return [before, plot._fullLayout.xaxis.range];""",
    )
    before, after = seen.result
    assert after[1] - after[0] < 0.5 * (before[1] - before[0])


def test_the_box_of_a_run_hides_its_curves_and_the_slider_smooths(page: Path) -> None:
    seen = visit(
        page,
        COLUMN
        + """
        const lines = () => plot.querySelectorAll(".scatterlayer .trace").length;
        const raw = [...plot.data[0].y], before = lines();
        document.querySelector('input[data-run="0"]').click();
        const hidden = lines();
        const slider = document.getElementById("smoothing");
        slider.value = 0.5;
        slider.dispatchEvent(new Event("input"));
        return [before, hidden, raw, plot.data[0].y];""",
    )
    before, hidden, raw, smoothed = seen.result
    assert hidden < before
    average, expected = 0.0, []
    for index, value in enumerate(raw, start=1):
        average = 0.5 * average + 0.5 * value
        expected.append(average / (1 - 0.5**index))
    assert smoothed == pytest.approx(expected)


def test_on_a_phone_nothing_is_wider_than_the_page(page: Path, tmp_path: Path) -> None:
    frame = tmp_path / "phone.html"  # a window is 500 pixels wide at least, a frame is not
    text = page.read_text().replace("default-src 'none'", "default-src 'none'; frame-src *")
    inner = tmp_path / "inner.html"
    message = "parent.postMessage([document.documentElement.scrollWidth, innerWidth, document.body.dataset.drawn], '*')"
    inner.write_text(text.replace("</body>", f"<script>setTimeout(() => {message}, 3000)</script></body>"))
    frame.write_text(f"<body><iframe src='{inner.as_uri()}' width=390 height=900></iframe></body>")
    seen = visit(frame, "return await new Promise((done) => addEventListener('message', (event) => done(event.data)));")
    width, window, drawn = seen.result
    assert width <= window <= 390
    assert int(drawn) >= 1


def test_fifty_runs_open_within_three_seconds(tmp_path: Path) -> None:
    for number in range(50):
        write_run(tmp_path / "runs" / f"run {number:02d}", [50.0 + (number * epoch) % 17 for epoch in range(60)])
    report = write_report(ReportConfig(runs=(str(tmp_path / "runs"),), output=str(tmp_path / "report.html")))
    assert report.num_bytes < 6e6
    empty = tmp_path / "empty.html"
    empty.write_text("<body></body>")
    seen = visit(
        report.output,
        """const first = document.getElementById("curve-val_top1"), second = document.getElementById("curve-loss");
           first.scrollIntoView();
           while (!first.querySelector(".xy") || !second.querySelector(".xy")) await pause();
           return first.querySelectorAll(".scatterlayer .trace").length;""",
    )
    assert seen.result == 50
    assert visit(report.output).cpu_seconds - visit(empty).cpu_seconds < 3  # the browser's own start left out
