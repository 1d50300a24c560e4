"""Gives a request the model's own name, and the parameters of the variant that it asks for."""

from typing import Any

from deployments.settings.names import NamedModel


def apply_name(value: dict[str, Any], model: NamedModel) -> bool:
    """Change `value`, the body of a request for `model`; return whether it has changed."""
    before = dict(value)
    value["model"] = model.spec.name
    variant = model.variant
    if variant:
        for name in variant.dropped:
            value.pop(name, None)
        for name, default in variant.defaults.items():
            if value.get(name) is None:
                value[name] = default
        value.update(variant.forced)
    return value != before
