"""A device's peak FLOP/s, and the peak of memory in use."""

import re
import time
from pathlib import Path

import torch

from malmoi.configs.train import Precision
from malmoi.train.distributed.dist_env import HALF_DTYPES

GPU_PEAK_TFLOPS = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "GH200": 989.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H20": 148.0,
    "A100": 312.0,
    "A40": 150.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "V100": 125.0,
    "T4": 65.0,
}
"""Dense 16-bit peak of the vendor's data sheets, in TFLOP/s, by words of the device's name: a variant before the name
that it contains."""


def peak_flops(device: torch.device, precision: Precision) -> float:
    """Return the device's peak in FLOP/s: from the table for known GPUs in 16 bits, else of a timed matrix product."""
    if device.type == "cuda" and precision != "fp32":
        known = data_sheet_flops(torch.cuda.get_device_name(device))
        if known is not None:
            return known
    return _measured_matmul_flops(device, HALF_DTYPES.get(precision, torch.float32))


def data_sheet_flops(device_name: str) -> float | None:
    """Return the peak in 16 bits, in FLOP/s, of a GPU by torch's name for it; None where it is not in the table."""
    for words, tflops in GPU_PEAK_TFLOPS.items():
        # Whole words: an L40 is no L4.
        if re.search(rf"\b{words}\b", device_name):
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
    """Return the most memory in use so far, in MiB: of the device for a GPU, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # Unlike getrusage's figure, the kernel's high-water mark does not count the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 2**10
