"""What the README says of the project is so."""

import re

import yaml

from serve_app.settings import PROJECT

ALLOWED = {"serve_app", "deployments", "configs", "tests"}


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


def test_numbers_in_the_readme_are_the_settings():
    readme = (PROJECT / "README.md").read_text()
    limits = yaml.safe_load((PROJECT / "configs" / "backend.yaml").read_text())["limits"]
    assert f"{limits['max_body_bytes'] >> 20} MiB" in readme
    assert f"{limits['max_queued']} requests wait" in readme
    assert f"{limits['request_timeout_s']} s are over" in readme


def test_every_route_in_the_readme_exists():
    from serve_app.ingress import routes

    served = {route.path for route in routes.routes}
    readme = (PROJECT / "README.md").read_text()
    named = set(re.findall(r"(?:GET|POST|DELETE) (/[\w/{}.]+)", readme)) - {"/docs"}
    assert {_shape(path) for path in named} <= {_shape(path) for path in served}


def _shape(path: str) -> str:
    """The address whatever its parameters are called."""
    return re.sub(r"\{\w+\}", "{}", path)
