"""The settings of one machine: environment variables, and `.env` beside `serve_config.yaml`.

The environment beats the file, also where it is empty; what is empty in the end counts as none.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from deployments.settings.base import SettingsError

ENV_FILE = Path(__file__).resolve().parents[2] / ".env"
_OURS = "LLM_BACKEND_"


def _split(value: Any) -> Any:
    """Several keys in one variable are separated by commas."""
    if not isinstance(value, str):
        return value
    return tuple(key.strip() for key in value.split(",") if key.strip())


Keys = Annotated[tuple[SecretStr, ...], BeforeValidator(_split)]


class Environment(BaseModel):
    """What the environment may say; None leaves it to the files under `configs/`.

    Aliases are the variables' names. Secrets never print.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    profile: Literal["auto", "rtx5080", "cpu-demo"] | None = Field(
        None, alias="LLM_BACKEND_PROFILE"
    )
    home: str | None = Field(None, alias="LLM_BACKEND_HOME")
    host: str | None = Field(None, alias="LLM_BACKEND_HOST")
    port: Annotated[int, Field(gt=0, lt=65536)] | None = Field(None, alias="LLM_BACKEND_PORT")
    gpu_memory_utilization: Annotated[float, Field(gt=0, lt=0.95)] | None = Field(
        None, alias="GPU_MEMORY_UTILIZATION"
    )
    visible_devices: str | None = Field(None, alias="CUDA_VISIBLE_DEVICES")
    api_keys: Keys = Field((), alias="LLM_BACKEND_API_KEY")
    admin_keys: Keys = Field((), alias="LLM_BACKEND_ADMIN_KEY")
    cors_origins: Annotated[tuple[str, ...], BeforeValidator(_split)] = Field(
        (), alias="LLM_BACKEND_CORS_ORIGINS"
    )
    cache_url: SecretStr | None = Field(None, alias="LLM_BACKEND_CACHE_URL")


def read_environment(env_file: Path | None = None) -> Environment:
    """Read the environment and `env_file` (by default the project's `.env`, where there is one).

    Raises:
        SettingsError: a value is wrong, or `env_file` has a variable of ours that does not exist.
    """
    path = env_file or ENV_FILE
    from_file = _read_file(path)
    known = {str(field.alias) for field in Environment.model_fields.values()}
    for name in from_file:
        if name.startswith(_OURS) and name not in known:
            valid = ", ".join(sorted(known))
            raise SettingsError(f"{path}: {name}: unknown variable; valid here: {valid}")
    values = {k: v for k, v in (from_file | os.environ).items() if k in known and v}
    try:
        return Environment.model_validate(values)
    except ValidationError as exc:
        problem = exc.errors()[0]
        name = str(problem["loc"][0])
        where = "the environment" if name in os.environ else str(path)
        shown = "" if "KEY" in name else f", but it is {problem['input']!r}"
        raise SettingsError(f"{where}: {name}: {problem['msg']}{shown}") from exc


def export_file(env_file: Path | None = None) -> None:
    """Put what the file says, and the environment does not, into this process's environment.

    For what other programs read that are started from here: HF_HOME, CUDA_VISIBLE_DEVICES.
    """
    for name, value in _read_file(env_file or ENV_FILE).items():
        os.environ.setdefault(name, value)


def _read_file(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        return {k: v for k, v in dotenv_values(path, interpolate=False).items() if v}
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path}: cannot be read") from exc
