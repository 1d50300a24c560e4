"""The settings: read once at start from `configs/`, checked, and frozen.

Precedence, last wins: `configs/backend.yaml`, `configs/profiles/<profile>.yaml`, the `args` of
`serve_config.yaml`, the file `.env`, the environment (`serve_app/machine.py` lists its variables,
`.env.example` explains them). A model's file holds one block per profile.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from serve_app.machine import Machine, MachineError, read_machine

PROJECT = Path(__file__).resolve().parent.parent
ProfileName = Literal["rtx5080", "cpu-demo"]
Task = Literal["generate", "embed"]
ResidencyMode = Literal["cold", "warm"]


class SettingsError(Exception):
    """A settings file that can not be used: names the file, the key, the value and the choices."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class AppArgs(BaseModel):
    """The `args` of the application in `serve_config.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: Literal["auto", "rtx5080", "cpu-demo"] = "auto"
    config_dir: str = str(PROJECT / "configs")
    home: str | None = None  # state, logs and models; default: ~/.cache/llm-backend
    default_model: str | None = None  # overrides the profile's; "none" starts empty
    residency: ResidencyMode | None = None  # overrides the profile's
    env_file: str | None = None  # machine-wide settings; default: .env beside serve_config.yaml


class Limits(_Frozen):
    """What no client can lift."""

    max_in_service: Annotated[int, Field(gt=0)]
    max_queued: Annotated[int, Field(ge=0)]
    request_timeout_s: Annotated[float, Field(gt=0)]
    max_body_bytes: Annotated[int, Field(gt=0)]
    max_choices: Annotated[int, Field(gt=0)]
    max_inputs: Annotated[int, Field(gt=0)]
    max_logprobs: Annotated[int, Field(ge=0, le=20)]  # vLLM's own limit, `--max-logprobs`, is 20
    max_stop: Annotated[int, Field(ge=0, le=4)]  # vLLM's own limit, VLLM_MAX_STOP_STRINGS, is 4
    max_tools: Annotated[int, Field(ge=0)]
    max_schema_depth: Annotated[int, Field(gt=0, le=60)]  # vLLM's own limit is 64
    max_schema_properties: Annotated[int, Field(gt=0)]
    max_image_bytes: Annotated[int, Field(gt=0)]
    max_image_pixels: Annotated[int, Field(gt=0)]
    image_hosts: list[Annotated[str, Field(pattern=r"^[a-z0-9.-]+$")]]
    image_fetch_timeout_s: Annotated[float, Field(gt=0)]


class Http(_Frozen):
    """Who may reach the server, besides what keys say."""

    allowed_hosts: list[str]
    cors_origins: list[str]


class Switching(_Frozen):
    """The residency policy; durations in seconds."""

    drain_timeout_s: Annotated[float, Field(ge=0)]
    load_timeout_s: Annotated[float, Field(gt=0)]
    unload_timeout_s: Annotated[float, Field(gt=0)]
    max_wait_s: Annotated[float, Field(gt=0)]
    min_resident_s: Annotated[float, Field(ge=0)]
    probation_s: Annotated[float, Field(ge=0)]
    failed_retry_s: Annotated[float, Field(gt=0)]
    idle_unload_s: dict[str, Annotated[float, Field(gt=0)]]


class Memory(_Frozen):
    """What is expected of the memory from one load to the next."""

    max_drift_bytes: Annotated[int, Field(ge=0)]


# Settings of an engine that mean something on a GPU only, or for a model that takes images only.
GPU_ONLY = (
    "gpu_memory_utilization",
    "kv_cache_dtype",
    "attention_backend",
    "max_cudagraph_capture_size",
    "safetensors_load_strategy",
)
VISION_ONLY = ("mm_encoder_attn_backend", "max_images", "max_pixels")


def _refuse_thousands(value: Any) -> Any:
    if isinstance(value, str) and value.strip()[-1:] in ("k", "K"):
        raise ValueError(
            f"a number of tokens is wanted, but it is {value!r}; 32K is taken for 32768 here and "
            "for 32000 there, so write the number out"
        )
    return value


Tokens = Annotated[int, Field(gt=0), BeforeValidator(_refuse_thousands)]


class Cache(_Frozen):
    """The response cache; see `serve_app/cache`."""

    url: SecretStr | None  # may hold a password
    ttl_s: Annotated[float, Field(gt=0)]
    max_bytes: Annotated[int, Field(gt=0)]
    max_value_bytes: Annotated[int, Field(gt=0)]
    timeout_s: Annotated[float, Field(gt=0, le=1)]
    seeded: bool


class EngineSettings(_Frozen):
    """What one engine is started with. `None` leaves vLLM's own default in force."""

    max_model_len: Tokens
    max_num_seqs: Annotated[int, Field(gt=0)]
    max_num_batched_tokens: Tokens
    gpu_memory_utilization: Annotated[float, Field(gt=0, lt=0.95)] | None = None
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    attention_backend: Literal["TRITON_ATTN", "FLASH_ATTN", "FLASHINFER"] | None = None
    mm_encoder_attn_backend: Literal["TORCH_SDPA"] | None = None
    max_cudagraph_capture_size: int | None = None
    safetensors_load_strategy: Literal["lazy", "eager", "prefetch"] | None = None
    enforce_eager: bool = False
    enable_prefix_caching: bool = True
    max_images: Annotated[int, Field(ge=0)] = 0
    max_pixels: int | None = None
    tool_call_parser: Literal["hermes"] | None = None
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.kv_cache_dtype == "fp8" and self.attention_backend == "FLASH_ATTN":
            raise ValueError(
                "attention_backend FLASH_ATTN takes no fp8 KV cache on an RTX 50 card: set "
                "attention_backend to TRITON_ATTN or FLASHINFER, or kv_cache_dtype to auto"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) should be at least "
                f"max_num_seqs ({self.max_num_seqs}): a step makes one token for each sequence"
            )
        return self


