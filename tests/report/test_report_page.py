"""The page in a real browser: narrow and wide, light and dark, without a network.

REPORT_PICTURES=FOLDER pytest tests/report/test_report_page.py      # keeps pictures of it, those of docs, too
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from es_flipout.cli import report

NARROW, WIDE = 380, 1400
WIDTHS = pytest.mark.parametrize("width", [NARROW, WIDE])
SCHEMES = pytest.mark.parametrize("scheme", ["light", "dark"])
BACKGROUNDS = {"light": "rgb(255, 255, 255)", "dark": "rgb(27, 33, 41)"}
PICTURES = {(WIDE, "light"): ("report_wide.png", 1050), (NARROW, "dark"): ("report_narrow.png", 1050)}
"""Pictures of docs/reports.md: the top of the page, so many pixels high."""
NUM_CURVES = 2
"""Panels of curves: score, fitness."""


@pytest.fixture(scope="module")
def egl(module_monkeypatch):
    """Whether pictures can be drawn here, off screen."""
    module_monkeypatch.setenv("MUJOCO_GL", "egl")
    try:
        from mujoco.egl import GLContext

        GLContext(16, 16).free()
    except Exception:  # the drivers fail in many ways
        return False
    return True


@pytest.fixture(scope="module")
def module_monkeypatch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def file(trained, egl, tmp_path_factory) -> Path:
    """A page about three seeds of a training and one of another, with films if these can be made."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    arguments = [*map(str, trained), "--out", str(path), "--episodes", "5", "--film-frames", "20"]
    assert report.main([*arguments, *([] if egl else ["--no-film"])]) == 0
    return path


@pytest.fixture(scope="module")
def pages(browser: Browser, file: Path) -> Iterator[Callable[[int, str], Page]]:
    """Opens the page in a window of some width, with a color scheme; once, as that takes a second."""
    opened: dict[tuple[int, str], Page] = {}

    def open_page(width: int, scheme: str) -> Page:
        if (width, scheme) not in opened:
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page.problems = []
            page.on("console", lambda message: page.problems.append(message.text))
            page.on("pageerror", lambda error: page.problems.append(str(error)))
            page.on("request", lambda asked: page.problems.append(asked.url))
            page.goto(file.as_uri())
            opened[width, scheme] = page
        return opened[width, scheme]

    yield open_page
    for page in opened.values():
        page.close()


