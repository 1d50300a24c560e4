"""No test reads the settings of the machine it runs on: neither its environment nor its `.env`. And
no run of the tests leaves behind what they have started, also one that is killed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from deployments.settings import default_home, environment
from tests import reaper

DEMO_HOME = default_home()  # where `make models` has put the demo models

for name in [*os.environ]:
    if name.startswith("LLM_BACKEND_") or name == "GPU_MEMORY_UTILIZATION":
        del os.environ[name]
environment.ENV_FILE = Path("/nonexistent/.env")

# An example's time says nothing on a machine that does other things.
hypothesis_settings.register_profile(
    "busy", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("busy")


@pytest.fixture(scope="session", autouse=True)
def _ends_with_the_run() -> Iterator[None]:
    """See `reaper.py`."""
    command = [sys.executable, reaper.__file__, run := uuid4().hex]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
        os.environ[reaper.MARK] = run
        yield
