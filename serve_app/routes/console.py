"""Serves the web pages in `console/` and `docs/`."""

import mimetypes
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

_HERE = Path(__file__).parents[1]
mimetypes.add_type("text/javascript", ".js")  # this machine's table may have another type
# Nothing from other sites, no inline scripts; the pictures of a chat are data URLs.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# For the console, which never turns text into HTML; Swagger UI does, after cleaning it.
_STRICTER = f"{_POLICY}; require-trusted-types-for 'script'; trusted-types 'none'"
_HEADERS = {
    # The browser asks each time and gets 304 for unchanged files, so it never mixes two versions.
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}

routes = APIRouter(include_in_schema=False)


class _Files(StaticFiles):
    """Serves the files of a folder, with our security headers."""

    def __init__(self, folder: str, policy: str) -> None:
        super().__init__(directory=_HERE / folder)
        self._headers = _HEADERS | {"content-security-policy": policy}

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(self._headers)
        return response


def _add(folder: str, page: str, policy: str) -> None:
    """Serve the files of a folder under its name, and its index at `page`.

    As routes, not as a mount: the access log and the metrics need the name of a route.
    """
    files = _Files(folder, policy)

    async def index(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    async def part(path: str, request: Request) -> Response:
        return await files.get_response(path, request.scope)

    routes.add_api_route(page, index)
    routes.add_api_route(f"/{folder}/{{path:path}}", part)


_add("console", "/", _STRICTER)
_add("docs", "/docs", _POLICY)  # Swagger UI
