"""`chat`: talk to a model in the terminal."""

import base64
import mimetypes
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from serve_app.cli.connection import Connection, connected, fail

_MAX_IMAGE_BYTES = 15_000_000  # 20 MB in base64, below the backend's limit of 20 MiB a request

Message = dict[str, Any]


def register(app: typer.Typer) -> None:
    app.command()(connected(chat))


def chat(
    here: Connection,
    model: Annotated[
        str | None, typer.Argument(help="The model's name. Default: the resident model.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="Print the answer to this and exit. Default: standard input, or a conversation "
            "in a terminal."
        ),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, help="A picture to send with the prompt."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="The sampling temperature.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="The largest number of tokens of an answer.")
    ] = None,
) -> None:
    """Talk to a model.

    Ctrl-C stops an answer, Ctrl-D ends the conversation; `/image PATH` sends a picture with the
    next prompt.
    """
    if model and prompt is None and " " in model:
        model, prompt = None, model
    name = model or here.run(_resident_model(here))
    conversation = _Conversation(
        here, name, system, {"temperature": temperature, "max_tokens": max_tokens}
    )
    images = [_data_url(path) for path in image or []]
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    if prompt is not None:
        conversation.answer(prompt, images)
    else:
        _converse(conversation, images)


class _Conversation:
    """The messages so far; an answer that was stopped or broke off is not among them."""

    def __init__(
        self, here: Connection, model: str, system: str | None, options: dict[str, Any]
    ) -> None:
        self.model = model
        self._here, self._options = here, options
        self._messages: list[Message] = [_message("system", system)] if system else []

    def answer(self, text: str, images: list[str]) -> None:
        """Print the answer while it arrives. Raises LLMError, KeyboardInterrupt."""
        messages = [*self._messages, _message("user", text, images)]
        answer = self._here.run(self._print(messages))
        self._messages = [*messages, _message("assistant", answer)]

    async def _print(self, messages: list[Message]) -> str:
        answer = ""
        try:
            async for chunk in self._here.client.stream(
                model=self.model, messages=messages, **self._options
            ):
                for choice in chunk["choices"]:
                    piece = choice["delta"].get("content") or ""
                    answer += piece
                    typer.echo(_printable(piece), nl=False)
        finally:
            typer.echo()
        return answer


def _converse(conversation: _Conversation, images: list[str]) -> None:
    from serve_app.client import LLMError

    typer.echo(f"{conversation.model}; Ctrl-D ends the conversation")
    while True:
        try:
            text = input(">>> ").strip()
        except EOFError:
            typer.echo()
            return
        if text.startswith("/image "):
            path = Path(text.removeprefix("/image ").strip()).expanduser()
            if path.is_file():
                images.append(_data_url(path))
            else:
                typer.echo(f"There is no file {path}.", err=True)
        elif text:
            try:
                conversation.answer(text, images)
                images = []
            except LLMError as exc:
                typer.echo(str(exc), err=True)
            except KeyboardInterrupt:
                typer.echo("(stopped)", err=True)


async def _resident_model(here: Connection) -> str:
    health = await here.client.health_check()
    if not health["resident"]:
        names = [str(model["id"]) for model in await here.client.models()]
        fail(f"No model is resident; name one of {', '.join(names)}.")
    return str(health["resident"])


def _message(role: str, text: str, images: list[str] | None = None) -> Message:
    if not images:
        return {"role": role, "content": text}
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in images]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def _data_url(path: Path) -> str:
    kind, _ = mimetypes.guess_type(path.name)
    if not kind or not kind.startswith("image/"):
        fail(f"{path} is not a picture.")
    if path.stat().st_size > _MAX_IMAGE_BYTES:
        fail(f"{path} is larger than the limit of {_MAX_IMAGE_BYTES // 10**6} MB.")
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _printable(text: str) -> str:
    """Return the text without characters that control the terminal."""
    return "".join(c for c in text if c in "\n\t" or c.isprintable())
