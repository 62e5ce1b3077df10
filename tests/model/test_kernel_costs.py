from __future__ import annotations

import torch

from llmcls.model.kernel_costs import kernel_cost, workspace

BF16 = torch.bfloat16


def test_a_matrix_product_multiplies_and_adds_once_for_each_pair() -> None:
    a, b, out = torch.empty(3, 5), torch.empty(5, 7), torch.empty(3, 7)
    cost = kernel_cost("mm", "forward", (a, b), [out], [3])
    assert (cost.flops, cost.useful_flops) == (2 * 3 * 5 * 7, 2 * 3 * 5 * 7)
    assert cost.bytes_moved == 4 * (15 + 35 + 21)
    assert cost.dtype == "float32"
    added = kernel_cost("addmm_", "forward", (out, a, b), [out], [3])
    assert added.flops == cost.flops
    # It reads what it adds to.
    assert added.bytes_moved == cost.bytes_moved + 4 * 21


def test_the_products_of_adapters_count_their_matrices() -> None:
    x, a, b = torch.empty(5, 8, dtype=BF16), torch.empty(4, 8, dtype=BF16), [torch.empty(6, 2), torch.empty(3, 2)]
    low, outs = torch.empty(5, 4, dtype=BF16), [torch.empty(5, 6, dtype=BF16), torch.empty(5, 3, dtype=BF16)]

    def flops(name: str, arguments: tuple, outputs: list[torch.Tensor]) -> int:
        return kernel_cost(name, "forward", arguments, outputs, [5]).flops

    down, up = 2 * 5 * 8 * 4, 2 * 5 * (6 + 3) * 2
    assert flops("lora_down", (x, a, 1.0, 0.1, 3), [low]) == down
    assert flops("lora_up", (low, b), outs) == up
    assert flops("lora_down_gradient", (outs, b, 1.0), [low]) == up
    assert flops("lora_input_gradient", (low, a, 0.1, 3), [x]) == down
    assert flops("lora_matrix_gradients", (outs, low, x, low, 0.1, 3), [a, *b]) == down + up


def test_what_is_computed_again_is_not_useful() -> None:
    a, out = torch.empty(3, 3), torch.empty(3, 3)
    cost = kernel_cost("mm", "recomputed", (a, a), [out], [3])
    assert (cost.flops, cost.useful_flops) == (54, 0)


def test_packed_attention_counts_pairs_within_each_text() -> None:
    lengths, heads, width = [2, 3], 4, 8
    query, key = torch.empty(5, heads, width, dtype=BF16), torch.empty(5, 2, width, dtype=BF16)
    ends = torch.tensor([0, 2, 5])

    def flops(queries: torch.Tensor, causal: bool) -> int:
        arguments = (queries, key, key, ends, ends, 3, 3, 0.0, causal, False)
        return kernel_cost("_flash_attention_forward", "forward", arguments, [queries], lengths).flops

    assert flops(query, causal=True) == 4 * heads * width * (3 + 6)
    assert flops(query, causal=False) == 4 * heads * width * (4 + 9)
    # One query a text, at its end.
    assert flops(query[:2], causal=False) == 4 * heads * width * (2 + 3)
    backward = (query, query, key, key, query, query, ends, ends, 3, 3, 0.0, True)
    cost = kernel_cost("_flash_attention_backward", "backward", backward, [query, key, key], lengths)
    assert cost.useful_flops == 2 * flops(query, causal=True)
    assert cost.flops == 2.5 * flops(query, causal=True)


def test_flash_attention_sums_gradients_in_float32_and_for_each_query_head() -> None:
    query, ends = torch.empty(5, 4, 8, dtype=BF16), torch.tensor([0, 2, 5])

    def reserved(key_heads: int) -> int:
        key = torch.empty(5, key_heads, 8, dtype=BF16)
        arguments = (query, query, key, key, query, query, ends, ends, 3, 3, 0.0, True)
        return workspace("_flash_attention_backward", arguments)

    rows = 5 + 2 * 128
    assert reserved(4) == 4 * rows * 4 * 32 + 4 * rows * 4
    assert reserved(2) - reserved(4) == 2 * 5 * 4 * 8 * 2
    assert workspace("mm", (query, query)) == 0


def test_writing_and_gathering_read_only_what_they_need() -> None:
    table, ids, out = torch.empty(1000, 4), torch.zeros(3, dtype=torch.int64), torch.empty(3, 4)
    assert kernel_cost("embedding", "forward", (table, ids), [out], [3]).bytes_moved == 2 * 48 + 24
    assert kernel_cost("zeros_like", "forward", (out,), [out], [3]).bytes_moved == 48
    row = torch.empty(1, 4).expand(3, 4)
    assert kernel_cost("mul", "forward", (row, out), [out], [3]).bytes_moved == 16 + 2 * 48
