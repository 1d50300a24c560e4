"""Decides which clients may use which routes.

| route | no key is set | keys are set |
|---|---|---|
| health, the console's page, the API description | all clients | all clients |
| models and their answers, metrics | all clients | an API key, or an admin key |
| `/admin/*`, `X-Switch: force` | all clients | an admin key; an API key if no admin key is set |

Without keys, the server listens on loopback only, and accepts only this machine's names as Host, so
that a web page cannot reach it under a domain of its own (DNS rebinding). Admin requests with a
foreign Host or Origin are refused whatever their key.
"""

import hashlib
import hmac
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from pydantic import SecretStr
from starlette.requests import Request

from deployments.settings import Settings, is_address
from serve_app.protocol.errors import Forbidden, InvalidKey

_OWN_SITE = ("same-origin", "none")
_KEY_LIMIT = 512  # bytes of a key that are hashed; the rest is ignored


@dataclass(frozen=True)
class Guard:
    """The digests of all keys: comparing digests takes the same time for every key."""

    users: tuple[bytes, ...]
    admins: tuple[bytes, ...]
    hosts: frozenset[str]
    origins: frozenset[str]  # other sites whose pages may send admin requests

    @classmethod
    def of(cls, settings: Settings) -> "Guard":
        users, admins = _digests(settings.api_keys), _digests(settings.admin_keys)
        hosts = frozenset(host.lower() for host in settings.http.allowed_hosts) | _own_names()
        origins = frozenset(settings.http.admin_origins)
        return cls(users=users, admins=admins or users, hosts=hosts, origins=origins)

    def check_user(self, request: Request) -> None:
        """Raises InvalidKey, Forbidden."""
        if self.users:
            self._check_key(request)
        else:
            self._check_host(request)

    def check_admin(self, request: Request) -> None:
        """Raises InvalidKey, Forbidden."""
        self._check_host(request)
        self._check_origin(request)
        if not self.admins:
            return
        self._check_key(request)
        if not _is_one_of(_digest(_bytes(key_of(request) or "")), self.admins):
            raise Forbidden("This request needs an admin key.")

    def _check_key(self, request: Request) -> None:
        key = key_of(request)
        if key is None:
            raise InvalidKey("Missing API key: send `Authorization: Bearer <key>`.")
        if not _is_one_of(_digest(_bytes(key)), (*self.users, *self.admins)):
            raise InvalidKey("Invalid API key.")

    def _check_host(self, request: Request) -> None:
        """Refuse unknown names. IP addresses are safe: only names can be pointed at a machine."""
        name = _host_name(request.headers.get("host", ""))
        if name is None or not (is_address(name) or name in self.hosts):
            raise Forbidden(
                "Unknown name in the Host header; add it to `http.allowed_hosts` in "
                "configs/backend.yaml to allow it."
            )

    def _check_origin(self, request: Request) -> None:
        """Refuse requests from another site's page, which the browser names in these headers."""
        origin = request.headers.get("origin")
        if origin in self.origins:
            return
        is_own = origin is None or origin.partition("://")[2] == request.headers.get("host")
        if not is_own or request.headers.get("sec-fetch-site", "none") not in _OWN_SITE:
            raise Forbidden(
                "Admin requests from another site's page are refused; `http.admin_origins` in "
                "configs/backend.yaml can allow the site."
            )


async def check_user(request: Request) -> None:
    """Check that this client may use the models. Raises InvalidKey, Forbidden."""
    guard: Guard = request.app.state.guard
    guard.check_user(request)


async def check_admin(request: Request) -> None:
    """Check that this client may send admin requests. Raises InvalidKey, Forbidden."""
    guard: Guard = request.app.state.guard
    guard.check_admin(request)


def key_of(request: Request) -> str | None:
    """Return the key in OpenAI's or Anthropic's header; a key in the URL is ignored.

    Starlette decodes headers as Latin-1.
    """
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return request.headers.get("x-api-key") or None


def namespace_of(request: Request) -> str:
    """Return a name for the caller that does not reveal the key; the same key has the same name."""
    key = key_of(request)
    return hashlib.sha256(_bytes(key)).hexdigest()[:16] if key else ""


def _digests(keys: Iterable[SecretStr]) -> tuple[bytes, ...]:
    """Return the digests of the keys in the settings, encoded as UTF-8, as clients send them."""
    return tuple(_digest(key.get_secret_value().encode(errors="surrogateescape")) for key in keys)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key[:_KEY_LIMIT]).digest()


def _bytes(key: str) -> bytes:
    """Return the key's bytes as the client sent them in the header."""
    return key.encode("latin-1")


def _is_one_of(digest: bytes, valid: tuple[bytes, ...]) -> bool:
    return (
        sum(hmac.compare_digest(digest, one) for one in valid) > 0
    )  # compares all, so that the time does not depend on the key


def _host_name(header: str) -> str | None:
    """Return the name in a Host header, without its port; None if it is not valid."""
    name, _, port = header.rpartition(":") if _has_port(header) else (header, "", "")
    if port and not port.isdecimal():
        return None
    name = name.removeprefix("[").removesuffix("]").rstrip(".").lower()
    is_name = all(c.isalnum() or c in "-._:" for c in name) and name.isascii()
    return name if name and is_name else None


def _has_port(header: str) -> bool:
    return ":" in header.rpartition("]")[2]


@cache
def _own_names() -> frozenset[str]:
    name = socket.gethostname().lower()
    return frozenset({"localhost", name, f"{name}.local"})
