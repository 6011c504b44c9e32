"""Graphics cards as the operating system shows them, whether or not a backend here can use them."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}  # PCI's numbers
PROC, DRM, SMI = Path("/proc/driver/nvidia"), Path("/sys/class/drm"), "nvidia-smi"


@dataclass(frozen=True)
class Card:
    vendor: str  # "NVIDIA", "AMD" or "Intel"
    name: str
    driver: str = ""  # its version where the system tells it, which is for NVIDIA's own driver

    def __str__(self) -> str:
        return f"{self.name}, driver {self.driver}" if self.driver else self.name


def cards(proc: Path = PROC, drm: Path = DRM, smi: str = SMI) -> list[Card]:
    """NVIDIA's by its driver, on any system; the others', and NVIDIA's without it, by Linux's list of cards."""
    found = _by_nvidia_smi(smi) or _by_nvidia_proc(proc)
    known = {card.vendor for card in found}
    return found + [card for card in _by_drm(drm) if card.vendor not in known]


def _by_nvidia_smi(smi: str) -> list[Card]:
    query = [smi, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rpartition(",") for line in told.splitlines() if "," in line]
    return [Card("NVIDIA", name.strip(), driver.strip()) for name, _, driver in rows]


def _by_nvidia_proc(proc: Path) -> list[Card]:
    """The kernel module's own files: version, and gpus/BUS/information with a line `Model:`."""
    version = re.search(r"Kernel Module\b.*?\s(\d+\.[\d.]+)", _text(proc / "version"))
    models = [re.search(r"^Model:\s*(.+)$", _text(path), re.MULTILINE) for path in sorted(proc.glob("gpus/*/information"))]
    return [Card("NVIDIA", m[1].strip(), version[1] if version else "") for m in models if m]


def _by_drm(drm: Path) -> list[Card]:
    """card0 and so on; card0-HDMI-A-1 is a connector of it."""
    found = []
    for path in sorted(drm.glob("card*")):
        if re.fullmatch(r"card\d+", path.name) and (vendor := VENDORS.get(_text(path / "device" / "vendor").strip())):
            found.append(Card(vendor, f"{vendor} GPU {_text(path / 'device' / 'device').strip()}".strip()))
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
