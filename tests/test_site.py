"""docs/check_site.py finds what leads nowhere, and what is fetched from elsewhere."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
import check_site


def test_faults_of_a_site_are_found(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "page.html").write_text(
        '<h1 id="here"></h1><a href="../index.html#there">x</a><img src="../picture.png">'
    )
    index = (
        '<h1 id="there"></h1><a href="folder/page.html#here">x</a><a href="https://elsewhere.org">x'
        '</a><a href="#there">x</a><link rel="canonical" href="https://a.org">'
    )
    (tmp_path / "index.html").write_text(index)
    (tmp_path / "picture.png").touch()
    (tmp_path / "site.css").write_text("a { background: url(picture.png) }")
    assert check_site.broken(tmp_path) == []

    (tmp_path / "picture.png").unlink()
    (tmp_path / "site.css").write_text("a { background: url('https://fonts.org/x') }")
    (tmp_path / "index.html").write_text(
        index.replace("#here", "#gone").replace("canonical", "stylesheet")
        + '<script src="//cdn.org/x.js"></script><a href="gone.html">x</a><a href="#gone">x</a>'
    )
    assert sorted(check_site.broken(tmp_path)) == [
        "folder/page.html: no file for ../picture.png",
        "index.html: fetches //cdn.org/x.js",
        "index.html: fetches https://a.org",
        "index.html: no file for gone.html",
        "index.html: no place for #gone",
        "index.html: no place for folder/page.html#gone",
        "site.css: fetches https://fonts.org/x",
    ]
    assert check_site.broken(tmp_path / "none") == [f"{tmp_path / 'none'} has no pages"]
