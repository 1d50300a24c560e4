"""The names that a request may give a model: its own, its aliases, its variants. PURE."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from deployments.settings.base import SettingsError
from deployments.settings.models import ModelSpec, Variant


@dataclass(frozen=True)
class NamedModel:
    """A model as a request names it."""

    asked: str
    spec: ModelSpec
    variant: Variant | None = None


class ModelNames:
    """Finds the model that a name means.

    A name that is spelled out beats a pattern, and of patterns the longest one wins.

    Raises:
        SettingsError: two models have the same name.
    """

    def __init__(self, models: Mapping[str, ModelSpec]) -> None:
        self._exact: dict[str, NamedModel] = {}
        self._patterns: list[tuple[str, ModelSpec]] = []
        for spec in models.values():
            self._add(spec.name, spec)
            for name, variant in spec.variants.items():
                self._add(f"{spec.name}:{name}", spec, variant)
            for alias in spec.aliases:
                if _is_pattern(alias):
                    self._patterns.append((alias, spec))
                else:
                    self._add(alias, spec)
        self._patterns.sort(key=lambda pair: -len(pair[0]))

    def find(self, asked: str) -> NamedModel | None:
        """The model that `asked` names; None where none does."""
        found = self._exact.get(asked)
        if found is None:
            matches = (spec for pattern, spec in self._patterns if fnmatchcase(asked, pattern))
            spec = next(matches, None)
            found = NamedModel(asked, spec) if spec else None
        return found

    def listed(self) -> Iterator[NamedModel]:
        """Each name that is spelled out, a model's own first."""
        yield from self._exact.values()

    def _add(self, name: str, spec: ModelSpec, variant: Variant | None = None) -> None:
        there = self._exact.get(name)
        if there:
            raise SettingsError(
                f"configs/models/{spec.name}.yaml: the name {name!r} is {there.spec.name}'s already"
            )
        self._exact[name] = NamedModel(name, spec, variant)


def _is_pattern(alias: str) -> bool:
    return "*" in alias
