"""What the standby reads of a tokenizer is what vLLM asks for by its own configuration."""

import json
import os
import subprocess
import sys
from pathlib import Path

import deployments.engine.site
from deployments.engine.args import EVERY_ENGINE, engine_flags
from deployments.settings import PROJECT, AppArgs, load_settings
from tests.conftest import DEMO_HOME

SITE = Path(deployments.engine.site.__file__).parent
ASK = """
import copy, json, os, sys
from deployments.engine import main as engine_main
checkpoint, flags = json.load(sys.stdin)
engine_main.preload()
engine_main.load_tokenizer(checkpoint, "generate")
num_threads = len(os.listdir("/proc/self/task"))

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.renderers import hf
from vllm.tokenizers import cached_get_tokenizer, cached_tokenizer_from_config, detokenizer_utils
from vllm.transformers_utils.processor import cached_get_processor
from vllm.utils.argparse_utils import FlexibleArgumentParser

args = make_arg_parser(FlexibleArgumentParser()).parse_args(flags)
config = AsyncEngineArgs.from_cli_args(args).create_model_config()
tokenizer = copy.copy(cached_tokenizer_from_config(config))
taken = [copy.deepcopy(tokenizer) for _ in range(config.renderer_num_workers + 2)]
hf.resolve_chat_template(tokenizer, None, None, model_config=config)
texts = [t.decode(t.encode("one red square")) for t in [tokenizer, *taken]]
print(json.dumps({
    "threads": num_threads,
    "tokenizers": cached_get_tokenizer.cache_info()[:2],
    "processors": cached_get_processor.cache_info()[:2],
    "copies": len({id(t) for t in taken}),
    "markers": [detokenizer_utils._CACHED_MARKER_KEY in vars(t) for t in [tokenizer, *taken]],
    "texts": sorted(set(texts)),
}))
"""


def test_an_engine_finds_its_tokenizer_and_its_copies_made() -> None:
    settings = load_settings(AppArgs.model_validate({"profile": "cpu-demo"}), has_gpu=False)
    checkpoint = DEMO_HOME / "models" / "smollm2-135m-instruct"
    flags = engine_flags(settings.targets["qwen-coder"], checkpoint, settings.device)
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        input=json.dumps([str(checkpoint), flags]),
        cwd=PROJECT,
        env=os.environ
        | EVERY_ENGINE
        | {
            "PYTHONPATH": os.pathsep.join([str(SITE), str(PROJECT)]),
            "OPENBLAS_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "threads": 1,
        "tokenizers": [1, 1],  # hits, misses
        "processors": [1, 1],
        "copies": 3,  # two made ahead, one more on demand
        "markers": [True, True, True, True],
        "texts": ["one red square"],
    }
