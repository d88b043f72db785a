"""The page's own files and plotly.js, read once into a closed table of names, so that no path leads elsewhere."""

import asyncio
import gzip
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import plotly
import zstandard
from starlette.requests import Request
from starlette.responses import Response

from llmos_stream.reporting.template import STYLE
from llmos_stream.runtime import Offload

_FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FOREVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"
_ZSTD_LEVEL = 15


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent: its bytes, and the same by each compression that a browser may accept."""

    kind: str
    body: bytes
    cache: str
    compressed: dict[str, bytes] = field(default_factory=dict)
    tag: str = ""

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


class Assets:
    """Files by name. The first request for plotly.js compresses it, once and off the event loop."""

    def __init__(self, offload: Offload) -> None:
        self._offload = offload
        self._one_at_a_time = asyncio.Lock()
        self._plotly: Asset | None = None
        self.plotly_name = f"plotly-{plotly.__version__}.min.js"
        files = {path.name: path.read_bytes() for path in sorted(_FOLDER.iterdir()) if path.suffix in _TYPES}
        files["report.css"] = STYLE.encode()  # one look for the report and the page
        files["index.html"] = files["index.html"].replace(b"PLOTLY_NAME", self.plotly_name.encode())
        self._files = {name: _asset(_TYPES[Path(name).suffix], body, _ASK_AGAIN) for name, body in files.items()}

    async def get(self, name: str) -> Asset | None:
        """Return the file of this name, if there is one."""
        return await self.plotly() if name == self.plotly_name else self._files.get(name)

    async def plotly(self) -> Asset:
        """Return plotly.js."""
        async with self._one_at_a_time:
            if self._plotly is None:
                self._plotly = await self._offload.run(_read_plotly)
            return self._plotly


def _read_plotly() -> Asset:
    from plotly.offline import get_plotlyjs  # noqa: PLC0415 (an extra, and large)

    return _asset(_TYPES[".js"], str(get_plotlyjs()).encode(), _FOREVER)


def _asset(kind: str, body: bytes, cache: str) -> Asset:
    squeezed = {
        "zstd": zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(body),
        "gzip": gzip.compress(body, mtime=0),
    }
    return Asset(kind, body, cache, squeezed, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
