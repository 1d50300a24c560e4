"""The web page: a fixed set of files, served as they lie in `console/`."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response

from serve_app.errors import NotFound

_FOLDER = Path(__file__).parent / "console"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    # Asked for again each time, answered with 304 while unchanged: an update is never half seen.
    "cache-control": "no-cache",
    # Nothing from elsewhere, no inline script, no text made into markup; pictures of a chat are
    # data addresses.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}

routes = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def _read_all() -> dict[str, _File]:
    files = {}
    for path in _FOLDER.iterdir():
        if path.suffix in _TYPES:
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            files[path.name] = _File(content, _TYPES[path.suffix], etag)
    return files


_FILES = _read_all()


@routes.get("/")
async def page(request: Request) -> Response:
    """The console."""
    return _answer(request, "index.html")


@routes.get("/console/{path:path}")
async def file(path: str, request: Request) -> Response:
    """One of its parts."""
    return _answer(request, path)


def _answer(request: Request, name: str) -> Response:
    found = _FILES.get(name)
    if found is None:
        raise NotFound("The console has no such file.")
    headers = _HEADERS | {"etag": found.etag}
    known = request.headers.get("if-none-match", "")
    if found.etag in [tag.strip().removeprefix("W/") for tag in known.split(",")]:
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)
