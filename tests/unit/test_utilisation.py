"""Model FLOPs utilisation on hand-worked numbers."""

from __future__ import annotations

import pytest
import torch

from pipeline.config import TrainSettings
from pipeline.train.utilisation import device_name, flops_per_token, peak_flops, utilisation


def test_a_token_costs_six_operations_a_weight_and_attention() -> None:
    assert flops_per_token(weights=1_000_000, layers=2, width=64, context=128) == 6_000_000 + 12 * 2 * 64 * 128


def test_the_share_of_all_workers_peak() -> None:
    # 312 TFLOP/s each on two devices; 1e9 operations a token at 100,000 tokens a second are 100 TFLOP/s.
    assert utilisation(1e5, 1e9, 2, "NVIDIA A100-SXM4-80GB") == pytest.approx(100 / 624)
    assert utilisation(1e5, None, 2, "NVIDIA A100-SXM4-80GB") is None
    assert utilisation(1e5, 1e9, 2, "a device of tomorrow") is None


@pytest.mark.parametrize(
    ("device", "tflops"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA L40S", 362), ("NVIDIA L4", 121),
     ("NVIDIA A10G", 70), ("NVIDIA A10", 125), ("NVIDIA H200", 989)],
)  # fmt: skip
def test_the_most_exact_name_counts(device: str, tflops: float) -> None:
    assert peak_flops(device) == tflops * 1e12


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CPU's peak is not known")
def test_a_cpu_reports_none() -> None:
    assert device_name(TrainSettings(precision="bfloat16")) == ""
