"""The settings: read once at start from `configs/` and the environment, checked, and frozen.

`configs/backend.yaml` says what holds everywhere, `configs/profiles/<profile>.yaml` what holds on
one kind of machine, and each file of `configs/models/` has one block for each profile; no setting
stands in two of them. Where a setting can be given elsewhere too, the first of these that gives it
wins:

1. what a command names for one call, as `llm-backend plan --profile`
2. the environment; an empty variable hides the file's, and leaves it to what follows below
3. the file `.env` (`environment.py` lists the variables of both, `.env.example` explains them)
4. `args` and `http_options` of `serve_config.yaml`
5. the files under `configs/`

loading.py      puts the settings together: `Settings`
backend.py      `configs/backend.yaml`
cache.py        its part about the response cache
profiles.py     `configs/profiles/`
models.py       `configs/models/`
names.py        the names that requests may give a model: aliases, variants
engine.py       the part of a model's file that its engine is started with
engine_args.py  its flags of vLLM that have no setting of their own
checkpoints.py  `configs/checkpoints.yaml`
environment.py  environment variables and `.env`
binding.py      where the server may listen
paths.py        where everything lies in the home folder
yaml_files.py   reads a file, strictly
base.py         what all settings share
"""

from deployments.settings.backend import GpuSettings, Http, Limits, Probing
from deployments.settings.base import SettingsError
from deployments.settings.binding import check_bound, is_address, is_loopback
from deployments.settings.cache import Cache
from deployments.settings.checkpoints import known_checkpoints
from deployments.settings.engine import EngineSettings
from deployments.settings.loading import (
    PROJECT,
    AppArgs,
    Settings,
    default_home,
    home_of,
    load_settings,
)
from deployments.settings.models import Golden, ModelSpec, Task
from deployments.settings.profiles import ProfileName

__all__ = [
    "PROJECT",
    "AppArgs",
    "Cache",
    "EngineSettings",
    "Golden",
    "GpuSettings",
    "Http",
    "Limits",
    "ModelSpec",
    "Probing",
    "ProfileName",
    "Settings",
    "SettingsError",
    "Task",
    "check_bound",
    "default_home",
    "home_of",
    "is_address",
    "is_loopback",
    "known_checkpoints",
    "load_settings",
]
