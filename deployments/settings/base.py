"""The base of all settings: frozen, and unknown keys are refused."""

from pydantic import BaseModel, ConfigDict


class SettingsError(Exception):
    """Settings that cannot be used: names where, the key, the value and the choices."""


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
