"""What the README says of the project is so."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from deployments.settings import PROJECT

ALLOWED = {"serve_app", "deployments", "configs", "tests"}
PAGES = sorted(
    page
    for folder in ("", *sorted(ALLOWED))
    for page in (PROJECT / folder).glob("**/*.md" if folder else "*.md")
    if "artifacts" not in page.parts
)
INITS = sorted(
    init
    for top in ("serve_app", "deployments")
    for init in [PROJECT / top / "__init__.py", *(PROJECT / top).glob("*/__init__.py")]
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_link_and_file_that_a_page_names_exists(page: Path) -> None:
    """Links are relative to the page, paths in code to the project."""
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    named = re.findall(r"`((?:serve_app|deployments|configs|tests)/[\w/.-]+)`", text)
    made = ("tests/artifacts/",)  # by a run
    missing = [path for path in named if not (PROJECT / path).exists()]
    assert [path for path in missing if not path.startswith(made)] == []


def test_the_security_page_tells_the_limits_and_ports_that_are_set() -> None:
    page = (PROJECT / "configs" / "SECURITY.md").read_text()
    limits = yaml.safe_load((PROJECT / "configs" / "backend.yaml").read_text())["limits"]
    http = yaml.safe_load((PROJECT / "serve_config.yaml").read_text())["http_options"]
    assert f"| {http['host']}:{http['port']} (" in page
    assert f"body ({limits['max_body_bytes'] >> 20} MiB, {limits['max_values']:,} values)" in page
    assert f"time ({limits['request_timeout_s']} s)" in page
    assert f"place in the queue ({limits['max_queued']})" in page
    for env in re.findall(r"LLM_BACKEND_\w+", page):
        assert env in (PROJECT / ".env.example").read_text(), env


def test_tree_in_the_readme_is_the_tree_on_disk():
    """The rooms are the four that the README draws, and no other folder holds code."""
    readme = (PROJECT / "README.md").read_text()
    drawn = set(re.findall(r"^(\w+)/ ", readme, re.MULTILINE))
    on_disk = {
        path.name
        for path in PROJECT.iterdir()
        if path.is_dir() and not path.name.startswith(".") and not path.name.endswith(".egg-info")
    }
    assert drawn == ALLOWED == on_disk


@pytest.mark.parametrize("init", INITS, ids=lambda init: init.parent.relative_to(PROJECT).name)
def test_a_package_lists_its_files_and_packages(init: Path) -> None:
    """With a sentence each, in the docstring of its `__init__`."""
    text = ast.get_docstring(ast.parse(init.read_text())) or ""
    listed = set(re.findall(r"^(\w+/|\w+\.py) +\S", text, re.MULTILINE))
    files = {path.name for path in init.parent.glob("*.py")} - {"__init__.py", "__main__.py"}
    folders = {path.name + "/" for path in init.parent.iterdir() if path.is_dir()}
    assert listed == files | {name for name in folders if not name.startswith("_")}


def test_numbers_in_the_api_page_are_the_settings():
    readme = (PROJECT / "serve_app" / "README.md").read_text()
    limits = yaml.safe_load((PROJECT / "configs" / "backend.yaml").read_text())["limits"]
    assert f"{limits['max_body_bytes'] >> 20} MiB" in readme
    assert f"{limits['max_queued']} requests wait" in readme
    assert f"{limits['request_timeout_s']} s are over" in readme


def test_every_route_in_the_readme_exists():
    from serve_app.ingress import routes

    served = {route.path for route in routes.routes}
    readme = "".join((PROJECT / page).read_text() for page in ("README.md", "serve_app/README.md"))
    named = set(re.findall(r"(?:GET|POST|DELETE) (/[\w/{}.]+)", readme)) - {"/docs"}
    assert {_shape(path) for path in named} <= {_shape(path) for path in served}


def _shape(path: str) -> str:
    """The address whatever its parameters are called."""
    return re.sub(r"\{\w+\}", "{}", path)
