"""Puts the settings together, from wherever they stand; which source wins: `__init__.py`."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, SecretStr

from deployments.settings.backend import (
    BackendFile,
    GpuSettings,
    Http,
    Limits,
    Memory,
    Probing,
    Switching,
)
from deployments.settings.base import Frozen, SettingsError
from deployments.settings.cache import Cache, with_address
from deployments.settings.environment import Environment, read_environment
from deployments.settings.models import ModelSpec, read_models
from deployments.settings.names import ModelNames
from deployments.settings.profiles import Place, ProfileFile, ProfileName, ResidencyMode
from deployments.settings.yaml_files import read_file

PROJECT = Path(__file__).resolve().parents[2]
_DEFAULT_HOME = "~/.cache/llm-backend"


class AppArgs(BaseModel):
    """The `args` of the application in `serve_config.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: Literal["auto", "rtx5080", "cpu-demo"] = "auto"
    config_dir: str = str(PROJECT / "configs")
    home: str | None = None  # state, logs and models; default: ~/.cache/llm-backend
    default_model: str | None = None  # overrides the profile's; "none" starts empty
    residency: ResidencyMode | None = None  # overrides the profile's
    env_file: str | None = None  # machine-wide settings; default: .env beside serve_config.yaml

    @property
    def env_path(self) -> Path | None:
        return None if self.env_file is None else Path(self.env_file)


class Settings(Frozen):
    """Everything the graph is built from."""

    profile: ProfileName
    default_model: str | None
    place: Place
    limits: Limits
    http: Http
    switching: Switching
    probing: Probing
    cache: Cache
    gpu: GpuSettings
    standby: Literal[True, False, "auto"]
    residency: ResidencyMode
    max_sleepers: int
    memory: Memory
    models: dict[str, ModelSpec]
    home: Path
    visible_devices: str | None = None  # CUDA_VISIBLE_DEVICES
    utilization: float | None = None  # GPU_MEMORY_UTILIZATION, which the models have already
    api_keys: tuple[SecretStr, ...] = ()
    admin_keys: tuple[SecretStr, ...] = ()

    @property
    def targets(self) -> dict[str, ModelSpec]:
        """Whatever can be resident: target -> the model with that task."""
        return {
            spec.target_for(task): spec.model_copy(update={"task": task})
            for spec in self.models.values()
            for task in spec.tasks
        }

    @property
    def names(self) -> ModelNames:
        """The names that requests may give the models."""
        return ModelNames(self.models)

    @property
    def is_warm(self) -> bool:
        """Whether models that were resident are kept asleep."""
        return self.residency == "warm"

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        """What the engines compute on. Whose memory they are counted in says `place`."""
        return "cpu" if self.profile == "cpu-demo" else "cuda"


def default_home() -> Path:
    """Where state, logs and demo models lie when no `args` say otherwise. Raises SettingsError."""
    return home_of(AppArgs())


def home_of(args: AppArgs) -> Path:
    """Where they lie for a deployment with these `args`. Raises SettingsError."""
    return _home(args, read_environment(args.env_path))


def _home(args: AppArgs, machine: Environment) -> Path:
    return Path(machine.home or args.home or _DEFAULT_HOME).expanduser()


def load_settings(args: AppArgs, has_gpu: bool, *, profile: ProfileName | None = None) -> Settings:
    """Read and check all files under `args.config_dir`, and the machine-wide settings.

    `profile`: one that a user names for this call; it beats all other sources.

    Raises:
        SettingsError: one sentence naming file, key, value and what is valid.
    """
    machine = read_environment(args.env_path)
    named = profile or machine.profile or args.profile
    profile = named if named != "auto" else ("rtx5080" if has_gpu else "cpu-demo")
    home = _home(args, machine)
    root = Path(args.config_dir)
    backend = read_file(root / "backend.yaml", BackendFile)
    profile_file = read_file(root / "profiles" / f"{profile}.yaml", ProfileFile)
    utilization = machine.gpu_memory_utilization if profile_file.place.is_gpu else None
    models = read_models(root / "models", profile, utilization)
    default = args.default_model or profile_file.default_model
    if default != "none" and default not in models:
        raise SettingsError(
            f"default_model: no model named {default!r}; there are {', '.join(models)}"
        )
    settings = Settings(
        profile=profile,
        default_model=None if default == "none" else default,
        place=profile_file.place,
        limits=backend.limits,
        http=backend.http.model_copy(
            update={"cors_origins": list(machine.cors_origins)} if machine.cors_origins else {}
        ),
        switching=backend.switching,
        probing=backend.probing,
        cache=with_address(root / "backend.yaml", backend.cache, machine.cache_url, home),
        gpu=backend.gpu,
        standby=profile_file.standby,
        residency=args.residency or profile_file.residency,
        max_sleepers=profile_file.max_sleepers,
        memory=backend.memory,
        models=models,
        home=home,
        visible_devices=machine.visible_devices,
        utilization=utilization,
        api_keys=machine.api_keys,
        admin_keys=machine.admin_keys,
    )
    _check_switching(root / "backend.yaml", settings)
    ModelNames(models)  # raises where two models have one name
    return settings


def _check_switching(path: Path, settings: Settings) -> None:
    switching = settings.switching
    for name in switching.idle_unload_s:
        if name not in settings.models:
            raise SettingsError(
                f"{path}: switching.idle_unload_s: no model named {name!r}; "
                f"there are {', '.join(settings.models)}"
            )
    turns_s = (len(settings.targets) - 1) * switching.min_resident_s
    if turns_s >= switching.max_wait_s:
        raise SettingsError(
            f"{path}: switching.max_wait_s: should be more than {turns_s:g}, which the other "
            f"models' min_resident_s take, but it is {switching.max_wait_s:g}"
        )
