"""GPUs: what they can compute and move in a second, and how long a traced step takes on them at least.

The time of a step is that of a roofline (Williams et al. 2009, "Roofline: An Insightful Visual Performance Model"):
each kernel takes as long as its arithmetic or its traffic, whichever is longer. Real kernels reach a part of that, the
efficiency, which differs between cards and is measured once on a machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llmcls.common.files import read_json, write_json
from llmcls.common.user_error import UserError
from llmcls.model.kernel_costs import KernelCost

# A guess for cards whose efficiency was not measured: a 1B model reached 0.49 on an H100, in steps of 9,000 tokens.
UNMEASURED_EFFICIENCY = 0.5
# The time between the starts of two kernels that do nothing, in seconds.
KERNEL_SECONDS = 2.5e-6
# Parts of a device name that make it another product than the one of the same number.
VARIANTS = {"laptop", "max", "mobile", "q", "super", "ti"}


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet.

    Attributes
    ----------
    name : str
        Words of the name that `torch.cuda.get_device_name` returns.
    gib : float
        Memory.
    bandwidth : float
        Bytes per second of the memory.
    sixteen_bits : float
        FLOP/s of dense matrix products of float16 and bfloat16, summed in float32.
    float32 : float
        FLOP/s of float32, without TF32, which torch does not use unless it is told to.
    flash : bool
        Whether flash attention runs on it: from the Ampere generation on.
    """

    name: str
    gib: float
    bandwidth: float
    sixteen_bits: float
    float32: float
    flash: bool = True

    def seconds(self, kernels: Iterable[tuple[KernelCost, int]]) -> float:
        """The least time that these kernels take, float seconds."""
        return sum(count * self._kernel_seconds(kernel) for kernel, count in kernels)

    def _kernel_seconds(self, kernel: KernelCost) -> float:
        peak = self.float32 if kernel.dtype == "float32" else self.sixteen_bits
        return max(kernel.flops / peak, kernel.bytes_moved / self.bandwidth, KERNEL_SECONDS)


def _card(name: str, gib: float, gigabytes: float, tera16: float, tera32: float, flash: bool = True) -> Card:
    return Card(name, gib, gigabytes * 1e9, tera16 * 1e12, tera32 * 1e12, flash)


# Name, GiB, GB/s, dense 16-bit TFLOP/s summed in float32, float32 TFLOP/s. From the data sheets of NVIDIA and AMD. For
# GeForce cards: the white papers "NVIDIA Ampere GA102", "NVIDIA Ada GPU Architecture" and "NVIDIA RTX Blackwell GPU
# Architecture", whose 16-bit rate with float32 sums is twice the float32 rate, also where a paper lists other cards.
CARDS = (
    _card("Tesla T4", 15, 320, 65, 8.1, flash=False),
    _card("Tesla V100", 16, 900, 125, 15.7, flash=False),
    _card("A10", 24, 600, 125, 31.2),
    _card("A10G", 24, 600, 70, 35),
    _card("A40", 48, 696, 150, 37.4),
    _card("A100 80GB", 80, 2039, 312, 19.5),
    _card("A100 40GB", 40, 1555, 312, 19.5),
    _card("L4", 24, 300, 121, 30.3),
    _card("L40", 48, 864, 181, 90.5),
    _card("L40S", 48, 864, 362, 91.6),
    _card("H100", 80, 3350, 989, 67),
    _card("H100 PCIe", 80, 2000, 756, 51),
    _card("H100 NVL", 94, 3900, 835, 60),
    _card("H200", 141, 4800, 989, 67),
    _card("B200", 180, 8000, 2250, 75),
    _card("MI300X", 192, 5300, 1307, 163),
    _card("RTX A6000", 48, 768, 155, 38.7),
    _card("RTX 6000 Ada", 48, 960, 364, 91.1),
    _card("RTX 3060", 12, 360, 25.5, 12.7),
    _card("RTX 3070", 8, 448, 40.6, 20.3),
    _card("RTX 3080", 10, 760, 59.5, 29.8),
    _card("RTX 3090", 24, 936, 71, 35.6),
    _card("RTX 4060", 8, 272, 30.2, 15.1),
    _card("RTX 4070", 12, 504, 58.3, 29.1),
    _card("RTX 4080", 16, 717, 97.5, 48.7),
    _card("RTX 4090", 24, 1008, 165, 82.6),
    _card("RTX 5070", 12, 672, 61.7, 30.9),
    _card("RTX 5080", 16, 960, 113, 56.3),
    _card("RTX 5090", 32, 1792, 210, 105),
)


def card_of(device_name: str) -> Card | None:
    """The card of a device name of torch; None if it is not in the table.

    Examples
    --------
    >>> card_of("NVIDIA A100-SXM4-80GB").name
    'A100 80GB'
    >>> card_of("NVIDIA H100 80GB HBM3").name
    'H100'
    >>> card_of("NVIDIA GeForce RTX 4070 Laptop GPU") is None
    True
    """
    found = _words(device_name)
    fitting = [c for c in CARDS if _words(c.name) <= found and not (found - _words(c.name)) & VARIANTS]
    return max(fitting, key=lambda card: len(_words(card.name)), default=None)


def find_card(name: str) -> Card:
    """The card of ``--card``: a part of a name in the table is enough.

    Raises
    ------
    UserError
        If there is none.
    """
    card = card_of(name) or next((c for c in CARDS if _words(name) and _words(name) <= _words(c.name)), None)
    if card is None:
        raise UserError(f"--card: {name!r} is not known; known are {', '.join(c.name for c in CARDS)}"[:299])
    return card


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower()))


def efficiency_file(output_root: str | Path) -> Path:
    """Where the efficiencies of the cards of a machine are stored."""
    return Path(output_root) / "efficiency.json"


def read_efficiency(path: Path, device_name: str) -> float | None:
    """The share of the roofline that training reached on a device; None if it was not measured.

    Parameters
    ----------
    path : Path
        See `efficiency_file`. A file that cannot be read counts as missing.
    device_name : str
        As torch returns it.
    """
    try:
        value = read_json(path).get(device_name)
    except (OSError, UserError, AttributeError):
        return None
    return float(value) if isinstance(value, int | float) and value > 0 else None


def write_efficiency(path: Path, device_name: str, efficiency: float) -> None:
    """Store the share of the roofline that training reached: seconds of the roofline / seconds measured."""
    try:
        known = dict(read_json(path))
    except (OSError, UserError, TypeError, ValueError):
        known = {}
    write_json(path, known | {device_name: round(efficiency, 4)})