class Golden(_Frozen):
    """A model's known question; see `deployments/golden.py`."""

    prompt: str = "What is the capital of France?"
    image: bool = False  # show it a red disc too
    must_contain: str | None = None  # part of the right answer, where it is known
    max_tokens: Annotated[int, Field(gt=0, le=64)] = 8
    logprob_tolerance: Annotated[float, Field(gt=0)] = 0.25  # nats
    embedding_tolerance: Annotated[float, Field(gt=0, le=1)] = 0.02  # cosine distance


class Probing(_Frozen):
    """How a serving engine is watched; durations in seconds."""

    interval_s: Annotated[float, Field(gt=0)]
    timeout_s: Annotated[float, Field(gt=0)]
    stuck_after_s: Annotated[float, Field(gt=0)]


Port = Annotated[int, Field(gt=1023, lt=65536)] | None


class GpuSettings(_Frozen):
    """How the card is watched."""

    alarm_at: Annotated[float, Field(gt=0.1, le=1)]  # share of its memory in use
    interval_s: Annotated[float, Field(gt=0)]


class ModelProfile(_Frozen):
    """One profile's block in a model's file: the checkpoint behind the name, and its engine."""

    checkpoint: str
    revision: str | None = None
    untrained: bool = False
    golden: Golden
    engine: EngineSettings
    env: dict[str, str] = Field(default_factory=dict)


class ModelFile(_Frozen):
    """One file of `configs/models/`."""

    name: str
    description: str
    tasks: Annotated[list[Task], Field(min_length=1)]  # the first is meant where none is named
    vision: bool = False
    port: Port
    profiles: dict[ProfileName, ModelProfile]

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        for profile, block in self.profiles.items():
            key = f"profiles.{profile}.engine"
            for name in sorted(block.engine.model_fields_set):
                if name in VISION_ONLY and not self.vision:
                    raise ValueError(
                        f"{key}.{name} is for a model that takes images (vision: true)"
                    )
                if name in GPU_ONLY and profile == "cpu-demo":
                    raise ValueError(f"{key}.{name} does nothing without a GPU")
            if block.golden.image and not block.engine.max_images:
                raise ValueError(f"profiles.{profile}.golden.image needs {key}.max_images, above 0")
            for name in block.env:
                if name.startswith("VLLM_CPU_") and profile != "cpu-demo":
                    raise ValueError(f"profiles.{profile}.env.{name} does nothing on a GPU")
        return self


