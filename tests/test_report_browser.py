"""A report in a browser: nothing complains, nothing is loaded, the slider moves pictures, nothing sticks out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from browser import Browser, chromium
from report_cases import EVIL, make_run, make_sweep, moving

import toolkit

CONTRAST = 4.5
"""Of text to its background, as WCAG 2.1 AA asks."""
RATIO = """(() => {
  const rgb = text => text.match(/[0-9.]+/g).slice(0, 3).map(Number);
  const bright = c => c.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const behind = e => {
    for (let at = e; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (color !== "rgba(0, 0, 0, 0)") return rgb(color);
    }
    return [255, 255, 255];
  };
  const texts = "h1, p, dt, dd, small, td, th, a, pre span, .status, .range, button";
  const found = [...document.querySelectorAll(texts)].map(e => {
    const [a, b] = [bright(rgb(getComputedStyle(e).color)), bright(behind(e))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  });
  return Math.min(...found);
})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """Pictures, profiles, curves and points, with a name that would be markup."""
    force = moving(("sample", "t"), 3, sample=2)
    fields = xr.Dataset(
        {
            "u": moving(("sample", "t", "x", "y"), sample=2).assign_attrs(long_name=EVIL),
            "u_target": moving(("sample", "t", "x", "y"), 1, sample=2) * np.nan,
            "w": moving(("sample", "t", "x"), 2, sample=2),
            "a_force": force,
            "c": moving(("sample",), 4, sample=2),
        }
    )
    return toolkit.report(make_run(tmp_path_factory.mktemp("page") / "r", fields=fields))


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    """One browser for all tests."""
    program = chromium()
    if program is None:
        pytest.skip("no Chromium: none of chromium, chromium-browser, google-chrome; name one in CHROMIUM")
    opened = Browser(program, tmp_path_factory.mktemp("browser") / "profile")
    try:
        yield opened
    finally:
        opened.close()


def test_the_slider_and_the_sample_move_everything(browser: Browser, page: Path) -> None:
    browser.open(page)
    seen = """[...document.querySelectorAll(".picture img")].map(i => i.src).concat(
        [...document.querySelectorAll("path[id]")].map(p => p.getAttribute("d")),
        [...document.querySelectorAll("line.cursor")].map(l => l.getAttribute("x1")))"""
    at_end = browser.value(seen)
    assert browser.value("document.getElementById('now').textContent") == "t = 5"
    # By the keyboard alone.
    browser.value("document.getElementById('frame').focus()")
    browser.key("Home", 36)
    at_start = browser.value(seen)
    assert browser.value("document.getElementById('now').textContent") == "t = 0"
    assert browser.value("document.getElementById('frame').getAttribute('aria-valuetext')") == "t = 0"
    # The picture, the profile and the cursor over the curve; what shows all times or has no value stays.
    assert sum(a != b for a, b in zip(at_end, at_start, strict=True)) == 3
    browser.value("const s = document.getElementById('sample'); s.value = 1; s.dispatchEvent(new Event('change'))")
    other = browser.value(seen)
    assert sum(a != b for a, b in zip(at_start, other, strict=True)) == 4  # two pictures, profile, curve
    assert "sample 1" in browser.value("document.querySelector('.picture img').alt")
    assert browser.complaints() == []


def test_playing_runs_to_the_end_and_can_be_paused(browser: Browser, page: Path) -> None:
    browser.open(page)
    state = "[document.getElementById('frame').value, document.getElementById('play').getAttribute('aria-pressed')]"
    first = browser.value(f"document.getElementById('play').click(); {state}")
    assert first == ["0", "true"]
    paused, pressed = browser.value(f"document.getElementById('play').click(); {state}")
    assert pressed == "false"
    # Longer than two frames.
    later = browser.value(f"new Promise(done => setTimeout(() => done({state}), 900))")
    assert later == [paused, "false"]
    frame = "new Promise(requestAnimationFrame)"
    running = f"(async () => {{ while (document.getElementById('frame').value !== '5') await {frame}; }})()"
    browser.value(f"document.getElementById('frame').value = 4; document.getElementById('play').click(); {running}")
    assert browser.value(state) == ["5", "false"]
    assert browser.complaints() == []


def test_nothing_is_loaded_and_nothing_complains(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.requests() == [page.as_uri()]
    assert browser.complaints() == []
    # The policy forbids what the page does not ask for either.
    blocked = """new Promise(done => {
      addEventListener("securitypolicyviolation", e => done(e.effectiveDirective), {once: true});
      fetch("data:text/plain,x").catch(() => {});
    })"""
    assert browser.value(blocked) == "connect-src"
    assert browser.complaints() != []


@pytest.mark.parametrize("width", [320, 400, 1400])
def test_nothing_sticks_out(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    assert browser.value("document.documentElement.scrollWidth") <= width
    wide = (
        "Math.max(...[...document.querySelectorAll('section *')].filter(e => !e.closest('.scroll, pre, svg, select'))"
    )
    assert browser.value(f"{wide}.map(e => e.getBoundingClientRect().right))") <= width


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_in_both_themes(browser: Browser, page: Path, dark: bool) -> None:
    browser.open(page, dark=dark)
    assert browser.value(RATIO) >= CONTRAST
    background = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(17, 20, 23)") == dark


def test_a_sweep_can_be_sorted_by_a_column(browser: Browser, tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "s", {name: {"rule": name} for name in ("one", "two", "three")})
    for name, loss in (("one", 2.0), ("two", 10.0), ("three", 1.0)):
        make_run(sweep / name, losses=(20.0, loss))
    browser.open(toolkit.report(sweep))
    order = "[...document.querySelectorAll('#members tbody tr')].map(r => r.cells[0].textContent)"
    head = "[...document.querySelectorAll('#members th button')].find(b => b.textContent === 'validation loss').click()"
    assert browser.value(order) == ["one", "two", "three"]
    browser.value(head)
    assert browser.value(order) == ["three", "one", "two"]
    browser.value(head)
    assert browser.value(order) == ["two", "one", "three"]
    assert browser.complaints() == []
    assert browser.requests() == [(sweep / "report.html").as_uri()]
