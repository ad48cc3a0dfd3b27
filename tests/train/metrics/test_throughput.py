import pytest

from malmoi.train.metrics.throughput import data_sheet_flops


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA H200 NVL", 835.0),
        ("NVIDIA GH200 480GB", 989.0),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA GB200", 2500.0),
        ("NVIDIA H20", 148.0),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("Tesla T4", 65.0),
    ],
)
def test_a_known_gpus_peak_is_that_of_its_data_sheet(name: str, tflops: float) -> None:
    assert data_sheet_flops(name) == tflops * 1e12


@pytest.mark.parametrize("name", ["NVIDIA H10", "NVIDIA A1000", "NVIDIA GeForce RTX 4090", "NVIDIA T400"])
def test_a_gpu_whose_name_only_begins_alike_is_measured(name: str) -> None:
    assert data_sheet_flops(name) is None
