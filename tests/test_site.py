"""The built site as a reader's browser shows it: ``make docs-test`` builds it and runs this."""

import contextlib
import functools
import http.server
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SITE = ROOT / "docs" / "_build" / "html"
BROWSERS = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
BROWSER = next((path for path in BROWSERS if Path(path).is_file()), None)
PAGES = sorted(
    str(path.relative_to(SITE))
    for path in SITE.rglob("*.html")
    if "_static" not in path.parts and path.name not in ("search.html", "genindex.html")
)
WIDTHS = (1280, 390)

pytestmark = [
    pytest.mark.site,
    pytest.mark.skipif(not PAGES, reason="the site is not built: make docs-test"),
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed"),
]

# What cannot be seen as it was meant: formulas as their source or as MathJax's error boxes,
# figures without a picture, a page wider than the window.
FLAWS = """() => {
    const flaws = [];
    const root = document.documentElement;
    if (root.scrollWidth > root.clientWidth)
        flaws.push(`scrolls sideways: ${root.scrollWidth} > ${root.clientWidth}`);
    for (const image of document.images)
        if (!(image.complete && image.naturalWidth > 0)) flaws.push(`no picture: ${image.src}`);
    const error = document.querySelector("mjx-merror, [data-mml-node=merror]");
    if (error) flaws.push(`a formula with an error: ${error.textContent}`);
    const formulas = document.querySelectorAll(".math").length;
    const rendered = document.querySelectorAll("mjx-container").length;
    if (formulas > rendered) flaws.push(`${rendered} of ${formulas} formulas rendered`);
    const scrolls = node => ["auto", "scroll"].includes(getComputedStyle(node).overflowX);
    for (const wide of document.querySelectorAll("article table, article pre, article .math")) {
        let box = wide;
        while (box !== root && !scrolls(box)) box = box.parentElement;
        const right = wide.getBoundingClientRect().right;
        if (box === root && right > root.clientWidth + 1)
            flaws.push(`cut off: ${wide.textContent.slice(0, 40)}`);
    }
    const address = document.body.innerText.match(/ at 0x[0-9a-f]{6,}/);
    if (address) flaws.push(`an address of memory: ${address}`);
    return flaws;
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A file server that logs nothing."""

    log_message = lambda self, *args: None


@contextlib.contextmanager
def served(folder):
    """Serve a folder on a free port of this machine."""
    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def address():
    with served(SITE) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def flaws_of(browser, url, width):
    """Open a page and return what is wrong with it."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    flaws = []
    page.on("console", lambda m: m.type == "error" and flaws.append(f"console: {m.text}"))
    page.on("pageerror", lambda error: flaws.append(f"script: {error}"))
    page.on("requestfailed", lambda request: flaws.append(f"request failed: {request.url}"))
    page.on("response", lambda r: r.status >= 400 and flaws.append(f"{r.status}: {r.url}"))
    local = url.split("/", 3)[2]
    near = (f"http://{local}/", "data:")
    page.on(
        "request", lambda r: r.url.startswith(near) or flaws.append(f"from the network: {r.url}")
    )
    try:
        page.goto(url, wait_until="networkidle")
        # pictures below the window are fetched when they come into view
        page.evaluate("document.querySelectorAll('img').forEach(i => { i.loading = 'eager'; })")
        page.wait_for_load_state("networkidle")
        if page.locator(".math").count():
            page.wait_for_function(
                "window.MathJax?.startup?.promise?.then(() => true) ?? false", timeout=20_000
            )
        return flaws + page.evaluate(FLAWS)
    finally:
        page.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_shown_as_it_was_meant(browser, address, name, width):
    assert flaws_of(browser, f"{address}/{name}", width) == []


def test_the_search_box_finds_a_solver(browser, address):
    page = browser.new_page()
    page.goto(f"{address}/index.html")
    box = page.locator("input[name=q]").first
    box.fill("Anderson")
    box.press("Enter")
    page.wait_for_selector("#search-results li a")
    found = page.locator("#search-results li a").all_inner_texts()
    page.close()
    assert any("Anderson" in text for text in found), found


@pytest.mark.parametrize("words", ["brentq", "Lightning", "warm start", "Sinkhorn", "bfloat16"])
def test_the_search_finds_a_recipe_before_lists_of_changes(browser, address, words):
    page = browser.new_page()
    page.goto(f"{address}/search.html?q={words}")
    page.wait_for_selector("#search-results li a")
    page.wait_for_timeout(500)
    links = [a.get_attribute("href") for a in page.locator("#search-results li a").all()]
    page.close()
    places = [i for i, link in enumerate(links) if "recipes" in link or "how_do_i" in link]
    lists = [i for i, link in enumerate(links) if "changelog" in link or "errors" in link]
    assert places and min(places) < 5 and min(lists, default=99) > min(places), links[:9]


READY = "MathJax = {startup: {promise: Promise.resolve()}}"


@pytest.mark.parametrize(
    ("body", "flaw"),
    [
        ("<p style='width: 3000px'>wide</p>", "scrolls sideways"),
        ("<img src='nowhere.png'>", "no picture"),
        ("<script>console.error('alas')</script>", "console: alas"),
        ("<script>undefined_name</script>", "script"),
        ("<article><pre style='width: 2000px'>cut</pre></article>", "cut off"),
        ("<p>&lt;function at 0x7f63e6d5c360&gt;</p>", "an address"),
        (f"<span class='math'>x</span><script>{READY}</script>", "0 of 1 formulas"),
        ("<script src='http://192.0.2.1/x.js' async></script>", "from the network"),
    ],
)
def test_flaws_are_seen(browser, tmp_path, body, flaw):
    (tmp_path / "index.html").write_text(f"<!doctype html><title>x</title>{body}")
    with served(tmp_path) as url:
        found = flaws_of(browser, f"{url}/index.html", 1280)
    assert any(flaw in text for text in found), found
