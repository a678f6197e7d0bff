"""The built site: strict, whole, small, the same bytes everywhere, and good in a browser whose network is cut."""

from __future__ import annotations

import functools
import http.server
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest

import site_fixture
from noscratch.results.publish import publish
from test_publish import HOSTILE, HOSTILE_NAME

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# One page of every kind.
KINDS = (
    *("index.html", "reproduce.html", "train.html", "extend.html", "testing.html"),
    *(
        f"generated/{name}.html"
        for name in ("results", "failures", "data", "downloads", "performance", "numerics", "cost")
    ),
    *("generated/changelog.html", "generated/log.html"),
    *("generated/tasks/index.html", "generated/tasks/listops.html", "generated/tasks/cola.html"),
    *("generated/backbones/index.html", "generated/backbones/s4d.html"),
    *("generated/claims/spt-gain.html", "generated/claims/spt-cola.html", "generated/papers/spt.html"),
    "generated/runs/smoke-listops-s4d-spt-masked.html",
    "generated/runs/smoke-pathfinder-s4d-spt-causal.html",
)
# The claims of the fixture as the board lists them: supported, contradicted, inconclusive, blocked, not run.
EVERY = ["spt-gain", "spt-s4d", "spt-pathfinder", "spt-cola", "spt-image"]
PHONE, DESKTOP = 390, 1300


def build(root: Path, **place: str) -> Path:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "SOURCE_DATE_EPOCH": "0", **place}
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


def test_the_site_of_a_thousand_runs_is_small(tmp_path: Path) -> None:
    root = site_fixture.checkout(tmp_path)
    assert site_fixture.thousand(root) == 1000
    publish(root)
    public = build(root)
    sizes = {path.relative_to(public).as_posix(): path.stat().st_size for path in public.rglob("*") if path.is_file()}
    assert sum(sizes.values()) < 20_000_000
    assert max(size for name, size in sizes.items() if name.endswith(".html")) < 1_000_000
    assert not [name for name in sizes if name.endswith(".map") or "/lunr/" in name]


@pytest.mark.slow
def test_a_thousand_runs_are_built_within_a_minute(tmp_path: Path) -> None:
    root = site_fixture.checkout(tmp_path)
    site_fixture.thousand(root)
    publish(root)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    build(root)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 60


PUBLISH = "import sys, pathlib; from noscratch.results.publish import publish; publish(pathlib.Path(sys.argv[1]))"


