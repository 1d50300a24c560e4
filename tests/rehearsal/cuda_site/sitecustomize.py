"""Lets the Python of vLLM's CUDA wheel run on a machine without CUDA, in every process of it.

1. vLLM's compiled extensions are empty modules, and what they would register with torch answers
   yes where it is asked what it supports. CUDA's runtime library, which PyTorch brings, is an empty
   class.
2. `torch.cuda` says that there is one card, as PyTorch for CUDA does by NVML without touching it.
   All that would touch it is noted in `TOUCHED`, and fails as it does in PyTorch for the CPU.

Python's start runs it after the engine's own `sitecustomize`, whose hook it uses.
"""

import sys
import traceback
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

TOUCHED: list[str] = []
"""What would have initialised CUDA, and from where."""

# Source: the .abi3.so files of vllm 0.32.0's wheel.
_EXTENSIONS = {
    "vllm._C_stable_libtorch",
    "vllm._moe_C_stable_libtorch",
    "vllm._qutlass_C",
    "vllm._flashmla_C",
    "vllm._flashmla_extension_C",
    "vllm._flashkda_C",
    "vllm._deepselect_C",
    "vllm.cumem_allocator",
    "vllm.spinloop",
    "vllm.fs_io_C",
    "vllm.vllm_flash_attn._vllm_fa2_C",
    "vllm.vllm_flash_attn._vllm_fa3_C",
}
_CUMEM = ("init_module", "python_create_and_map", "python_unmap_and_release")
_TOUCHING = ("_lazy_init", "init", "current_device", "set_device", "synchronize", "mem_get_info")


class _Extensions(MetaPathFinder, Loader):
    """Case 1, their import."""

    def find_spec(self, fullname, path, target=None):
        return ModuleSpec(fullname, self) if fullname in _EXTENSIONS else None

    def create_module(self, spec):
        return ModuleType(spec.name)

    def exec_module(self, module):
        if module.__name__ == "vllm.cumem_allocator":
            vars(module).update(dict.fromkeys(_CUMEM, lambda *_: None))


def _empty_runtime(wrapper: ModuleType) -> None:
    """Case 1, `vllm.distributed.device_communicators.cuda_wrapper`."""
    wrapper.CudaRTLibrary = type("CudaRTLibrary", (), {})


def _pretend(torch: ModuleType) -> None:
    """Both cases' torch, once it is imported."""
    cuda = torch.cuda
    torch.version.cuda = "13.0"
    cuda._is_compiled = cuda.is_available = lambda: True
    cuda._device_count_nvml = cuda.device_count = lambda: 1
    for name in _TOUCHING:
        setattr(cuda, name, _noting(name, getattr(cuda, name)))
    for name in ("_cuda_getCurrentRawStream", "_cuda_getCurrentStream"):
        setattr(torch._C, name, lambda *_: 0)
    namespace = torch._ops._OpNamespace
    ask = namespace.__getattr__

    def answer(self, name):
        try:
            return ask(self, name)
        except AttributeError:
            if self.name.startswith("_C") and "supports" in name:
                return lambda *_, **__: True
            raise

    namespace.__getattr__ = answer


def _noting(name, call):
    def noted(*args, **kwargs):
        frames = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
        TOUCHED.append(f"torch.cuda.{name} at {frames[-1].filename}:{frames[-1].lineno}")
        return call(*args, **kwargs)

    return noted


if hooks := getattr(sys.modules.get("sitecustomize"), "MENDS", None):
    sys.meta_path.insert(0, _Extensions())
    hooks["torch"] = _pretend
    hooks["vllm.distributed.device_communicators.cuda_wrapper"] = _empty_runtime
    sys.modules["cuda_site"] = site = ModuleType("cuda_site")
    site.TOUCHED = TOUCHED
