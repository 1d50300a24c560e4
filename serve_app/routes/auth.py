"""Decides who may do what.

| | no key set | keys set |
|---|---|---|
| health, the console's page, the API's description | all clients | all clients |
| models and what they answer, metrics | all clients | an API key, or an admin key |
| `/admin/*`, `X-Switch: force` | all clients | an admin key; an API key where no admin key is set |

Without keys the server listens on loopback only, and believes no Host but this machine's, so that
a web page cannot reach it under a name of its own (DNS rebinding). An admin's request is refused
to a foreign Host or Origin whatever key it brings.
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
_KEY_LIMIT = 512  # bytes; longer ones are not even hashed


@dataclass(frozen=True)
class Guard:
    """The keys, as digests: comparing digests takes the same time whatever key was brought."""

    users: tuple[bytes, ...]
    admins: tuple[bytes, ...]
    hosts: frozenset[str]
    origins: frozenset[str]  # of other sites whose pages may be an admin's all the same

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
            raise Forbidden("This address needs an admin key.")

    def _check_key(self, request: Request) -> None:
        key = key_of(request)
        if key is None:
            raise InvalidKey("Missing API key: send `Authorization: Bearer <key>`.")
        if not _is_one_of(_digest(_bytes(key)), (*self.users, *self.admins)):
            raise InvalidKey("Invalid API key.")

    def _check_host(self, request: Request) -> None:
        """An address is fine: only a name can be made to mean another machine."""
        name = _host_name(request.headers.get("host", ""))
        if name is None or not (is_address(name) or name in self.hosts):
            raise Forbidden(
                "Unknown Host name: `http.allowed_hosts` in configs/backend.yaml can allow it."
            )

    def _check_origin(self, request: Request) -> None:
        """A browser says where a request comes from: another site's page has no business here."""
        origin = request.headers.get("origin")
        if origin in self.origins:
            return
        is_own = origin is None or origin.partition("://")[2] == request.headers.get("host")
        if not is_own or request.headers.get("sec-fetch-site", "none") not in _OWN_SITE:
            raise Forbidden("Admin requests from another site's page are refused.")


async def check_user(request: Request) -> None:
    """Whether this client may use the models. Raises InvalidKey, Forbidden."""
    guard: Guard = request.app.state.guard
    guard.check_user(request)


async def check_admin(request: Request) -> None:
    """Whether this client has the admin's rights. Raises InvalidKey, Forbidden."""
    guard: Guard = request.app.state.guard
    guard.check_admin(request)


def key_of(request: Request) -> str | None:
    """The key a client brings, OpenAI's way or Anthropic's; never one from the address. A header's
    bytes are read as Starlette reads them, as Latin-1."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return request.headers.get("x-api-key") or None


def namespace_of(request: Request) -> str:
    """Name the caller without showing the key; callers with the same key share the name."""
    key = key_of(request)
    return hashlib.sha256(_bytes(key)).hexdigest()[:16] if key else ""


def _digests(keys: Iterable[SecretStr]) -> tuple[bytes, ...]:
    """Of keys as they are set, text: clients send it as UTF-8."""
    return tuple(_digest(key.get_secret_value().encode(errors="surrogateescape")) for key in keys)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key[:_KEY_LIMIT]).digest()


def _bytes(key: str) -> bytes:
    """As a client sent it in a header."""
    return key.encode("latin-1")


def _is_one_of(digest: bytes, valid: tuple[bytes, ...]) -> bool:
    return sum(hmac.compare_digest(digest, one) for one in valid) > 0  # all, whichever it is


def _host_name(header: str) -> str | None:
    """The name in a Host header, without its port; None where it is none."""
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