def test_same_site_in_another_folder_time_zone_and_language(tmp_path: Path) -> None:
    built = []
    for folder, zone, language, seed in (
        ("one", "UTC", "C", "0"),
        ("two/deeper", "Pacific/Kiritimati", "tr_TR.UTF-8", "7"),
    ):
        root = site_fixture.checkout(tmp_path / folder)
        site_fixture.measurements(root)
        place = {"TZ": zone, "LC_ALL": language, "LANG": language, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", PUBLISH, str(root)], env={**os.environ, **place}, check=True)
        public = build(root, **place)
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


def test_one_command_publishes_it(tmp_path: Path) -> None:
    root, host = site_fixture.checkout(tmp_path / "checkout"), tmp_path / "host.git"
    publish(root)
    command = next(line for line in (root / "site/docs/reproduce.md").read_text().splitlines() if "gh-deploy" in line)
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "GIT_AUTHOR_DATE": "@0 +0000"}
    environment |= {
        f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    for line in (
        ["git", "init", "--quiet", "--bare", str(host)],
        ["git", "init", "--quiet"],
        ["git", "remote", "add", "origin", str(host)],
        ["git", "add", "CITATION.cff"],
        ["git", "commit", "--quiet", "--message=start"],
        [sys.executable, "-m", *command.split()],
    ):
        done = subprocess.run(line, cwd=root, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    tree = ["git", "--git-dir", str(host), "ls-tree", "-r", "--name-only", "gh-pages"]
    published = subprocess.run(tree, capture_output=True, text=True, check=True).stdout.split()
    assert {"index.html", ".nojekyll", "generated/results.html", "generated/downloads/results.parquet"} <= set(
        published
    )


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The system's Chromium, driven by playwright."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("no Chromium binary; on Debian: apt-get install --no-install-recommends chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """A reader of pages on disk whose network is cut: what went wrong while reading is kept."""

    def __init__(self, browser: Browser, width: int = DESKTOP, scheme: str = "light") -> None:
        size = {"width": width, "height": 900}
        self.context = browser.new_context(viewport=size, color_scheme=scheme, offline=True)  # type: ignore[arg-type]
        self.page: Page = self.context.new_page()
        self.asked: list[str] = []
        self.wrong: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("requestfailed", self._failed)
        self.page.on("console", lambda message: self.wrong.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))

    def _failed(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # which is what leaving a page does to its icon
            self.wrong.append(f"failed: {request.url}")

    def see(self, address: Path | str, look: str = "null") -> Any:
        """Open a page and return what `look` (JavaScript) sees in it once its scripts ran."""
        self.page.goto(address.as_uri() if isinstance(address, Path) else address)
        return self.page.evaluate(look)


# What the eye and a screen reader meet. Contrast is left to axe.
LOOK = """() => {
  const root = document.documentElement;
  const all = (selector) => [...document.querySelectorAll(selector)];
  return {
    heading: all("h1").length,
    wide: root.scrollWidth,
    scheme: document.body.dataset.mdColorScheme,
    hacked: Boolean(root.dataset.hacked),
    skipped: all("article :is(h1, h2, h3)").map((each) => Number(each.tagName[1]))
      .filter((level, k, levels) => k && level > levels[k - 1] + 1).length,
    figures: all("article svg[role=img]:not([aria-label])").length,
  };
}"""


@pytest.mark.browser
def test_every_page_opens_from_disk_without_request_or_error(public: Path, chromium: Browser) -> None:
    reader = Visitor(chromium)
    pages = sorted(path for path in public.rglob("*.html") if path.name != "404.html")
    assert len(pages) > 50
    for path in pages:
        seen = reader.see(path, LOOK)
        name = path.relative_to(public).as_posix()
        assert (seen["heading"], seen["hacked"], seen["skipped"], seen["figures"]) == (1, False, 0, 0), name
        assert seen["wide"] <= DESKTOP, f"{name} is {seen['wide']} wide"
        assert not reader.wrong, name
    assert not [url for url in reader.asked if not url.startswith("file:")]


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(PHONE, "light"), (DESKTOP, "dark")])
def test_every_kind_of_page_fits_a_phone_and_the_dark(public: Path, chromium: Browser, width: int, scheme: str) -> None:
    reader = Visitor(chromium, width, scheme)
    for name in KINDS:
        seen = reader.see(public / name, LOOK)
        assert seen["wide"] <= width, f"{name} is {seen['wide']} wide"
        assert seen["scheme"] == {"light": "default", "dark": "slate"}[scheme], name
        assert not reader.wrong, name


@pytest.mark.browser
def test_the_browser_tests_would_see_a_request_and_an_error(chromium: Browser, tmp_path: Path) -> None:
    reader, page = Visitor(chromium), tmp_path / "page.html"
    page.write_text('<!doctype html><img src="https://example.org/a.png"><script>missing()</script>', encoding="utf-8")
    reader.see(page)
    assert "https://example.org/a.png" in reader.asked
    assert [line for line in reader.wrong if line.startswith("failed: https://example.org/a.png")]
    assert [line for line in reader.wrong if line.startswith("error: missing is not defined")]


SERIOUS = ("serious", "critical")


