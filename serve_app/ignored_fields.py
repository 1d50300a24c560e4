"""The ASGI layer that tells a client which fields of its request were left out."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.observation import observation


class IgnoredFields:
    """Adds `X-Ignored-Fields` to every answer, errors and streams too, that has some to name."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        observed = observation()

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start" and observed.ignored_fields:
                name = (b"x-ignored-fields", observed.ignored_fields.encode())
                message["headers"] = [*message["headers"], name]
            await send(message)

        await self._app(scope, receive, send_named)
