"""The gate before any figure of speed: packed rows give what single texts do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from llmcls.common.user_error import UserError
from llmcls.data.labels import LabelSpace
from llmcls.model import packed_attention
from llmcls.model.build import build_classifier
from llmcls.model.classifier import Classifier
from llmcls.model.packed_forward import PackedForward, PackingRequest, try_packing
from llmcls.model.shrink import shrink
from llmcls.recipe.load import load_recipe
from tests.conftest import REUTERS, STORY_LLAMA, TOPICS, needs_real_data, read_rows

TEXTS = [list(range(3, 3 + n)) for n in (17, 1, 40, 5, 5, 64, 2)]
CPU = torch.device("cpu")


def build(recipe_path: Path, *overrides: str) -> Classifier:
    recipe = load_recipe(recipe_path, list(overrides))
    torch.manual_seed(0)
    model = build_classifier(recipe, LabelSpace(TOPICS, TOPICS, "multi_label_classification"), CPU)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                # It begins at zero, and the gradient of its partner would be zero too.
                parameter.normal_(0, 0.05)
    return model


def packed_row(texts: list[list[int]]) -> torch.Tensor:
    return torch.tensor([token for text in texts for token in text])


def padded_rows(texts: list[list[int]], pad: int = 0) -> torch.Tensor:
    longest = max(map(len, texts))
    return torch.tensor([text + [pad] * (longest - len(text)) for text in texts])


def logits_and_gradients(model: Classifier, passes: list[tuple[torch.Tensor, list[int]]]):
    """Logits of all passes, and the gradients of a loss over them."""
    model.zero_grad()
    logits = torch.cat([model(input_ids, lengths) for input_ids, lengths in passes])
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    (logits * weights).sum().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "overrides",
    [[], ["gradient_checkpointing=true"], ["lora_r=0"], ["use_4bit=true"], ["pooling=mean"], ["pooling=attention"]],
)
def test_packed_padded_sorted_and_single_texts_agree(write_recipe, overrides: list[str]) -> None:
    recipe = write_recipe(model__lora_dropout=0.0, model__lora_target_modules=["all-linear"])
    fast, plain = build(recipe, *overrides), build(recipe, "packing=false", *overrides)
    assert fast.packs
    assert fast.packed.last_token_only == (fast.pooling == "last")
    assert not plain.packs
    # Trying a model must not change what is drawn for it afterwards.
    both = zip(fast.parameters(), plain.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in both if a.requires_grad)
    fast.train()
    plain.train()
    lengths = [len(t) for t in TEXTS]
    expected, gradients = logits_and_gradients(plain, [(torch.tensor([t]), [len(t)]) for t in TEXTS])
    half = [TEXTS[:3], TEXTS[3:]]
    ways = {
        "packed": (fast, [(packed_row(TEXTS), lengths)]),
        "packed in two": (fast, [(packed_row(part), [len(t) for t in part]) for part in half]),
        "padded": (plain, [(padded_rows(TEXTS), lengths)]),
    }
    assert len(gradients) >= 15
    for name, (model, passes) in ways.items():
        logits, found = logits_and_gradients(model, passes)
        assert torch.allclose(logits, expected, atol=1e-5), name
        assert found.keys() == gradients.keys(), name
        for parameter, gradient in gradients.items():
            scale = max(1.0, float(gradient.abs().max()))
            assert torch.allclose(found[parameter], gradient, atol=1e-5 * scale), (name, parameter)


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
def test_bidirectional_texts_agree_packed_and_alone_and_see_what_follows(write_recipe, pooling: str) -> None:
    recipe = write_recipe(model__bidirectional=True, model__pooling=pooling, model__lora_dropout=0.0)
    model = build(recipe).eval()
    lengths = [len(t) for t in TEXTS]
    expected, gradients = logits_and_gradients(model, [(torch.tensor(t), [len(t)]) for t in TEXTS])
    logits, found = logits_and_gradients(model, [(packed_row(TEXTS), lengths)])
    assert torch.allclose(logits, expected, atol=1e-5)
    assert all(torch.allclose(found[n], g, atol=1e-5 * max(1.0, float(g.abs().max()))) for n, g in gradients.items())
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
    model = build(write_recipe()).eval()
    lengths = [len(t) for t in TEXTS]
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
    model(packed_row(TEXTS), [len(t) for t in TEXTS])
    tokens = sum(map(len, TEXTS))
    # Two layers: the first at every token, the last at one token a text.
    assert seen == [(tokens, tokens), (len(TEXTS), tokens)]


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "olmo", "smollm3", "gemma"])
def test_other_decoders_are_packed_or_left_as_they_were(kind: str) -> None:
    config = shrink(AutoConfig.for_model(kind, vocab_size=500, pad_token_id=0))
    torch.manual_seed(0)
    network = AutoModelForSequenceClassification.from_config(config).eval()
    texts = [[7, 8, 9, 10], [11, 12], [13] * 9]
    with torch.no_grad():
        expected = torch.cat([Classifier(network)(torch.tensor([t]), [len(t)]) for t in texts])
        packed = try_packing(network, PackingRequest(64, CPU, torch.float32))
        if kind in ("llama", "mistral", "qwen2", "qwen3", "gemma"):
            assert packed is not None
            assert packed.last_token_only
        lengths = [len(t) for t in texts]
        found = Classifier(network, packed)(packed_row(texts) if packed else padded_rows(texts), lengths)
    assert torch.allclose(found, expected, atol=1e-5)


def test_what_cannot_be_packed_says_why() -> None:
    def refused(reason: str, kind: str, max_length: int = 64, **more) -> None:
        network = AutoModelForSequenceClassification.from_config(shrink(AutoConfig.for_model(kind, **more)))
        request = PackingRequest(max_length, CPU, torch.float32)
        assert try_packing(network, request) is None
        with pytest.raises(ValueError, match=reason):
            try_packing(network, replace(request, wanted=True))

    refused("is not a causal decoder", "bert")
    refused("caps its attention scores", "gemma2", vocab_size=500, pad_token_id=0)
    refused("only a part of the text", "mistral", 128, vocab_size=500, sliding_window=64, pad_token_id=0)
    llama = AutoModelForSequenceClassification.from_config(shrink(AutoConfig.for_model("llama", vocab_size=500)))
    for device in ("mps", "cuda"):
        assert try_packing(llama, PackingRequest(64, torch.device(device), torch.float32)) is None


def test_a_model_that_differs_when_tried_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    def across_texts(query, key, value, pack, scaling, dropout=0.0):
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        return out.transpose(1, 2)

    monkeypatch.setattr(packed_attention, "attention", across_texts)
    llama = AutoModelForSequenceClassification.from_config(shrink(AutoConfig.for_model("llama", vocab_size=500)))
    with pytest.raises(ValueError, match="other states for packed rows"):
        try_packing(llama, PackingRequest(64, CPU, torch.float32, wanted=True))
    assert llama.config._attn_implementation == "sdpa"


def test_packing_that_was_asked_for_and_cannot_be_had_is_a_mistake(write_recipe, tiny_llama: Path) -> None:
    import json
    import shutil

    folder = tiny_llama.parent / "windowed"
    if not folder.exists():
        shutil.copytree(tiny_llama, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "mistral", "sliding_window": 32}))
    recipe = write_recipe(model__model_name=str(folder), train__packing=True)
    with pytest.raises(UserError, match=r"train\.packing is true, but the layers of the model see only a part"):
        build(recipe)


def test_on_a_gpu_the_kernel_gets_tokens_first_and_the_right_boundaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel runs on GPUs only, so its arguments are checked against a reference that takes the same ones."""
    import torch.nn.attention.varlen as varlen

    def reference(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
        assert max_k == max(len(t) for t in TEXTS)
        outs = []
        for i in range(len(cu_q) - 1):
            parts = (q[cu_q[i] : cu_q[i + 1]], k[cu_k[i] : cu_k[i + 1]], v[cu_k[i] : cu_k[i + 1]])
            one = torch.nn.functional.scaled_dot_product_attention(
                *(part.transpose(0, 1)[None].float() for part in parts), is_causal=window_size == (-1, 0), scale=scale,
                enable_gqa=enable_gqa,
            )  # fmt: skip
            outs.append(one[0].transpose(0, 1))
        return torch.cat(outs)

    class OnGpu(torch.Tensor):
        @property
        def device(self):
            return torch.device("cuda")

    called = []
    monkeypatch.setattr(varlen, "varlen_attn", lambda *a, **k: called.append(a) or reference(*a, **k).to(a[0].dtype))
    tokens = sum(map(len, TEXTS))
    for queries, causal in ((tokens, True), (len(TEXTS), True), (tokens, False)):
        lengths = [len(t) for t in TEXTS]
        plain, pack = (packed_attention.make_pack(lengths, CPU, causal, flash) for flash in (False, True))
        shapes = [(1, 4, queries, 8), (1, 2, tokens, 8), (1, 2, tokens, 8)]
        query, key, value = (torch.randn(shape).bfloat16() for shape in shapes)
        expected = packed_attention.attention(query, key, value, plain, 0.3)
        found = packed_attention.attention(query.as_subclass(OnGpu), key, value, pack, 0.3)
        assert found.shape == (1, queries, 4, 8)
        assert torch.allclose(found.as_subclass(torch.Tensor).float(), expected.float(), atol=1e-2)
    assert len(called) == 3
    # Flash attention knows no float32: there every text is taken by itself.
    found = packed_attention.attention(query.float().as_subclass(OnGpu), key.float(), value.float(), pack, 0.3)
    assert found.shape == (1, tokens, 4, 8)
    assert len(called) == 3


@needs_real_data
def test_on_real_news_packed_and_single_texts_agree(write_recipe) -> None:
    from llmcls.data.encoding import encode_texts
    from llmcls.model.pretrained import load_tokenizer

    recipe = write_recipe(model__model_name=str(STORY_LLAMA), model__lora_dropout=0.0)
    rows = read_rows(REUTERS / "test.csv")[:40]
    tokenizer = load_tokenizer(load_recipe(recipe).model)
    texts = [list(t) for t in encode_texts([f"{r['title']}\n{r['body']}" for r in rows], tokenizer, 512)]
    fast, plain = build(recipe), build(recipe, "packing=false")
    expected, gradients = logits_and_gradients(plain, [(torch.tensor([t]), [len(t)]) for t in texts])
    found, others = logits_and_gradients(fast, [(packed_row(texts), [len(t) for t in texts])])
    assert torch.allclose(found, expected, atol=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(others[name], gradient, atol=1e-5 * max(1.0, float(gradient.abs().max()))), name
