"""The web pages: fixed sets of files, served as they lie in `console/` and `docs/`."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response

from serve_app.errors import NotFound

_HERE = Path(__file__).parent
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing from elsewhere and no inline script; pictures of a chat are data addresses.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# The console makes no text into markup; Swagger UI does, after it has cleaned it.
_STRICTER = f"{_POLICY}; require-trusted-types-for 'script'; trusted-types 'none'"
_HEADERS = {
    # Asked for again each time, answered with 304 while unchanged: an update is never half seen.
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}

routes = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def read_files(folder: str) -> dict[str, _File]:
    """The files of a folder that are served, by name."""
    files = {}
    for path in (_HERE / folder).iterdir():
        if path.suffix in _TYPES:
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            files[path.name] = _File(content, _TYPES[path.suffix], etag)
    return files


def _add(folder: str, page: str, policy: str) -> None:
    """Serve the files of a folder under its name, and its index at `page`."""
    files = read_files(folder)

    async def index(request: Request) -> Response:
        return _answer(request, files.get("index.html"), policy)

    async def part(path: str, request: Request) -> Response:
        return _answer(request, files.get(path), policy)

    routes.add_api_route(page, index)
    routes.add_api_route(f"/{folder}/{{path:path}}", part)


_add("console", "/", _STRICTER)
_add("docs", "/docs", _POLICY)  # the API's description, to read and to try


def _answer(request: Request, found: _File | None, policy: str) -> Response:
    if found is None:
        raise NotFound("There is no such file.")
    headers = _HEADERS | {"etag": found.etag, "content-security-policy": policy}
    known = request.headers.get("if-none-match", "")
    if found.etag in [tag.strip().removeprefix("W/") for tag in known.split(",")]:
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)
