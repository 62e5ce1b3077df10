"""The condition for every claim about speed: packed rows give the same results as single texts."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llmcls.common.user_error import UserError
from llmcls.data.encoding import encode_texts
from llmcls.model import packed_attention, packed_forward
from llmcls.model.build import build_classifier
from llmcls.model.classifier import Classifier
from llmcls.model.packed_attention import HeadShape
from llmcls.model.packed_forward import (
    ATTENTION_NAME,
    PackedForward,
    PackingRequest,
    packing_in_words,
    try_packing,
)
from llmcls.model.pretrained import load_tokenizer
from llmcls.model.shrink import shrink
from llmcls.recipe.load import load_recipe
from tests.helpers import REUTERS, STORY_LLAMA, needs_real_data, read_rows
from tests.model.helpers import CPU, LABELS, TEXTS, build, lengths_of, one_by_one, packed_row, padded_rows


def small_network(kind: str, **settings: Any) -> Any:
    """A small random network of an architecture."""
    torch.manual_seed(0)
    settings = {"vocab_size": 500, "pad_token_id": 0} | settings
    return AutoModelForSequenceClassification.from_config(shrink(AutoConfig.for_model(kind, **settings))).eval()


def build_with_adapter(recipe_path: Path, *overrides: str) -> Classifier:
    """The classifier of a recipe, with an adapter that has an effect."""
    model = build(recipe_path, *overrides)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                # It starts at zero, and the gradient of its partner would be zero too.
                parameter.normal_(0, 0.05)
    return model


def logits_and_gradients(model: Classifier, passes: list[tuple[torch.Tensor, list[int]]]):
    """Logits of all passes, and the gradients of a loss over them."""
    model.zero_grad()
    logits = torch.cat([model(input_ids, lengths) for input_ids, lengths in passes])
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    (logits * weights).sum().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], name: str = "") -> None:
    assert found.keys() == expected.keys(), name
    for parameter, gradient in expected.items():
        scale = max(1.0, float(gradient.abs().max()))
        assert torch.allclose(found[parameter], gradient, atol=1e-5 * scale), (name, parameter)


@pytest.mark.parametrize(
    "overrides",
    [[], ["gradient_checkpointing=true"], ["lora_r=0"], ["use_4bit=true"], ["pooling=mean"], ["pooling=attention"]],
)
def test_packed_padded_sorted_and_single_texts_agree(write_recipe, overrides: list[str]) -> None:
    recipe = write_recipe(model__lora_dropout=0.0, model__lora_target_modules=["all-linear"])
    fast, plain = (build_with_adapter(recipe, *more, *overrides) for more in ([], ["packing=false"]))
    assert fast.packs
    assert fast.packed.last_token_only == (fast.pooling == "last")
    assert not plain.packs
    # Trying a model must not change what is drawn for it afterwards.
    both = zip(fast.parameters(), plain.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in both if a.requires_grad)
    fast.train()
    plain.train()
    lengths = lengths_of(TEXTS)
    expected, gradients = logits_and_gradients(plain, [(torch.tensor([t]), [len(t)]) for t in TEXTS])
    half = [TEXTS[:3], TEXTS[3:]]
    passes = {
        "packed": (fast, [(packed_row(TEXTS), lengths)]),
        "packed in two": (fast, [(packed_row(part), lengths_of(part)) for part in half]),
        "padded": (plain, [(padded_rows(TEXTS), lengths)]),
    }
    assert len(gradients) >= 15
    for name, (model, batches) in passes.items():
        logits, found = logits_and_gradients(model, batches)
        assert torch.allclose(logits, expected, atol=1e-5), name
        assert_same_gradients(found, gradients, name)


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
def test_bidirectional_texts_agree_packed_and_alone_and_see_what_follows(write_recipe, pooling: str) -> None:
    recipe = write_recipe(model__bidirectional=True, model__pooling=pooling, model__lora_dropout=0.0)
    model = build_with_adapter(recipe).eval()
    expected, gradients = logits_and_gradients(model, [(torch.tensor(t), [len(t)]) for t in TEXTS])
    logits, found = logits_and_gradients(model, [(packed_row(TEXTS), lengths_of(TEXTS))])
    assert torch.allclose(logits, expected, atol=1e-5)
    assert_same_gradients(found, gradients)
    network = model.sequence_classifier
    text = torch.tensor([TEXTS[2]])
    mask = torch.ones(1, 1, len(TEXTS[2]), len(TEXTS[2]), dtype=torch.bool)
    assert model.packed.bidirectional
    assert model.packed.last_token_only == (pooling == "last")
    model.packed.detach()
    with torch.no_grad():
        packed_forward = PackedForward(network, bidirectional=True).attach()
        packed = packed_forward.states(text[0], [text.shape[1]])
        packed_forward.detach()
        network.set_attn_implementation("sdpa")
        whole = network.base_model(input_ids=text, attention_mask=mask, use_cache=False).last_hidden_state[:, -1]
    assert torch.allclose(packed, whole, atol=1e-5)


def test_another_text_in_the_row_changes_no_bit_of_the_others(write_recipe) -> None:
    model = build_with_adapter(write_recipe()).eval()
    lengths = lengths_of(TEXTS)
    with torch.no_grad():
        before = model(packed_row(TEXTS), lengths)
        changed = [text if i != 2 else [100 + t for t in text] for i, text in enumerate(TEXTS)]
        after = model(packed_row(changed), lengths)
    others = [i for i in range(len(TEXTS)) if i != 2]
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[2], after[2])


def test_no_mask_and_no_cache_is_built(write_recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = packed_attention.attention

    def watch(query, key, value, pack, *rest, **more):
        seen.append((query.shape[2], key.shape[2]))
        return real(query, key, value, pack, *rest, **more)

    monkeypatch.setattr(packed_attention, "attention", watch)
    model = build(write_recipe())
    seen.clear()
    model(packed_row(TEXTS), lengths_of(TEXTS))
    tokens = sum(map(len, TEXTS))
    # Two layers: the first at every token, the last at one token per text.
    assert seen == [(tokens, tokens), (len(TEXTS), tokens)]


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "olmo", "smollm3", "gemma"])
def test_other_decoders_are_packed_or_left_unchanged(kind: str) -> None:
    network = small_network(kind)
    texts = [[7, 8, 9, 10], [11, 12], [13] * 9]
    with torch.no_grad():
        expected = one_by_one(Classifier(network), texts)
        packed = try_packing(network, PackingRequest(64, CPU, torch.float32))
        if kind in ("llama", "mistral", "qwen2", "qwen3", "gemma"):
            assert packed is not None
            assert packed.last_token_only
        row = packed_row(texts) if packed else padded_rows(texts)
        found = Classifier(network, packed)(row, lengths_of(texts))
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "kind, max_length, settings, reason",
    [
        ("bert", 64, {}, "is not built like a causal decoder"),
        ("gemma2", 64, {}, "caps its attention scores"),
        ("mistral", 128, {"sliding_window": 64}, "only a part of the text"),
        ("doge", 64, {}, "does not accept packed rows"),
        ("opt", 64, {}, "does not keep its layers where a Llama does"),
    ],
)
def test_what_cannot_be_packed_says_why(kind: str, max_length: int, settings: dict[str, Any], reason: str) -> None:
    network = small_network(kind, **settings)
    request = PackingRequest(max_length, CPU, torch.float32)
    assert try_packing(network, request) is None
    with pytest.raises(ValueError, match=reason):
        try_packing(network, replace(request, wanted=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="cuda has a kernel here")
@pytest.mark.parametrize("device", ["mps", "cuda"])
def test_without_a_kernel_for_the_device_texts_are_padded(device: str) -> None:
    assert try_packing(small_network("llama"), PackingRequest(64, torch.device(device), torch.float32)) is None


def test_packing_that_is_turned_off_is_not_tried() -> None:
    assert try_packing(small_network("llama"), PackingRequest(64, CPU, torch.float32, wanted=False)) is None


def test_a_model_with_other_states_in_the_trial_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    def across_texts(query, key, value, pack, scaling, dropout=0.0):
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        return out.transpose(1, 2)

    monkeypatch.setattr(packed_attention, "attention", across_texts)
    llama = small_network("llama")
    with pytest.raises(ValueError, match="other states for packed rows"):
        try_packing(llama, PackingRequest(64, CPU, torch.float32, wanted=True))
    assert llama.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_trial_sees_a_scale_that_is_twice_too_large(monkeypatch: pytest.MonkeyPatch, dtype) -> None:
    right = packed_attention.attention

    def wrong(query, key, value, pack, scaling, dropout=0.0):
        return right(query, key, value, pack, 2 * (scaling or query.shape[-1] ** -0.5), dropout)

    monkeypatch.setattr(packed_attention, "attention", wrong)
    with pytest.raises(ValueError, match="other states for packed rows"):
        try_packing(small_network("llama"), PackingRequest(64, CPU, dtype, wanted=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_trial_sees_a_last_layer_without_rotary_embedding(monkeypatch: pytest.MonkeyPatch, dtype) -> None:
    monkeypatch.setattr(packed_forward, "_rotary_function", lambda _: lambda query, key, cos, sin: (query, key))
    packed = try_packing(small_network("llama"), PackingRequest(64, CPU, dtype))
    assert packed is not None
    assert not packed.last_token_only, "the layer of transformers itself is used instead"


@pytest.fixture
def gpu_without_flash(monkeypatch: pytest.MonkeyPatch) -> list[HeadShape]:
    """A GPU whose build of torch has no flash attention; the shapes of heads that it was tried with."""
    tried: list[HeadShape] = []

    def kernel(shape: HeadShape, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
        assert device.type == "cuda"
        tried.append(shape)
        return "per text", "flash attention does not work here: it is not in this build"

    monkeypatch.setattr(packed_forward, "choose_kernel", kernel)
    return tried


@pytest.mark.parametrize("bidirectional", [False, True])
def test_without_flash_attention_a_gpu_packs_text_by_text_and_says_so(
    gpu_without_flash: list[HeadShape], caplog: pytest.LogCaptureFixture, bidirectional: bool
) -> None:
    # As with the builds for Windows, and on Turing cards.
    network = small_network("llama")
    request = PackingRequest(64, torch.device("cuda"), torch.bfloat16, bidirectional=bidirectional)
    with caplog.at_level(logging.WARNING):
        packed = try_packing(network, request)
    assert packed is not None
    assert not packed.flash
    assert [r.getMessage() for r in caplog.records] == [
        "attention runs text by text: flash attention does not work here: it is not in this build"
    ]
    words = packing_in_words(network.config, request)
    assert words.startswith("packed, attention text by text: flash attention does not work here")


def test_a_float32_model_under_autocast_gets_the_kernel_of_what_it_computes_in(write_recipe, monkeypatch) -> None:
    # As with accel_configs/laptop_4bit.yaml. Flash attention has no float32.
    tried = []
    monkeypatch.setattr(packed_forward, "choose_kernel", lambda *shape: tried.append(shape[2]) or ("flash", ""))
    recipe = load_recipe(write_recipe(model__torch_dtype="float32"))
    model = build_classifier(recipe, LABELS, torch.device("cuda"), CPU, torch.bfloat16)
    assert tried == [torch.bfloat16]
    assert model.packed is not None
    assert model.packed.flash


def test_the_kernel_is_tried_with_the_heads_of_the_model_and_not_of_the_trial(
    gpu_without_flash: list[HeadShape],
) -> None:
    # As in open_llama_3b: flash attention wants a multiple of 8.
    config = AutoConfig.for_model("llama", hidden_size=3200, num_attention_heads=32, vocab_size=500, pad_token_id=0)
    packing_in_words(config, PackingRequest(64, torch.device("cuda"), torch.bfloat16))
    assert gpu_without_flash == [HeadShape(32, 32, 100, 100)]


def test_requested_packing_that_is_impossible_is_an_error(write_recipe, tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "windowed"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mistral", "sliding_window": 32}))
    recipe = write_recipe(model__model_name=str(folder), train__packing=True)
    with pytest.raises(UserError, match=r"train\.packing is true, but the layers of the model see only a part"):
        build(recipe)


def describe(network: Any) -> tuple[str, bool, bool]:
    """What packing changes: the choice of attention, the forward method of the last layer, and the registry."""
    replaced = "forward" in vars(network.base_model.layers[-1])
    return network.config._attn_implementation, replaced, ATTENTION_NAME in ALL_ATTENTION_FUNCTIONS.valid_keys()


@pytest.fixture
def nothing_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the models of other tests, which never detach: nothing is attached or registered."""
    monkeypatch.setattr(PackedForward, "_attached", 0)
    if ATTENTION_NAME in ALL_ATTENTION_FUNCTIONS.valid_keys():
        del ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME]


