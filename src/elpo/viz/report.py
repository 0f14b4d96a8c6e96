"""The report page of a run: one HTML file that needs no network, neither to open nor to draw.

Scripts, style, libraries (with their licences) and data are inside. The data is compressed, a block for each
tree, and unpacked when it is looked at; that keeps hundreds of trees quick to open, and leaves nothing of a
model's text in the page's own markup. What is unpacked is only ever shown as text. A content security policy
allows exactly the scripts of this page, so that no text can become one.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from elpo.training.run_folder import RunFolder
from elpo.viz.run_data import RunData

LIBRARIES = ("d3.min.js", "plot.min.js")
SCRIPTS = tuple(
    f"{name}.js" for name in ("data", "marks", "curves", "statistics", "gallery", "tree", "details", "app")
)
"""In the order they are run; each only needs those before it, and `app.js` starts the page."""


def write_report(runs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write the report of a run, or of several side by side, and return its file.

    Runs that differ in nothing but `run.*` (the seed) are one curve with the spread between them.

    Args:
        runs: run folders.
        out: file to write; by default `report.html` in the first run's folder.

    Raises:
        RunFolderError: a folder holds no run, or the file cannot be written.
    """
    data = RunData(runs)
    file = Path(out) if out is not None else data.folders[0].report_file
    title = ", ".join(folder.path.absolute().name for folder in data.folders)
    return RunFolder(file.parent).write_text(file, page(title, _blocks(data)))


def page(title: str, blocks: Iterator[str] | None = None) -> str:
    """The page as HTML. With `blocks` it carries its data; without, it asks the server it came from."""
    assets = files("elpo.viz") / "page"
    libraries = [(assets / "vendor" / name).read_text(encoding="utf-8") for name in LIBRARIES]
    scripts = [*libraries, "\n".join((assets / name).read_text(encoding="utf-8") for name in SCRIPTS)]
    digests = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    policy = f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; img-src data: blob:"
    parts = {
        "POLICY": policy if blocks is not None else f"{policy}; connect-src 'self'",
        "TITLE": html.escape(title),
        "STYLE": (assets / "report.css").read_text(encoding="utf-8"),
        "LICENSES": html.escape((assets / "vendor" / "LICENSES.txt").read_text(encoding="utf-8")),
        "DATA": "\n".join(blocks or ()),
        "SCRIPTS": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    pieces = (assets / "report.html").read_text(encoding="utf-8").split("@@")
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def _blocks(data: RunData) -> Iterator[str]:
    for name, document in data.documents():
        yield f'<script type="text/plain" data-name="{html.escape(name)}">{packed(document)}</script>'


def packed(document: Any) -> str:
    """A document as the page unpacks it: JSON, gzip, base64."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), 6, mtime=0)).decode()
