"""The built site: strict, whole, the same bytes everywhere, and readable in a browser whose network is cut."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest

import site_fixture
from noscratch.results.publish import publish
from test_publish import HOSTILE, HOSTILE_NAME

# One page of every kind.
KINDS = (
    *("index.html", "reproduce.html", "extend.html", "testing.html"),
    *(f"generated/{name}.html" for name in ("results", "failures", "data", "downloads", "performance", "numerics")),
    *("generated/tasks/index.html", "generated/tasks/listops.html", "generated/tasks/cola.html"),
    *("generated/backbones/index.html", "generated/backbones/s4d.html"),
    *("generated/claims/spt-gain.html", "generated/claims/spt-cola.html", "generated/papers/spt.html"),
    "generated/runs/smoke-listops-s4d-spt-masked.html",
    "generated/runs/smoke-pathfinder-s4d-spt-causal.html",
)
# The claims of the fixture as the board lists them: supported, contradicted, inconclusive, blocked, not run.
EVERY = ["spt-gain", "spt-s4d", "spt-pathfinder", "spt-cola", "spt-image"]
PHONE, DESKTOP = 390, 1300


def build(root: Path) -> Path:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "SOURCE_DATE_EPOCH": "0"}
    command = [sys.executable, "-m", "mkdocs", "build", "-f", "site/mkdocs.yml", "--strict"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return root / "public"


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of 30 smoke runs and some at tier mini, with a hostile backbone and a hostile reason among them."""
    root = site_fixture.checkout(tmp_path_factory.mktemp("site"), mini=5)
    site_fixture.measurements(root)
    site_fixture.run(root, "smoke", "listops", HOSTILE_NAME, "scratch", 0)
    site_fixture.run(root, "smoke", "listops", "s4d", "scratch", 9, "failed", HOSTILE)
    site_fixture.report(root, sorted(path.parent for path in (root / "data" / "runs").rglob("record.json")))
    publish(root)
    return build(root)


