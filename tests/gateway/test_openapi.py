"""The document at /docs: it describes every route, and what it says is so."""

from typing import Any

import jsonschema
import pytest
from fastapi.routing import APIRoute

from serve_app.ingress import routes
from serve_app.routes.openapi import EXAMPLES
from tests.gateway.conftest import Backend


@pytest.fixture
async def document(backend: Backend) -> dict[str, Any]:
    async with backend.client.get("/openapi.json") as response:
        assert response.status == 200
        value: dict[str, Any] = await response.json()
        return value


async def test_every_route_is_described(document: dict[str, Any]) -> None:
    """With a summary, an answer, and its errors."""
    for route in routes.routes:
        assert isinstance(route, APIRoute)
        if not route.include_in_schema:  # the console's page and its files
            continue
        for method in route.methods:
            operation = document["paths"][route.path][method.lower()]
            assert operation["summary"]
            assert {"405"} <= set(operation["responses"])
            assert "422" not in operation["responses"]
            if method == "POST":
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                assert schema["$ref"].startswith("#/components/schemas/")


async def test_every_example_is_of_its_schema(document: dict[str, Any]) -> None:
    """And there is one for each route with a body."""
    for path, examples in EXAMPLES.items():
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        for body in examples.values():
            jsonschema.validate(body, content["schema"] | {"components": document["components"]})
        assert content["examples"]


@pytest.mark.parametrize(
    ("path", "title"), [(path, title) for path, examples in EXAMPLES.items() for title in examples]
)
async def test_every_example_works(backend: Backend, path: str, title: str) -> None:
    """Sent as it stands, the answer is no error; but its picture is cut short."""
    body = EXAMPLES[path][title]
    if title == "A picture":
        pytest.skip("its bytes are left out")
    await backend.serving(body.get("model", "qwen-14b"))
    backend.switchboard.answer = {"state": "done", "ticket": {"state": "done"}}
    if path == "/v1/embeddings":
        engine = await backend.engine("qwen-vl")
        await backend.show(holder="qwen-vl:embed", endpoint=engine.path)
    async with backend.client.post(path, json=body) as response:
        assert response.status < 300, await response.text()


async def test_the_docs_page_is_there(backend: Backend) -> None:
    """For people."""
    async with backend.client.get("/docs") as response:
        assert response.status == 200
