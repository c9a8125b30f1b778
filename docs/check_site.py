"""Looks over the built site, as `make docs-check` does.

    python docs/check_site.py site [--pictures build/site]

Every link and picture leads to a file of the site, every #anchor to a place on its page, and
nothing is fetched from elsewhere. Where a Chromium is found, no page is wider than a telephone's
390 pixels, and pictures of some pages go to a folder, to be looked at.
"""

import argparse
import functools
import html.parser
import http.server
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

BROWSERS = "chromium", "chromium-browser", "google-chrome", "chrome"
WIDTHS = {"desk": (1280, 1700), "telephone": (390, 1700)}
PICTURED = (
    "index", "tutorial", "gallery", "how-to/install", "reference/operator", "reference/layers",
    "benchmark",
)  # fmt: skip
FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
SECONDS = 120  # for the browser, at most


class Page(html.parser.HTMLParser):
    """The links, the places and what is fetched, of one page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.fetched, self.places = [], [], {"", "__top"}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.places |= {named[name] for name in ("id", "name") if named.get(name)}
        target = named.get(FETCHED.get(tag, ""))
        if target and (tag != "link" or "canonical" not in named.get("rel", "")):
            self.fetched.append(target)
        if tag == "a" and named.get("href"):
            self.links.append(named["href"])


def broken(site):
    """Return what leads nowhere or elsewhere, a line each."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    lines = [] if pages else [f"{site} has no pages"]
    for path, page in pages.items():
        if path.name == "404.html":  # it links from the root of a server
            continue
        where = path.relative_to(site)
        for target in page.fetched:
            if urlsplit(target).netloc:
                lines.append(f"{where}: fetches {target}")
        for target in page.links + page.fetched:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file():
                lines.append(f"{where}: no file for {target}")
            elif file in pages and unquote(parts.fragment) not in pages[file].places:
                lines.append(f"{where}: no place for {target}")
    for sheet in sorted(site.rglob("*.css")):
        for target in re.findall(
            r"url\(['\"]?(https?:[^)'\"]+)", sheet.read_text(encoding="utf-8")
        ):
            lines.append(f"{sheet.relative_to(site)}: fetches {target}")
    return lines


def too_wide(site, browser):
    """Return the pages that scroll sideways on a telephone, with their widths."""
    pages = [str(path.relative_to(site)) for path in sorted(site.rglob("*.html"))]
    width = WIDTHS["telephone"][0]
    script = f"""<body><pre id=found></pre><script>
    const found = {{}}, pages = {json.dumps(pages)};
    async function look() {{
      for (const page of pages) {{
        const frame = document.createElement("iframe");
        frame.style = "width:{width}px;height:844px;border:0";
        frame.src = "/" + page;
        document.body.append(frame);
        await new Promise(done => frame.onload = done);
        await new Promise(done => setTimeout(done, 200));
        found[page] = frame.contentDocument.documentElement.scrollWidth;
        frame.remove();
      }}
      document.getElementById("found").textContent = "=" + JSON.stringify(found) + "=";
    }}
    look();
    </script>"""
    with serving(site, script) as address:
        dumped = run(browser, "--virtual-time-budget=600000", "--dump-dom", address)
    widths = json.loads(re.search(r"=({.*})=", dumped)[1])
    assert set(widths) == set(pages)
    return [f"{page}: {found} pixels wide" for page, found in widths.items() if found > width]


def take_pictures(site, browser, folder):
    """Write pictures of some pages, as wide as a desk's screen and as a telephone's."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PICTURED:
        for device, (width, height) in WIDTHS.items():
            frame = f'<body style="margin:0"><iframe src="/{name}.html" style="border:0;'
            frame += f'width:{width}px;height:{height}px"></iframe>'
            path = folder / f"{name.replace('/', '-')}-{device}.png"
            with serving(site, frame) as address:
                size = f"--window-size={max(width, 500)},{height + 100}"  # no window is narrower
                run(browser, size, "--virtual-time-budget=5000", f"--screenshot={path}", address)


class serving:
    """Serve the site on this machine alone, and a page in front of it, whose address it gives."""

    def __init__(self, site, front):
        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self):
                if self.path != "/front":
                    return super().do_GET()
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                return self.wfile.write(front.encode())

            def log_message(self, *_):
                pass

        handler = functools.partial(Handler, directory=str(site))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/front"

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def run(browser, *options):
    """Run the browser without a window and return what it prints."""
    with tempfile.TemporaryDirectory() as profile:
        command = (
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={profile}", "--no-first-run", *options,
        )  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)
    return done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("site", type=Path)
    parser.add_argument("--pictures", type=Path, help="where pictures of pages go")
    options = parser.parse_args()
    site = options.site.resolve()
    faults = broken(site)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"No browser ({', '.join(BROWSERS)}): widths not measured, no pictures taken")
    else:
        faults += too_wide(site, browser)
        if options.pictures:
            take_pictures(site, browser, options.pictures)
            print(f"Pictures of {len(PICTURED)} pages are in {options.pictures}")
    print("\n".join(faults) or f"{len(list(site.rglob('*.html')))} pages: nothing amiss")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