@pytest.mark.usefixtures("nothing_attached")
def test_detaching_restores_the_model() -> None:
    network = small_network("llama")
    ids = torch.tensor([TEXTS[0]])
    with torch.no_grad():
        before, states = describe(network), network(ids).logits
        assert before == ("sdpa", False, False)
        packed = PackedForward(network).attach()
        assert describe(network) == (ATTENTION_NAME, True, True)
        assert packed.attach() is packed, "attaching again changes nothing"
        packed.states(ids[0], [len(TEXTS[0])])
        packed.detach()
        assert describe(network) == before
        assert torch.equal(network(ids).logits, states)
        packed.detach()
        assert describe(network) == before, "detaching again changes nothing"
        assert packed.attach().states(ids[0], [len(TEXTS[0])]).shape == (1, 64)
        packed.detach()


@pytest.mark.usefixtures("nothing_attached")
def test_two_models_are_attached_independently() -> None:
    first, second = small_network("llama"), small_network("qwen2")
    packed = [PackedForward(network).attach() for network in (first, second)]
    row, lengths = packed_row(TEXTS), lengths_of(TEXTS)
    with torch.no_grad():
        before = packed[1].states(row, lengths)
        packed[0].detach()
        assert describe(first)[:2] == ("sdpa", False)
        # The second model still needs the registered function.
        assert describe(second) == (ATTENTION_NAME, True, True)
        assert torch.equal(packed[1].states(row, lengths), before)
        packed[1].detach()
    assert describe(second) == ("sdpa", False, False)


@needs_real_data
def test_on_real_news_packed_and_single_texts_agree(write_recipe) -> None:
    recipe = write_recipe(model__model_name=str(STORY_LLAMA), model__lora_dropout=0.0)
    rows = read_rows(REUTERS / "test.csv")[:40]
    tokenizer = load_tokenizer(load_recipe(recipe).model)
    texts = [list(t) for t in encode_texts([f"{r['title']}\n{r['body']}" for r in rows], tokenizer, 512)]
    fast, plain = build_with_adapter(recipe), build_with_adapter(recipe, "packing=false")
    expected, gradients = logits_and_gradients(plain, [(torch.tensor([t]), [len(t)]) for t in texts])
    found, others = logits_and_gradients(fast, [(packed_row(texts), lengths_of(texts))])
    assert torch.allclose(found, expected, atol=1e-5)
    assert_same_gradients(others, gradients)
