from __future__ import annotations

from pathlib import Path

import pytest

from llmcls.common.user_error import UserError
from llmcls.model.cards import (
    CARDS,
    KERNEL_SECONDS,
    Card,
    card_of,
    efficiency_file,
    find_card,
    read_efficiency,
    write_efficiency,
)
from llmcls.model.kernel_costs import KernelCost


def kernel(flops: int, moved: int, dtype: str = "bfloat16") -> KernelCost:
    return KernelCost("mm", "forward", dtype, flops, flops, moved)


@pytest.mark.parametrize(
    "device, name",
    [
        ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H100 PCIe", "H100 PCIe"), ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"), ("NVIDIA A100-PCIE-40GB", "A100 40GB"), ("Tesla T4", "Tesla T4"),
        ("Tesla V100-SXM2-16GB", "Tesla V100"), ("NVIDIA A10", "A10"), ("NVIDIA A10G", "A10G"), ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 3060", "RTX 3060"), ("AMD Instinct MI300X", "MI300X"),
        # Another product than the one with this number.
        ("NVIDIA GeForce RTX 3060 Ti", None), ("NVIDIA GeForce RTX 4070 Laptop GPU", None), ("Radeon", None),
    ],
)  # fmt: skip
def test_a_card_is_known_by_the_name_that_torch_gives_it(device: str, name: str | None) -> None:
    found = card_of(device)
    assert (found and found.name) == name


def test_a_user_may_name_a_part_and_a_wrong_name_is_one_sentence() -> None:
    assert find_card("h100").name == "H100"
    assert find_card("A100").name == "A100 80GB"
    assert find_card("3090").name == "RTX 3090"
    with pytest.raises(UserError, match="--card: 'Voodoo' is not known; known are ") as error:
        find_card("Voodoo")
    assert len(str(error.value)) < 300
    with pytest.raises(UserError):
        find_card("")


def test_every_card_of_the_table_is_found_by_its_name_and_is_plausible() -> None:
    for card in CARDS:
        assert find_card(card.name) is card
        assert 2e11 < card.bandwidth < 1e13
        # Tensor cores are faster than the rest, and no card is faster than its memory by more than this.
        assert 1.9 < card.sixteen_bits / card.float32 < 31
        assert 40 < card.sixteen_bits / card.bandwidth < 500


def test_a_kernel_takes_as_long_as_its_arithmetic_or_its_traffic() -> None:
    card = Card("x", 1, bandwidth=1e9, sixteen_bits=1e12, float32=1e11)
    assert card.seconds([(kernel(10**10, 10**6), 1)]) == pytest.approx(0.01)
    assert card.seconds([(kernel(10**10, 10**6, "float32"), 1)]) == pytest.approx(0.1)
    assert card.seconds([(kernel(10**6, 10**6), 3)]) == pytest.approx(0.003)
    assert card.seconds([(kernel(1, 1), 10)]) == pytest.approx(10 * KERNEL_SECONDS)


def test_an_efficiency_is_stored_for_each_device(tmp_path: Path) -> None:
    path = efficiency_file(tmp_path)
    assert read_efficiency(path, "NVIDIA L4") is None
    write_efficiency(path, "NVIDIA L4", 0.71)
    write_efficiency(path, "NVIDIA H100 PCIe", 0.5)
    assert read_efficiency(path, "NVIDIA L4") == 0.71
    assert read_efficiency(path, "Tesla T4") is None
    path.write_text("[broken")
    assert read_efficiency(path, "NVIDIA L4") is None
