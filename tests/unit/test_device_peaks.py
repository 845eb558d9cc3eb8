"""Peak rates of devices: by the whole name, dense, and none where the table does not know it."""

import pytest
import torch

from harness.config.loader import decode
from harness.plan.device_peaks import PEAKS, peak_tflops, unknown_peak
from harness.plan.plan import plan
from harness.plan.world import World
from harness.telemetry.events import Noticed, Windowed
from harness.training.loop import train
from harness.training.window_report import WindowReporter


@pytest.mark.parametrize(
    ("device", "bf16"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("A100-SXM4-40GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40", 181.05),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.0),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA GB200", 2500.0),
    ],
)
def test_a_device_has_the_dense_rate_of_its_own_data_sheet(device: str, bf16: float) -> None:
    found = peak_tflops(device, "bf16", tf32=False)
    assert found is not None
    rate, source = found
    assert rate == bf16
    assert "data sheet" in source


@pytest.mark.parametrize(
    "device",
    [
        "NVIDIA T400",
        "NVIDIA T4G",
        "NVIDIA T1000",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        "NVIDIA A100-SXM-64GB",
        "NVIDIA A1000",
        "GRID A100X-40C",
        "NVIDIA H100",
        "NVIDIA H20",
        "NVIDIA GB300",
        "NVIDIA L4000",
        "NVIDIA GeForce RTX 4090",
        "cpu",
        "",
    ],
)
def test_another_device_whose_name_begins_alike_is_unknown_and_said(device: str) -> None:
    for precision in ("bf16", "fp16", "fp32"):
        assert peak_tflops(device, precision, tf32=True) is None
    assert f"unknown device {device}: set watch.peak_tflops" in unknown_peak(device, "bf16")


@pytest.mark.parametrize(("device", "fp16"), [("Tesla T4", 65.0), ("Tesla V100-SXM2-32GB", 125.0), ("Tesla V100-PCIE-16GB", 112.0)])
def test_bf16_that_torch_emulates_has_no_peak(device: str, fp16: float) -> None:
    assert peak_tflops(device, "bf16", tf32=False) is None
    assert unknown_peak(device, "bf16").startswith(f"no bf16 rate is known for {device}: set watch.peak_tflops")
    found = peak_tflops(device, "fp16", tf32=False)
    assert found is not None
    assert found[0] == fp16
    assert peak_tflops(device, "fp32", tf32=True) == peak_tflops(device, "fp32", tf32=False), "and no TF32"


@pytest.mark.parametrize("name", PEAKS)
def test_a_faster_precision_is_not_slower(name: str) -> None:
    """That dense half precision is about twice TF32, where there is TF32, catches a number that was taken with sparsity."""
    peak = PEAKS[name]
    assert peak.fp16 > peak.tf32 >= peak.fp32 > 0
    if peak.bf16 is not None:
        assert peak.bf16 == peak.fp16 == pytest.approx(2 * peak.tf32, rel=0.02)
    assert peak_tflops(name, "fp64", tf32=False) is None
    assert unknown_peak(name, "fp64").startswith("no fp64 rate")


@pytest.mark.parametrize(("device", "given", "said"), [("NVIDIA T400", None, 1), ("NVIDIA T400", 5.0, 0), ("NVIDIA L40", None, 0)])
def test_a_run_says_once_that_its_device_is_unknown(
    device: str, given: float | None, said: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    peak = WindowReporter._peak

    def on_a_gpu(self: WindowReporter) -> float | None:
        with monkeypatch.context() as m:
            m.setattr(self.engine, "device", torch.device("cuda"))
            m.setattr(torch.cuda, "get_device_name", lambda _: device)
            return peak(self)

    monkeypatch.setattr(WindowReporter, "_peak", on_a_gpu)
    tree = {
        "recipe": {"use": "digits", "width": 4},
        "batch": {"reference": 32, "total": 32},
        "optim": {"lr": 0.02},
        "schedule": {"samples": 32 * 40},
        "watch": {"wandb": "off", "peak_tflops": given},
    }
    c = decode(tree)
    events = list(train(c, plan(c, World(1, device="cpu"), 1437), cpu=True))
    notices = [e.message for e in events if isinstance(e, Noticed) and e.code == "mfu_unknown"]
    assert len(notices) == said
    assert all(unknown_peak(device, "fp32") == text for text in notices)
    last = [e.metrics for e in events if isinstance(e, Windowed)][-1]
    assert (last["throughput/mfu_pct"] is None) == bool(said)
