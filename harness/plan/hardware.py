"""What a device can do at most: dense tensor-core rates from the makers' data sheets, in TFLOP/s. No device is guessed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """Dense peak rates of one device, in TFLOP/s. `half` is bf16 and fp16 with float32 sums; `source` the data sheet."""

    half: float
    tf32: float
    fp32: float
    source: str


PEAKS: dict[str, Peak] = {
    "V100-SXM2": Peak(125.0, 15.7, 15.7, "NVIDIA V100 data sheet, Jan 2020 (half is fp16 only)"),
    "A100": Peak(312.0, 156.0, 19.5, "NVIDIA A100 data sheet, 2021"),
    "H100 PCIe": Peak(756.0, 378.0, 51.0, "NVIDIA H100 data sheet, PCIe, halved: without sparsity"),
    "H100 NVL": Peak(835.0, 417.5, 60.0, "NVIDIA H100 NVL data sheet, halved: without sparsity"),
    "H100": Peak(989.0, 494.5, 67.0, "NVIDIA H100 data sheet, SXM, halved: without sparsity"),
    "H200": Peak(989.0, 494.5, 67.0, "NVIDIA H200 data sheet, SXM, halved: without sparsity"),
    "B200": Peak(2250.0, 1125.0, 75.0, "NVIDIA DGX B200 data sheet, per GPU, halved: without sparsity"),
    "L40S": Peak(362.05, 183.0, 91.6, "NVIDIA L40S data sheet, without sparsity"),
    "L4": Peak(121.0, 60.0, 30.3, "NVIDIA L4 data sheet, halved: without sparsity"),
    "A10G": Peak(70.0, 35.0, 35.0, "NVIDIA A10G data sheet"),
    "T4": Peak(65.0, 8.1, 8.1, "NVIDIA T4 data sheet (half is fp16 only)"),
}
"""By a part of the name that the driver gives; the longest that fits counts."""


def peak_tflops(device: str, precision: str, *, tf32: bool) -> tuple[float, str] | None:
    """(peak of one device at a precision, its source), or None for a device or precision that the table does not know."""
    found = [name for name in PEAKS if name.lower() in device.lower()]
    if not found or precision == "fp64":
        return None
    peak = PEAKS[max(found, key=len)]
    rate = peak.half if precision in ("bf16", "fp16") else peak.tf32 if tf32 else peak.fp32
    return rate, peak.source
