"""Reads a file of `configs/` strictly; each error names file, key, value and valid choices."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from deployments.settings.base import SettingsError

_File = TypeVar("_File", bound=BaseModel)


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key written twice, of which YAML would drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_file(path: Path, kind: type[_File]) -> _File:
    """The file as a `kind`.

    Raises:
        SettingsError: it cannot be read, is no YAML, or is not what `kind` says.
    """
    try:
        raw = yaml.load(path.read_text(), _StrictLoader)  # noqa: S506  a SafeLoader
    except OSError as exc:
        raise SettingsError(f"{path}: {exc.strerror}") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path}: not YAML: {exc}") from exc
    try:
        return kind.model_validate(raw)
    except ValidationError as exc:
        raise SettingsError(f"{path}: {_first_problem(exc, kind)}") from exc


def _first_problem(exc: ValidationError, kind: type[BaseModel]) -> str:
    # an unknown key first: it is often why another one is missing
    problem = min(exc.errors(), key=lambda e: e["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in problem["loc"]) or "(top)"
    if problem["type"] == "extra_forbidden":
        valid = ", ".join(_valid_keys(kind, problem["loc"]))
        return f"{key}: unknown key; valid here: {valid}"
    if problem["type"] == "missing":
        return f"{key}: missing"
    if problem["type"] == "value_error":  # of a check of ours, which tells the value itself
        told = str(problem["ctx"]["error"])
        return f"{key}: {told}" if problem["loc"] else told
    return f"{key}: {problem['msg']}, but it is {problem['input']!r}"


def _valid_keys(kind: Any, loc: tuple[int | str, ...]) -> list[str]:
    """The keys valid beside the offending one: follows `loc` through the models' fields."""
    for part in loc[:-1]:
        fields = getattr(kind, "model_fields", {})
        if isinstance(part, str) and part in fields:
            kind = fields[part].annotation
        # a dict's key: step into the type of its values
        arguments: tuple[Any, ...] = getattr(kind, "__args__", ())
        if getattr(kind, "__origin__", None) is dict and part not in fields:
            kind = arguments[-1]
    return sorted(getattr(kind, "model_fields", {}))
