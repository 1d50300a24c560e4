"""No test reads the settings of the machine it runs on: neither its environment nor its `.env`."""

import os
from pathlib import Path

from serve_app.settings import default_home, machine

DEMO_HOME = default_home()  # where `make models` has put the demo models

for name in [*os.environ]:
    if name.startswith("LLM_BACKEND_") or name == "GPU_MEMORY_UTILIZATION":
        del os.environ[name]
machine.ENV_FILE = Path("/nonexistent/.env")
