"""Model FLOPs utilisation: the share of the accelerators' peak that training's own arithmetic takes.

    MFU = tokens per second x FLOPs per token / (workers x peak),    FLOPs per token = 6 N + 12 L H T

N weights, L layers of width H, T tokens of context; what is computed twice to save memory does not count (Chowdhery et
al. 2022, "PaLM", appendix B).
"""

from __future__ import annotations

import torch

from pipeline.config import TrainSettings
from pipeline.train.distributed import bfloat16

# Dense bfloat16 TFLOP/s from the makers' data sheets, by what the device's name holds; the first that fits.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A100": 312.0,
    "A10G": 70.0,
    "A10": 125.0,
}


def flops_per_token(weights: int, layers: int, width: int, context: int) -> float:
    """Forward and backward, all weights trained."""
    return 6.0 * weights + 12.0 * layers * width * context


def peak_flops(device: str) -> float | None:
    """FLOP/s of the device with this name in bfloat16; ``None`` where it is not known."""
    return next((peak * 1e12 for name, peak in PEAK_TFLOPS.items() if name in device), None)


def utilisation(tokens_per_second: float, per_token: float | None, workers: int, device: str) -> float | None:
    """Between 0 and 1; ``None`` where the arithmetic or the device's peak is not known."""
    peak = peak_flops(device)
    return None if per_token is None or peak is None else tokens_per_second * per_token / (workers * peak)


def device_name(settings: TrainSettings) -> str:
    """The accelerator that trains in bfloat16, or nothing."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() and bfloat16(settings) else ""
