"""What a processor is told by, on Linux and on Windows."""

from __future__ import annotations

import platform

import pytest
import torch

from wav2vec2_conformer.modeling import processor

ZEN_5 = "vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\n"
ZEN_4 = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\n"
XEON = "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\n"
LATER_INTEL = "vendor_id\t: GenuineIntel\ncpu family\t: 26\n"
WINDOWS = "AMD64 Family 26 Model 68 Stepping 0, AuthenticAMD"


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize(
    ("told", "machine", "system", "prefers", "wide"),
    [
        (ZEN_5, "x86_64", "Linux", True, True),
        (WINDOWS, "AMD64", "Windows", True, True),
        (ZEN_4, "x86_64", "Linux", True, False),
        (XEON, "x86_64", "Linux", False, False),
        (LATER_INTEL, "x86_64", "Linux", False, False),
        ("i386", "x86_64", "Darwin", False, False),
        ("", "aarch64", "Linux", False, False),
    ],
)
def test_processors_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, told: str, machine: str, system: str, prefers: bool, wide: bool
) -> None:
    monkeypatch.setattr(processor, "processor", lambda: told)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: True)
    assert processor.prefers_onednn() == prefers
    assert processor.computes_full_width() == wide
