"""What the device could do: a model's arithmetic a token, the device's peak, and memory in use."""

import re
import time
from pathlib import Path

import torch

from configs.schema import ModelSettings, Precision
from train.parallel import HALF_DTYPES
from train.size import parameter_count

GPU_PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "V100": 125.0, "T4": 65.0}
"""Dense 16-bit peak of the vendor's data sheets, in TFLOP/s, by a word of the device's name."""


def flops_per_token(settings: ModelSettings, vocab_size: int) -> float:
    """Floating-point operations of forward and backward for one token.

    Six a matrix parameter, and 12 x layers x width x block for attention (Chowdhery et al., "PaLM", 2022,
    appendix B). Position embeddings are looked up, not multiplied.
    """
    multiplied = parameter_count(settings, vocab_size) - settings.block_size * settings.n_embd
    return 6.0 * multiplied + 12.0 * settings.n_layer * settings.n_embd * settings.block_size


def peak_flops(device: torch.device, precision: Precision) -> float:
    """The device's peak in FLOP/s: from the table for known GPUs in 16 bits, else a large matrix product, timed."""
    if device.type == "cuda" and precision != "fp32":
        told = data_sheet_flops(torch.cuda.get_device_name(device))
        if told is not None:
            return told
    return _measured_matmul_flops(device, HALF_DTYPES.get(precision, torch.float32))


def data_sheet_flops(device_name: str) -> float | None:
    """Peak in 16 bits, in FLOP/s, of a GPU by torch's name for it; none where it is in no table of ours."""
    for word, tflops in GPU_PEAK_TFLOPS.items():
        # A whole word: an L40 is no L4.
        if re.search(rf"\b{word}\b", device_name):
            return tflops * 1e12
    return None


def _measured_matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    size = 4096 if device.type == "cuda" else 1024
    left = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        left @ left
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best


def peak_memory_mib(device: torch.device) -> float:
    """Most memory in use so far: of the device for a GPU, else resident memory of this process, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # Unlike getrusage's figure, the kernel's high-water mark does not count the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 2**10
