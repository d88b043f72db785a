"""The page's own files and plotly.js, read once into a closed table of names, so that no path leads elsewhere."""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import zstandard
from starlette.requests import Request
from starlette.responses import Response

from llmos_stream.reporting.template import STYLE

_FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FOREVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"
_ZSTD_LEVEL = 9  # of plotly.js in 0.3 s; level 15 takes 6 s and saves 2 % of the bytes


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent: its bytes, and the same by each compression that a browser may accept."""

    kind: str
    body: bytes
    cache: str
    compressed: Mapping[str, bytes]
    tag: str

    @classmethod
    def of(cls, name: str, body: bytes, cache: str) -> "Asset":
        squeezed = {
            "zstd": zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(body),
            "gzip": gzip.compress(body, mtime=0),
        }
        return cls(_TYPES[Path(name).suffix], body, cache, squeezed, f'"{hashlib.sha256(body).hexdigest()[:32]}"')

    def answer(self, request: Request) -> Response:
        """Return the file in a form that the browser accepts, or 304."""
        headers = {"cache-control": self.cache, "vary": "Accept-Encoding", "etag": self.tag}
        if self.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        accepted = {part.partition(";")[0].strip() for part in request.headers.get("accept-encoding", "").split(",")}
        for encoding, body in self.compressed.items():
            if encoding in accepted:
                return Response(body, media_type=self.kind, headers=headers | {"content-encoding": encoding})
        return Response(self.body, media_type=self.kind, headers=headers)


@cache
def load_assets() -> Mapping[str, Asset]:
    """Return the files by name. The first call takes about a second, most of it for plotly.js."""
    import plotly.offline  # noqa: PLC0415 (an extra, and large)

    plotly_name = f"plotly-{plotly.__version__}.min.js"
    files = {path.name: path.read_bytes() for path in sorted(_FOLDER.iterdir()) if path.suffix in _TYPES}
    files["report.css"] = STYLE.encode()  # one look for the report and the page
    files["index.html"] = files["index.html"].replace(b"PLOTLY_NAME", plotly_name.encode())
    assets = {name: Asset.of(name, body, _ASK_AGAIN) for name, body in files.items()}
    assets[plotly_name] = Asset.of(plotly_name, plotly.offline.get_plotlyjs().encode(), _FOREVER)
    return assets