@pytest.fixture
def page(pages, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page, which the test leaves as it was. Nothing is loaded or complained about meanwhile."""
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    page = pages(params.get("width", WIDE), params.get("scheme", "light"))
    yield page
    requests = [each for each in page.problems if not each.startswith(("data:", "blob:"))]
    assert requests == [page.url]


def style(page: Page, selector: str, name: str) -> str:
    return page.eval_on_selector(selector, f"element => getComputedStyle(element).{name}")


def lines(page: Page, plot: int = 0) -> int:
    """Returns how many lines are drawn in a plot of curves."""
    return page.locator(".curves .plot").nth(plot).locator(".scatterlayer .trace path.js-line").count()


@WIDTHS
@SCHEMES
def test_the_page_fits_and_every_plot_is_drawn(page: Page, width: int, scheme: str):
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for plot in page.locator(".plot").all():
        box, svg = plot.bounding_box(), plot.locator(".main-svg").first.bounding_box()
        assert svg["width"] == pytest.approx(box["width"], abs=1)
        assert svg["height"] == pytest.approx(box["height"], abs=1)
        assert box["x"] + box["width"] <= width
        assert plot.locator(".scatterlayer .trace").count() >= 4
    assert [lines(page, plot) for plot in range(NUM_CURVES)] == [6, 6]  # a band, three runs, a mean; a run
    assert page.locator(".strip .trace").count() == 2 * page.locator(".strip .ytick").count()
    assert style(page, ".curves .main-svg", "backgroundColor") == BACKGROUNDS[scheme]
    if folder := os.environ.get("REPORT_PICTURES"):
        page.wait_for_timeout(500)
        page.screenshot(path=Path(folder, f"page_{width}_{scheme}.png"), full_page=True)
        if (picture := PICTURES.get((width, scheme))) is not None:
            name, height = picture
            clip = {"x": 0, "y": 0, "width": width, "height": height}
            page.screenshot(path=Path(folder, name), full_page=True, clip=clip)


def test_plots_follow_the_color_scheme_while_the_page_is_open(page: Page):
    color = style(page, ".curves .js-line[style*='stroke-width: 2.5']", "stroke")
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(300)
        assert style(page, ".curves .main-svg", "backgroundColor") == BACKGROUNDS[scheme]
        is_same = style(page, ".curves .js-line[style*='stroke-width: 2.5']", "stroke") == color
        assert is_same == (scheme == "light")


def test_the_toggle_draws_curves_over_something_else(page: Page):
    def drawn():
        plot = page.locator(".curves .plot").first
        return plot.locator(".xtitle").text_content(), plot.locator("path.js-line").first.get_attribute("d")

    found = {"env steps": drawn()}
    for name in ("wall time", "generations", "env steps"):
        page.get_by_text(name, exact=True).first.click()
        assert drawn()[0].startswith(name)
        found.setdefault(name, drawn())
    assert drawn() == found["env steps"]
    assert len({path for _, path in found.values()}) == 3
    page.get_by_role("radio", name="env steps").focus()
    page.keyboard.press("ArrowRight")
    assert drawn() == found["wall time"]
    page.keyboard.press("ArrowLeft")


def test_the_legend_hides_a_group_in_all_plots(page: Page):
    everywhere = "[...document.querySelectorAll('.plot')].map(plot => plot.querySelectorAll('.trace').length)"
    before = page.evaluate(everywhere)
    button = page.locator(".legend button").nth(1)
    assert button.inner_text().startswith("B sigma 0.02 (1 run)")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    after = page.evaluate(everywhere)
    assert all(now < then for now, then in zip(after, before, strict=True))
    assert lines(page) == 5
    page.get_by_text("wall time", exact=True).first.click()
    assert lines(page) == 5
    page.get_by_text("env steps", exact=True).first.click()
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert page.evaluate(everywhere) == before


def test_hovering_shows_values(page: Page):
    plot = page.locator(".curves .plot").first
    plot.scroll_into_view_if_needed()
    end = plot.locator("path.js-line[style*='stroke-width: 2.5']").first.bounding_box()
    page.mouse.move(end["x"] + end["width"] - 1, end["y"] + 1)
    label = plot.locator(".hoverlayer .hovertext").first
    label.wait_for()
    assert "at" in label.text_content()


def test_a_group_has_the_same_color_everywhere(page: Page):
    chip = style(page, ".legend button:nth-child(2) i", "borderTopColor")
    drawn = page.evaluate(
        """[...document.querySelectorAll('.plot')].map(plot =>
            plot.data.filter(trace => trace.meta.group === 1 && trace.meta.role !== "episodes")
                     .map(trace => trace.marker.color)).flat()"""
    )
    assert len(drawn) >= NUM_CURVES
    (color,) = set(drawn)
    assert chip == f"rgb{tuple(bytes.fromhex(color[1:]))}"


def test_films_play(page: Page, egl: bool):
    if not egl:
        pytest.skip("EGL cannot render on this machine")
    films = page.locator("video")
    assert films.count() == 2
    film = films.first
    assert film.get_attribute("aria-label").startswith("Film of the policy of wide")
    film.scroll_into_view_if_needed()
    play = "video => new Promise(played => { video.ontimeupdate = () => video.currentTime > 0.1 && played(); "
    film.evaluate(f"{play} video.play(); }})")
    assert film.evaluate("video => video.readyState") >= 2
    film.evaluate("video => video.pause()")
    assert film.evaluate("video => video.duration") == pytest.approx(20 / 25, abs=0.1)


def test_what_a_reader_of_the_screen_gets(page: Page):
    assert page.locator(".plot:not([role=img][aria-label])").count() == 0
    assert page.get_by_role("img", name="Score, last values. A, sigma 0.1:").count() == 1
    assert page.locator("table:not(:has(thead th[scope=col]))").count() == 0
    assert page.locator("tbody tr:not(:has(th, td))").count() == 0
    levels = page.evaluate(
        "[...document.querySelectorAll('h1,h2,h3,h4')].map(each => Number(each.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
