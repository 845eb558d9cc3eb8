"""What a device can do at most: dense rates from the makers' data sheets, in TFLOP/s. No device is guessed.

A device is known by its whole name. Names that only begin alike are other devices (L40 and L4, T400 and T4, H200 NVL and H200). A
MIG slice ("NVIDIA A100-SXM4-40GB MIG 1g.5gb") or a virtual GPU has a share of the rate that its name does not state.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """Dense peak rates of one device, in TFLOP/s, with float32 sums; `source` the data sheet. None: the hardware has no such rate.

    Turing and Volta have no bf16: torch emulates it there, at a rate that nobody states.
    """

    bf16: float | None
    fp16: float
    tf32: float
    fp32: float
    source: str


_HALVED = "halved: the sheet's rates are with sparsity"
_A100 = Peak(312.0, 312.0, 156.0, 19.5, "NVIDIA A100 data sheet")
_A10 = Peak(125.0, 125.0, 62.5, 31.2, "NVIDIA A10 data sheet")
_A10G = Peak(70.0, 70.0, 35.0, 35.0, "NVIDIA A10G data sheet")
_A40 = Peak(149.7, 149.7, 74.8, 37.4, "NVIDIA A40 data sheet")
_B200 = Peak(2250.0, 2250.0, 1125.0, 75.0, f"NVIDIA HGX B200 data sheet, per GPU, {_HALVED}")
_GB200 = Peak(2500.0, 2500.0, 1250.0, 80.0, f"NVIDIA GB200 NVL72 data sheet, per GPU, {_HALVED}")
_H100_NVL = Peak(835.5, 835.5, 417.5, 60.0, f"NVIDIA H100 data sheet, NVL, {_HALVED}")
_H100_PCIE = Peak(756.0, 756.0, 378.0, 51.0, f"NVIDIA H100 data sheet, PCIe, {_HALVED}")
_H100_SXM = Peak(989.0, 989.0, 494.5, 67.0, f"NVIDIA H100 data sheet, SXM, {_HALVED}")
_H200 = Peak(989.0, 989.0, 494.5, 67.0, f"NVIDIA H200 data sheet, SXM, {_HALVED}")
_H200_NVL = Peak(835.5, 835.5, 417.5, 60.0, f"NVIDIA H200 data sheet, NVL, {_HALVED}")
_L4 = Peak(121.0, 121.0, 60.0, 30.3, f"NVIDIA L4 data sheet, {_HALVED}")
_L40 = Peak(181.05, 181.05, 90.5, 90.5, "NVIDIA L40 data sheet")
_L40S = Peak(362.05, 362.05, 183.0, 91.6, "NVIDIA L40S data sheet")
_T4 = Peak(None, 65.0, 8.1, 8.1, "NVIDIA T4 data sheet")
_V100_PCIE = Peak(None, 112.0, 14.0, 14.0, "NVIDIA V100 data sheet, PCIe")
_V100_SXM2 = Peak(None, 125.0, 15.7, 15.7, "NVIDIA V100 data sheet, SXM2")
_V100S = Peak(None, 130.0, 16.4, 16.4, "NVIDIA V100 data sheet, V100S")

PEAKS: dict[str, Peak] = {
    "A10": _A10,
    "A100 80GB PCIe": _A100,
    "A100-PCIE-40GB": _A100,
    "A100-SXM4-40GB": _A100,
    "A100-SXM4-80GB": _A100,
    "A10G": _A10G,
    "A40": _A40,
    "B200": _B200,
    "GB200": _GB200,
    "H100 80GB HBM3": _H100_SXM,
    "H100 NVL": _H100_NVL,
    "H100 PCIe": _H100_PCIE,
    "H200": _H200,
    "H200 NVL": _H200_NVL,
    "L4": _L4,
    "L40": _L40,
    "L40S": _L40S,
    "T4": _T4,
    "V100-PCIE-16GB": _V100_PCIE,
    "V100-PCIE-32GB": _V100_PCIE,
    "V100-SXM2-16GB": _V100_SXM2,
    "V100-SXM2-32GB": _V100_SXM2,
    "V100S-PCIE-32GB": _V100S,
}
"""Peaks by the driver's name of the device, without the brand (NVIDIA, Tesla)."""


def peak_tflops(device: str, precision: str, *, tf32: bool) -> tuple[float, str] | None:
    """(peak of one device at a precision, its source), or None for a device or precision that the table does not know."""
    peak = PEAKS.get(_bare(device))
    if peak is None:
        return None
    rates = {"bf16": peak.bf16, "fp16": peak.fp16, "fp32": peak.tf32 if tf32 else peak.fp32}
    rate = rates.get(precision)
    return None if rate is None else (rate, peak.source)


def unknown_peak(device: str, precision: str) -> str:
    """Why `peak_tflops` has no number, and the remedy."""
    problem = f"no {precision} rate is known for {device}" if _bare(device) in PEAKS else f"unknown device {device}"
    return f"{problem}: set watch.peak_tflops (what it can do at {precision}, dense, in TFLOP/s) for mfu_pct"


def _bare(device: str) -> str:
    """The name without its brand."""
    return device.strip().removeprefix("NVIDIA ").removeprefix("Tesla ")