class Links(HTMLParser):
    """What a page links to, loads, runs, and the places in it that can be linked to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.scripts: list[str] = []
        self.places: set[str] = {""}
        self._script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.places |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif "href" in values or "src" in values:
            self.loads.append(values.get("src") or values["href"])
        assert not [name for name in values if name.startswith("on")], values
        self._script = tag == "script"

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts.append(data)
        self._script = False


@pytest.fixture(scope="module")
def parsed(public: Path) -> dict[str, Links]:
    return {
        path.relative_to(public).as_posix(): Links(path.read_text(encoding="utf-8")) for path in public.rglob("*.html")
    }


def test_every_link_leads_somewhere(public: Path, parsed: Mapping[str, Links]) -> None:
    checked = 0
    for name, page in parsed.items():
        if name == "404.html":  # served at any address, so its links are absolute
            continue
        for link in page.links + page.loads:
            address = urlsplit(link)
            assert not address.scheme, f"{name} leaves the site: {link}"
            target = (public / name).parent / unquote(address.path) if address.path else public / name
            assert target.is_file(), f"{name} links to {link}"
            if target.suffix == ".html" and address.fragment:
                place = target.resolve().relative_to(public.resolve()).as_posix()
                assert unquote(address.fragment) in parsed[place].places, f"{name} links to {link}"
            checked += 1
    assert checked > 1000


def test_nothing_is_asked_of_another_host(public: Path, parsed: Mapping[str, Links]) -> None:
    for name, page in parsed.items():
        assert not [load for load in page.loads if "//" in load], name
        assert not re.search(r"https?://(?!www\.w3\.org/)", " ".join(page.scripts)), name
    for path in public.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", path.read_text(encoding="utf-8")), path
    own = (public / "assets" / "tables.js").read_text(encoding="utf-8")
    assert not re.search(r"fetch|XMLHttpRequest|import\(|https?:", own)


def test_pages_of_runs_are_small_and_the_largest_is_below_a_megabyte(public: Path) -> None:
    sizes = {path.relative_to(public).as_posix(): path.stat().st_size for path in public.rglob("*.html")}
    assert max(sizes.values()) < 1_000_000
    # A thousand runs, their claims and their downloads shall fit into 20 MB: at most half of that for the runs' pages.
    pages = [public / name for name in sizes if name.startswith("generated/runs/")]
    runs = sum(page.read_text(encoding="utf-8").count('<span id="seed-') for page in pages)
    assert sum(page.stat().st_size for page in pages) / runs < 10_000
    assert not [path for path in public.rglob("*") if path.suffix == ".map" or "lunr" in path.parts]


def test_same_site_in_another_folder(tmp_path: Path) -> None:
    built = []
    for folder in ("one", "two/deeper"):
        root = site_fixture.checkout(tmp_path / folder)
        publish(root)
        public = build(root)
        built.append(
            {path.relative_to(public).as_posix(): path.read_bytes() for path in public.rglob("*") if path.is_file()}
        )
    assert built[0] == built[1]


def test_a_dead_link_stops_the_build(tmp_path: Path) -> None:
    root = site_fixture.checkout(tmp_path)
    publish(root)
    page = root / "site" / "docs" / "extend.md"
    page.write_text(page.read_text(encoding="utf-8") + "\n[gone](gone.md)\n", encoding="utf-8")
    with pytest.raises(AssertionError, match=r"gone\.md"):
        build(root)


# ---------------------------------------------------------------- in a browser

Browser = Callable[..., str]


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    """`browser(url, *flags)` -> the page as text once its scripts ran; no name resolves, the console stays silent."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("no Chromium binary; on Debian: apt-get install --no-install-recommends chromium")

    def visit(url: str, *flags: str) -> str:
        quiet = (
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-quic",
            "--no-first-run",
        )
        cut = (
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=20000",
        )
        command = [
            binary,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            *quiet,
            *cut,
            "--enable-logging=stderr",
            *flags,
            "--dump-dom",
            url,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert "CONSOLE" not in done.stderr, done.stderr
        return done.stdout

    return visit


HARNESS = """<!doctype html><title>harness</title><body><pre id="out"></pre><script>
const pages = PAGES, seen = {};
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const rgba = (colour) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  const pixel = canvas.getImageData(0, 0, 1, 1).data;
  return [pixel[0], pixel[1], pixel[2], pixel[3] / 255];
};
const over = (front, back) => [0, 1, 2].map((k) => front[k] * front[3] + back[k] * (1 - front[3]));
const luminance = (colour) => {
  const linear = colour.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
};
const words = (each) => each.getClientRects().length
  && [...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
const contrast = (each) => {
  const style = (node) => node.ownerDocument.defaultView.getComputedStyle(node);
  const front = rgba(each.ownerSVGElement ? style(each).fill : style(each).color), layers = [];
  for (let node = each; node; node = node.parentElement) {
    front[3] *= Number(style(node).opacity);
    layers.unshift(rgba(style(node).backgroundColor));
  }
  if (front[3] < 0.01) return 21;
  const back = layers.reduce((below, layer) => over(layer, below), [255, 255, 255]);
  const [low, high] = [luminance(over(front, back)), luminance(back)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
const measure = (name) => new Promise((done) => {
  const frame = document.createElement("iframe");
  frame.style.cssText = "width:WIDTHpx;height:900px;border:0";
  frame.onload = () => setTimeout(() => {
    const page = frame.contentDocument, root = page.documentElement;
    seen[name] = {LOOK
    };
    frame.remove();
    done();
  }, 300);
  frame.src = name;
  document.body.append(frame);
});
(async () => {
  for (const name of pages) await measure(name);
  document.getElementById("out").textContent = JSON.stringify(seen);
})();
</script>"""
Visit = Callable[..., tuple[dict[str, Any], Path]]


@pytest.fixture
def visit(browser: Browser, tmp_path: Path) -> Visit:
    """`visit(public, pages, width, look, *flags)` -> what `look` (JavaScript) sees in each page, and the net log."""

    def through_frames(
        public: Path, pages: list[str], width: int, look: str, *more: str
    ) -> tuple[dict[str, Any], Path]:
        harness, log = public / "harness.html", tmp_path / "net.json"
        text = HARNESS.replace("PAGES", json.dumps(pages)).replace("WIDTH", str(width)).replace("LOOK", look)
        harness.write_text(text, encoding="utf-8")
        try:
            # A page from disk may not look into another one; the harness has to.
            flags = (f"--log-net-log={log}", "--disable-web-security", "--allow-file-access-from-files")
            page = browser(harness.as_uri(), *flags, *more)
        finally:
            harness.unlink()
        found = re.search(r'<pre id="out">(.+?)</pre>', page, re.DOTALL)
        assert found, page
        return json.loads(html.unescape(found[1])), log

    return through_frames


QUERIES = {
    "": EVERY,
    "?verdict=supported": ["spt-gain"],
    "?verdict=contradicted": ["spt-s4d"],
    "?verdict=inconclusive": ["spt-pathfinder"],
    "?verdict=blocked": ["spt-cola"],
    "?verdict=not-run": ["spt-image"],
    "?verdict=no-such-verdict": EVERY,
    "?task=listops&backbone=transformer": ["spt-gain"],
    "?tier=paper": ["spt-image"],
    "?find=Diagonal+listops": ["spt-s4d"],
    "?sort=claim": sorted(EVERY),
    "?sort=claim&order=desc&paper=spt": sorted(EVERY, reverse=True),
}
SHOWN = """
      shown: [...page.querySelector("table[data-facets]").querySelectorAll("tbody tr")].filter((row) => !row.hidden)
        .map((row) => row.querySelector("a").getAttribute("href").match(/claims\\/([\\w-]+)/)[1]),
      count: page.querySelector("output").textContent,
      link: page.querySelector(".ns-tools__link").href.split("?")[1] ?? "","""


@pytest.mark.browser
def test_an_address_filters_and_sorts_the_board(public: Path, visit: Visit) -> None:
    found, _ = visit(public, [f"index.html{query}" for query in QUERIES], DESKTOP, SHOWN)
    for query, claims in QUERIES.items():
        seen = found[f"index.html{query}"]
        assert seen["shown"] == claims, query
        assert seen["count"] == f"{len(claims)} of {len(EVERY)}"
        if "no-such" not in query:
            assert sorted(parse_qsl(seen["link"])) == sorted(parse_qsl(query[1:]))


def requests(log: Path) -> list[str]:
    """Addresses beyond this disk that a page asked for; what the browser itself asks for has no origin."""
    content = json.loads(log.read_text(encoding="utf-8"))
    start = content["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [event.get("params", {}) for event in content["events"] if event["type"] == start]
    own = [each for each in asked if "url" in each and each["initiator"] != "not an origin"]
    return [each["url"] for each in own if each["url"].startswith("http")]


@pytest.mark.browser
def test_the_browser_tests_would_see_a_request_and_an_error(browser: Browser, tmp_path: Path) -> None:
    page, log = tmp_path / "page.html", tmp_path / "net.json"
    page.write_text('<!doctype html><img src="https://example.org/a.png">', encoding="utf-8")
    browser(page.as_uri(), f"--log-net-log={log}")
    assert requests(log) == ["https://example.org/a.png"]
    page.write_text("<!doctype html><script>missing()</script>", encoding="utf-8")
    with pytest.raises(AssertionError, match="missing is not defined"):
        browser(page.as_uri())


# What can be told of a page's accessibility without another tool: contrast (WCAG 2), names, order of headings.
LOOK = """
      heading: page.querySelectorAll("h1").length,
      wide: root.scrollWidth,
      scheme: page.body.dataset.mdColorScheme,
      hacked: Boolean(root.dataset.hacked),
      unnamed: page.querySelectorAll("article svg[role=img]:not(:has(desc))").length
        + [...page.querySelectorAll("article :is(a, button, select, input)")]
          .filter((each) => !(each.textContent.trim() || each.ariaLabel || each.title || each.closest("label"))).length,
      skipped: [...page.querySelectorAll("article :is(h1, h2, h3)")].map((each) => Number(each.tagName[1]))
        .filter((level, k, levels) => k && level > levels[k - 1] + 1).length,
      faint: [...page.querySelectorAll("article *:not(.ns-draft)")]
        .filter((each) => words(each) && contrast(each) < 4.5).map((each) => each.outerHTML.slice(0, 120)),"""


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(PHONE, "default"), (DESKTOP, "default"), (DESKTOP, "slate")])
def test_every_kind_of_page_opens_from_disk_without_a_request(
    public: Path, visit: Visit, width: int, scheme: str
) -> None:
    hostile = sorted(path.relative_to(public).as_posix() for path in public.glob("generated/backbones/img-*.html"))
    assert len(hostile) == 1
    pages = [*KINDS, *hostile, "generated/runs/smoke-listops-s4d-scratch.html"]
    dark = ("--blink-settings=preferredColorScheme=0", "--force-dark-mode") if scheme == "slate" else ()
    found, log = visit(public, pages, width, LOOK, *dark)
    assert sorted(found) == sorted(pages)
    for name, seen in found.items():
        assert seen["heading"] == 1, name
        assert seen["wide"] <= width, f"{name} is {seen['wide']} wide"
        assert seen["scheme"] == scheme, name
        assert not seen["hacked"], name
        assert not seen["unnamed"], name
        assert not seen["skipped"], name
        assert not seen["faint"], name
    assert not requests(log)
