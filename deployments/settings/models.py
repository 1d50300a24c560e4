"""The files of `configs/models/`, and each model as the active profile serves it."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from deployments.settings.base import Frozen, SettingsError
from deployments.settings.engine import GPU_ONLY, VISION_ONLY, EngineSettings
from deployments.settings.profiles import ProfileName
from deployments.settings.yaml_files import read_file

# Fields that a variant must not touch.
_NOT_PARAMETERS = {"model", "messages", "prompt", "input", "stream", "tools", "system"}
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
# An alias may have the characters of other programs' model names, and stars.
_ALIAS = r"^[A-Za-z0-9*][A-Za-z0-9*._:/@-]*$"

Task = Literal["generate", "embed"]
Port = Annotated[int, Field(gt=1023, lt=65536)] | None


class Golden(Frozen):
    """A model's known question; see `deployments/model_server/golden.py`."""

    prompt: str = "What is the capital of France?"
    image: bool = False  # show it a red disc too
    must_contain: str | None = None  # part of the right answer, where it is known
    max_tokens: Annotated[int, Field(gt=0, le=64)] = 8
    logprob_tolerance: Annotated[float, Field(gt=0)] = 0.25  # nats
    embedding_tolerance: Annotated[float, Field(gt=0, le=1)] = 0.02  # cosine distance


class Variant(Frozen):
    """A second name of a model, `model:variant`, that changes the parameters of its requests."""

    defaults: dict[str, Any] = Field(default_factory=dict)  # where a request does not say
    forced: dict[str, Any] = Field(default_factory=dict)  # whatever a request says
    dropped: list[str] = Field(default_factory=list)  # left out of requests

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        for name in _NOT_PARAMETERS & (
            self.defaults.keys() | self.forced.keys() | set(self.dropped)
        ):
            raise ValueError(f"{name} is what a request is about, and not a parameter of it")
        return self


class ModelProfile(Frozen):
    """One profile's block in a model's file: the checkpoint behind the name, and its engine."""

    checkpoint: str
    revision: str | None = None
    untrained: bool = False
    golden: Golden
    engine: EngineSettings
    env: dict[str, str] = Field(default_factory=dict)


class ModelFile(Frozen):
    """One file of `configs/models/`."""

    name: str
    description: str
    tasks: Annotated[list[Task], Field(min_length=1)]  # the first is meant where none is named
    vision: bool = False
    port: Port
    aliases: list[Annotated[str, Field(pattern=_ALIAS)]] = Field(default_factory=list)
    variants: dict[Annotated[str, Field(pattern=_NAME)], Variant] = Field(default_factory=dict)
    profiles: dict[ProfileName, ModelProfile]

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        for variant in sorted(self.variants.keys() & set(get_args(Task))):
            raise ValueError(f"variants.{variant}: {self.name}:{variant} is a task's name already")
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


class ModelSpec(Frozen):
    """A model as the running profile serves it, doing one of its tasks."""

    name: str
    description: str
    tasks: list[Task]
    task: Task
    vision: bool
    port: Port
    aliases: list[str] = Field(default_factory=list)
    variants: dict[str, Variant] = Field(default_factory=dict)
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


def read_models(
    folder: Path, profile: ProfileName, utilization: float | None
) -> dict[str, ModelSpec]:
    """The models under `profile`; `utilization`, if any, replaces what their files say.

    Raises:
        SettingsError: one of them cannot be used, or there are none.
    """
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise SettingsError(f"{folder}: no model files (*.yaml)")
    models: dict[str, ModelSpec] = {}
    for path in paths:
        file = read_file(path, ModelFile)
        if file.name != path.stem:
            raise SettingsError(f"{path}: name: {file.name!r} should be the file's own name")
        block = file.profiles.get(profile)
        if block is None:  # the model is not for this kind of machine
            continue
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
            aliases=file.aliases,
            variants=file.variants,
            checkpoint=block.checkpoint,
            revision=block.revision,
            untrained=block.untrained,
            golden=block.golden,
            engine=engine,
            env=block.env,
        )
    if not models:
        raise SettingsError(f"{folder}: no model file has a block for the profile {profile!r}")
    _check_ports(folder, models)
    return models


def left_out(folder: Path, profile: ProfileName) -> list[str]:
    """The models whose files have no block for `profile`. Raises SettingsError."""
    files = [read_file(path, ModelFile) for path in sorted(folder.glob("*.yaml"))]
    return [file.name for file in files if profile not in file.profiles]


def _check_ports(folder: Path, models: dict[str, ModelSpec]) -> None:
    seen: dict[int, str] = {}
    for name, spec in models.items():
        if spec.port and seen.setdefault(spec.port, name) != name:
            raise SettingsError(
                f"{folder / name}.yaml: port: {spec.port} is {seen[spec.port]}'s already"
            )