def violations(page: Page) -> dict[str, list[str]]:
    """The rules of axe-core that a page breaks seriously, and the elements that break them."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return {each["id"]: [node["html"] for node in each["nodes"]] for each in found if each["impact"] in SERIOUS}


@pytest.mark.browser
def test_axe_finds_nothing_serious(public: Path, chromium: Browser) -> None:
    for scheme, width, names in (
        ("light", DESKTOP, KINDS),
        ("dark", DESKTOP, ("index.html", "generated/results.html", "generated/claims/spt-gain.html", KINDS[-1])),
        ("light", PHONE, ("index.html", "generated/results.html", "generated/performance.html")),
    ):
        reader = Visitor(chromium, width, scheme)
        for name in names:
            reader.see(public / name)
            assert not violations(reader.page), f"{name}, {scheme}, {width}"


@pytest.mark.browser
def test_axe_would_find_faint_text_and_a_nameless_button(chromium: Browser, tmp_path: Path) -> None:
    reader, page = Visitor(chromium), tmp_path / "page.html"
    bad = '<h1>x</h1><p style="color:#ccc">faint</p><button></button>'
    page.write_text(f'<!doctype html><html lang="en"><title>x</title><main>{bad}</main>', encoding="utf-8")
    reader.see(page)
    assert set(violations(reader.page)) == {"button-name", "color-contrast"}


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
SHOWN = """() => ({
  shown: [...document.querySelector("table[data-facets]").querySelectorAll("tbody tr")].filter((row) => !row.hidden)
    .map((row) => row.querySelector("a").getAttribute("href").match(/claims\\/([\\w-]+)/)[1]),
  count: document.querySelector("output").textContent,
  link: document.querySelector(".ns-tools__link").href.split("?")[1] ?? "",
})"""


@pytest.mark.browser
def test_an_address_filters_and_sorts_the_board(public: Path, chromium: Browser) -> None:
    reader = Visitor(chromium)
    for query, claims in QUERIES.items():
        seen = reader.see((public / "index.html").as_uri() + query, SHOWN)
        assert seen["shown"] == claims, query
        assert seen["count"] == f"{len(claims)} of {len(EVERY)}"
        if "no-such" not in query:
            assert sorted(parse_qsl(seen["link"])) == sorted(parse_qsl(query[1:]))


# Where the focus is: a name for the element, and whether it shows.
FOCUS = """() => {
  const at = document.activeElement;
  // The switch between light and dark is a hidden input, whose label shows the focus.
  const style = getComputedStyle(at.matches(".md-option") ? at.nextElementSibling : at);
  const shows = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0 || style.boxShadow !== "none";
  return [at.tagName, at.textContent.trim().slice(0, 40) || at.name || at.id, shows, Boolean(at.closest("article"))];
}"""
REACHABLE = """() => [...document.querySelectorAll("article :is(a[href], button, select, input, summary)")]
  .filter((each) => each.checkVisibility() && !each.closest("details:not([open]) > :not(summary)"))
  .filter((each) => each.tabIndex >= 0).length"""


@pytest.mark.browser
def test_the_board_works_by_keyboard_alone(public: Path, chromium: Browser) -> None:
    reader = Visitor(chromium)
    reachable = reader.see(public / "index.html", REACHABLE)
    page, reached, names = reader.page, 0, []
    for _ in range(400):
        page.keyboard.press("Tab")
        name, words, shows, inside = page.evaluate(FOCUS)
        if name == "BODY":
            break
        assert shows, f"the focus on {name} {words} cannot be seen"
        reached += inside
        names.append((name, words))
    assert names[0] == ("A", "Skip to content")
    assert reached == reachable > 25
    # The first filter, then the order of a column, then a claim: by keys alone.
    page.locator("select[name=verdict]").focus()
    page.keyboard.type("contradicted")
    assert page.evaluate(SHOWN)["shown"] == ["spt-s4d"]
    page.locator(".ns-tools__reset").first.focus()
    page.keyboard.press("Enter")
    page.locator("th .ns-sort", has_text="Claim").first.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert page.evaluate(SHOWN)["shown"] == sorted(EVERY, reverse=True)
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details[open]").count() == 1
    page.locator("table[data-facets] tbody a").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/claims/spt-s4d.html")


@pytest.mark.browser
def test_a_number_tells_its_last_digit_and_its_place(public: Path, chromium: Browser) -> None:
    reader = Visitor(chromium)
    reader.see(public / "generated" / "runs" / "mini-listops-s4d-scratch.html")
    number = reader.page.locator("data[data-cell]").nth(1)
    number.hover()
    value, place = (number.get_attribute("title") or "").split("\n")
    assert float(value) == float(number.get_attribute("value") or "")
    assert place == "results/mini/listops/s4d/scratch/0/finetune/test/accuracy/value"


@pytest.mark.browser
def test_printed_pages_show_what_is_folded(public: Path, chromium: Browser) -> None:
    reader = Visitor(chromium)
    reader.see(public / "index.html")
    folded = reader.page.locator("details:not([open]) table").first
    assert not folded.is_visible()
    reader.page.emulate_media(media="print")
    assert folded.is_visible()
    assert not reader.page.locator(".ns-tools").first.is_visible()


@pytest.fixture
def served(public: Path) -> Iterator[str]:
    """The site over HTTP, at an address of this machine."""
    handler = functools.partial(Quiet, directory=str(public))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.browser
def test_the_search_finds_pages_over_http(served: str, chromium: Browser) -> None:
    with chromium.new_context(viewport={"width": DESKTOP, "height": 900}) as context:
        page = context.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(served + "index.html")
        page.keyboard.press("/")
        page.keyboard.type("diagonal state-space")
        first = page.locator(".md-search-result__link").first
        first.wait_for()
        assert "generated/" in (first.get_attribute("href") or "")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        page.wait_for_url("**/generated/**")
        assert not [url for url in asked if not url.startswith((served, "data:", "blob:"))]