class ModelSpec(_Frozen):
    """A model as the running profile serves it, doing one of its tasks."""

    name: str
    description: str
    tasks: list[Task]
    task: Task
    vision: bool
    port: Port
    checkpoint: str
    revision: str | None
    untrained: bool
    golden: Golden = Golden()
    engine: EngineSettings
    env: dict[str, str]

    @property
    def target(self) -> str:
        """What a switch leads to: an engine does one task, so each task is a target of its own."""
        return self.target_for(self.task)

    def target_for(self, task: Task) -> str:
        """The model's own name for its first task, else `model:task`."""
        return self.name if task == self.tasks[0] else f"{self.name}:{task}"


class Place(_Frozen):
    """What a model's replica asks of Ray; over one half, so that Ray itself never places two."""

    resource: Literal["GPU", "node:__internal_head__"]
    amount: Annotated[float, Field(gt=0.5, le=1)]


class Settings(_Frozen):
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
    standby: bool
    residency: ResidencyMode
    max_sleepers: int
    memory: Memory
    models: dict[str, ModelSpec]
    home: str
    visible_devices: str | None = None  # CUDA_VISIBLE_DEVICES
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
    def is_warm(self) -> bool:
        """Whether models that were resident are kept asleep."""
        return self.residency == "warm"

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        return "cuda" if self.place.resource == "GPU" else "cpu"


class _BackendFile(_Frozen):
    limits: Limits
    http: Http
    switching: Switching
    probing: Probing
    memory: Memory
    cache: Cache
    gpu: GpuSettings


class _ProfileFile(_Frozen):
    default_model: str
    place: Place
    standby: bool
    residency: ResidencyMode
    max_sleepers: Annotated[int, Field(ge=1)]


_File = TypeVar("_File", bound=BaseModel)


def default_home() -> Path:
    """Where state, logs and demo models lie when no `args` say otherwise. Raises SettingsError."""
    return Path(_machine(None).home or "~/.cache/llm-backend").expanduser()


def _machine(env_file: str | None) -> Machine:
    try:
        return read_machine(Path(env_file) if env_file is not None else None)
    except MachineError as exc:
        raise SettingsError(str(exc)) from exc


def load_settings(args: AppArgs, has_gpu: bool, *, profile: ProfileName | None = None) -> Settings:
    """Read and check all files under `args.config_dir`, and the machine-wide settings.

    `profile`: one that a user names for this call; it beats all other sources.

    Raises:
        SettingsError: one sentence naming file, key, value and what is valid.
    """
    machine = _machine(args.env_file)
    named = profile or machine.profile or args.profile
    profile = named if named != "auto" else ("rtx5080" if has_gpu else "cpu-demo")
    home = str(Path(machine.home or args.home or "~/.cache/llm-backend").expanduser())
    root = Path(args.config_dir)
    backend = _read(root / "backend.yaml", _BackendFile)
    profile_file = _read(root / "profiles" / f"{profile}.yaml", _ProfileFile)
    is_gpu = profile_file.place.resource == "GPU"
    utilization = machine.gpu_memory_utilization if is_gpu else None
    models = _read_models(root / "models", profile, utilization)
    default = args.default_model or profile_file.default_model
    if default != "none" and default not in models:
        raise SettingsError(
            f"default_model: no model named {default!r}; there are {', '.join(models)}"
        )
    _check_ports(root / "models", models)
    settings = Settings(
        profile=profile,
        default_model=None if default == "none" else default,
        place=profile_file.place,
        limits=backend.limits,
        http=backend.http,
        switching=backend.switching,
        probing=backend.probing,
        cache=_cache_settings(root / "backend.yaml", backend.cache, machine.cache_url, home),
        gpu=backend.gpu,
        standby=profile_file.standby,
        residency=args.residency or profile_file.residency,
        max_sleepers=profile_file.max_sleepers,
        memory=backend.memory,
        models=models,
        home=home,
        visible_devices=machine.visible_devices,
        api_keys=machine.api_keys,
        admin_keys=machine.admin_keys,
    )
    _check_switching(root / "backend.yaml", settings)
    return settings


