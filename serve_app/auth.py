"""Who may do what; the one place that knows."""

from starlette.requests import Request


def check_admin(request: Request) -> None:
    """Whether this client may use the admin's rights: the admin routes, and `X-Switch: force`.

    There are no keys yet, so everybody may; that is why the server listens on 127.0.0.1 only.
    """
