"""Where the server may listen: without an API key, only where no other machine can reach it."""

import ipaddress

from deployments.settings.base import SettingsError
from deployments.settings.loading import Settings


def is_address(name: str) -> bool:
    """Whether it is an IP address, not a name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def check_bound(host: str, settings: Settings) -> None:
    """Check that a server on `host` is on loopback or has an API key.

    Raises:
        SettingsError: neither.
    """
    if not settings.api_keys and not is_loopback(host):
        raise SettingsError(
            f"http_options.host is {host}, which others can reach, and no key protects it: set "
            "LLM_BACKEND_API_KEY (and LLM_BACKEND_ADMIN_KEY), or bind 127.0.0.1"
        )
