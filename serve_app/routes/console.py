"""Serves the files of the web pages in `console/` and `docs/`."""

import mimetypes
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

_HERE = Path(__file__).parents[1]
mimetypes.add_type("text/javascript", ".js")  # whatever the machine's own table says
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


class _Files(StaticFiles):
    """The files of a folder, with the headers of our pages."""

    def __init__(self, folder: str, policy: str) -> None:
        super().__init__(directory=_HERE / folder)
        self._headers = _HEADERS | {"content-security-policy": policy}

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(self._headers)
        return response


def _add(folder: str, page: str, policy: str) -> None:
    """Serve the files of a folder under its name, and its index at `page`.

    As routes and not as a mount, which the access log and the metrics could not name.
    """
    files = _Files(folder, policy)

    async def index(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    async def part(path: str, request: Request) -> Response:
        return await files.get_response(path, request.scope)

    routes.add_api_route(page, index)
    routes.add_api_route(f"/{folder}/{{path:path}}", part)


_add("console", "/", _STRICTER)
_add("docs", "/docs", _POLICY)  # the API's description, to read and to try