def _check_ports(folder: Path, models: dict[str, ModelSpec]) -> None:
    seen: dict[int, str] = {}
    for name, spec in models.items():
        if spec.port and seen.setdefault(spec.port, name) != name:
            raise SettingsError(
                f"{folder / name}.yaml: port: {spec.port} is {seen[spec.port]}'s already"
            )


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


def _cache_settings(path: Path, cache: Cache, given: SecretStr | None, home: str) -> Cache:
    """With the address that holds, complete; `given` by the environment, it beats the file's. No
    error repeats one: it may hold a password."""
    source = f"{path}: cache.url"
    url = cache.url.get_secret_value() if cache.url else None
    if given:
        source, url = "LLM_BACKEND_CACHE_URL", given.get_secret_value()
        url = None if url == "null" else url
    if cache.max_value_bytes > cache.max_bytes:
        raise SettingsError(
            f"{path}: cache.max_value_bytes: should be at most cache.max_bytes, "
            f"{cache.max_bytes}, but it is {cache.max_value_bytes}"
        )
    if url is None:
        return cache.model_copy(update={"url": None})
    try:
        parts = urlsplit(url)
        is_known = parts.scheme in ("memory", "disk") or bool(parts.hostname and parts.port != 0)
    except ValueError:
        raise SettingsError(f"{source}: not an address") from None
    if parts.scheme not in ("memory", "disk", "redis", "rediss") or not is_known:
        choices = "memory://, disk:///folder, redis://host:port/number, rediss://…, null"
        raise SettingsError(f"{source}: not a store's address; valid: {choices}")
    if parts.scheme == "disk":
        if parts.netloc:
            raise SettingsError(f"{source}: a folder is absolute, with three slashes: disk:///…")
        url = f"disk://{parts.path or Path(home) / 'cache'}"
    return cache.model_copy(update={"url": SecretStr(url)})


def _read_models(
    folder: Path, profile: ProfileName, utilization: float | None
) -> dict[str, ModelSpec]:
    """The models under `profile`; `utilization`, if any, replaces what their files say."""
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise SettingsError(f"{folder}: no model files (*.yaml)")
    models: dict[str, ModelSpec] = {}
    for path in paths:
        file = _read(path, ModelFile)
        if file.name != path.stem:
            raise SettingsError(f"{path}: name: {file.name!r} should be the file's own name")
        if profile not in file.profiles:
            raise SettingsError(f"{path}: profiles: there is no block for {profile!r}")
        block = file.profiles[profile]
        engine = block.engine
        if utilization:
            engine = engine.model_copy(update={"gpu_memory_utilization": utilization})
        models[file.name] = ModelSpec(
            name=file.name,
            description=file.description,
            tasks=file.tasks,
            task=file.tasks[0],
            vision=file.vision,
            port=file.port,
            checkpoint=block.checkpoint,
            revision=block.revision,
            untrained=block.untrained,
            golden=block.golden,
            engine=engine,
            env=block.env,
        )
    return models


class _CheckpointsFile(_Frozen):
    shapes: list[dict[str, Any]]
    quantizations: list[dict[str, Any]]
    checkpoints: dict[str, dict[str, Any]]


def known_checkpoints(config_dir: Path) -> Mapping[str, Mapping[str, Any]]:
    """What is known of checkpoints that need not be on this machine: name -> its `config.json`.

    Raises:
        SettingsError: the file can not be used.
    """
    return _read(config_dir / "checkpoints.yaml", _CheckpointsFile).checkpoints


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


def _read(path: Path, kind: type[_File]) -> _File:
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
