"""The profiler's table: whose operations are the costliest."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from setr.training.profiling import SHOWN, Profile, report


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Linear(8, 8)
        self.layers = nn.ModuleList(nn.Linear(512, 512) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.small(x[:, :8])


def profiled(tmp_path, capsys, *, steps: int, remaining: int) -> list[str]:
    model = Two()
    with Profile(model, steps, tmp_path, remaining=remaining) as profile:
        for _ in range(remaining):
            model(torch.randn(1024, 512, requires_grad=True)).sum().backward()
            profile.step()
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    return capsys.readouterr().err.splitlines()


def test_operations_are_told_by_module_and_pass(tmp_path, capsys):
    first, *lines = profiled(tmp_path, capsys, steps=2, remaining=5)
    assert "2 steps" in first
    assert len(lines) <= SHOWN
    large = [line for line in lines if line.endswith("  layers.*")]
    assert any("aten::addmm" in line and "forward" in line for line in large[:3])
    assert any("aten::mm" in line and "backward" in line for line in large[:3])
    counts = {line.split(" x ")[0].split()[-1] for line in large if "aten::addmm" in line}
    assert counts == {"4"}  # two layers, two steps
    shares = [float(line.split("%")[0]) for line in lines]
    assert shares == sorted(shares, reverse=True)
    assert 50 < sum(shares) <= 100.5
    names = {
        e.get("name") for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    }
    assert {"module: layers.0", "module: layers.1", "module: small"} <= names


def test_a_short_run_is_profiled_as_far_as_it_goes(tmp_path, capsys):
    assert "1 steps" in profiled(tmp_path, capsys, steps=3, remaining=1)[0]


def test_a_full_disk_costs_the_trace_alone(tmp_path, capsys, monkeypatch):
    def export(self, path):  # as torch does: it logs, raises nothing and leaves a part
        Path(f"{path}.tmp").write_text("[")

    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", export)
    first, *lines = profiled(tmp_path, capsys, steps=1, remaining=3)
    assert first.endswith("trace.json: not written, the disk may be full; training goes on")
    assert any(line.endswith("  layers.*") for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_without_the_switch_nothing_happens(tmp_path, capsys):
    assert profiled(tmp_path, capsys, steps=0, remaining=2) == []
    assert list(tmp_path.iterdir()) == []
    assert report([]) == []
