"""Parses server-sent events."""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """One block of a stream, up to its empty line. A block with a comment or an id only has an
    empty `data`."""

    event: str = "message"
    data: str = ""
    id: str | None = None
    retry_s: float | None = None


async def blocks(lines: AsyncIterator[str]) -> AsyncGenerator[Block, None]:
    """Yield the blocks of a stream. The standard says that an incomplete last block is dropped."""
    fields: dict[str, str] = {}
    data: list[str] = []
    async for line in lines:
        if not line:
            yield _block(fields, data)
            fields, data = {}, []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name:  # the name of a comment is empty
            fields[name] = value


def _block(fields: dict[str, str], data: list[str]) -> Block:
    retry = fields.get("retry", "")
    return Block(
        event=fields.get("event") or "message",
        data="\n".join(data),
        id=fields.get("id"),
        retry_s=int(retry) / 1000 if retry.isdecimal() else None,
    )
