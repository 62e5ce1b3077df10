from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcls.common.user_error import UserError
from llmcls.data import encoding
from llmcls.data.encoding import encode, encode_texts, join_text_fields, special_ids, whole_texts
from llmcls.data.tables import read_table
from llmcls.recipe.schema import DataSection
from tests.helpers import write_csv

TEXT = "a sturdy kettle, loved by the whole family and by our terrier " * 6
LABELS = ["books", "music"]


@pytest.fixture
def tokenizer(tiny_llama: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture
def data() -> DataSection:
    return DataSection("d", "train.csv", LABELS, max_length=32)


def test_empty_text_fields_are_skipped_when_joined() -> None:
    columns = [["Head", " ", "Head", None], ["", "Body", "Body ", None]]
    assert join_text_fields(columns, "\n") == ["Head", "Body", "Head\nBody", ""]


def test_whole_texts_are_those_of_the_named_columns(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "a.csv", [{"title": "T", "body": "B", "other": "x"}, {"title": "", "body": "C", "other": ""}]
    )
    data = DataSection("d", str(path), LABELS, text_fields=["body", "title"], text_separator=" | ")
    assert whole_texts(read_table(path), data) == ["B | T", "C"]


def test_a_text_is_never_empty_and_is_cut_at_its_end(tokenizer: Any) -> None:
    short, long = encode_texts(["", TEXT], tokenizer, 8)
    assert short == [tokenizer.bos_token_id]
    assert long == tokenizer(TEXT)["input_ids"][:8]


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.characters = tokenizer, 0

    def __call__(self, texts: Any, **options: Any) -> Any:
        self.characters += sum(map(len, texts)) if isinstance(texts, list) else 0
        return self.tokenizer(texts, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


@pytest.mark.parametrize(
    "changes", [{}, {"prompt": "{text} is"}, {"truncation": "windows", "max_windows": 3, "window_overlap": 4}]
)
def test_of_a_very_long_text_only_the_beginning_is_tokenized(
    tokenizer: Any, data: DataSection, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = np.random.default_rng(0).choice(["a novel", "an album,", "  the", "rake\n", "it's 1999"], 40_000)
    texts = [" ".join(words), " " * 300_000 + "a novel at last", "short", "x" * 300_000]
    recipe, counting = replace(data, max_length=16, **changes), Counting(tokenizer)
    found = encode(texts, counting, recipe, [])
    # The white space alone is looked at again, as a whole, where it is no token.
    assert counting.characters < 400_000
    monkeypatch.setattr(encoding, "_REACH", 10**9)
    assert found == encode(texts, tokenizer, recipe, [])


def test_white_space_without_tokens_does_not_hide_what_follows(data: DataSection) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    rust = Tokenizer(models.WordLevel({"[UNK]": 0, "rake": 1}, unk_token="[UNK]"))
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=rust, unk_token="[UNK]", pad_token="[UNK]")
    assert encode_texts([" " * 5000 + "rake rake", "rake"], words, 4) == [[1, 1], [1]]


def test_special_tokens_are_found_on_both_sides(tokenizer: Any) -> None:
    assert special_ids(tokenizer) == ([tokenizer.bos_token_id], [])


def test_a_prompt_of_the_text_alone_gives_the_plain_encoding(tokenizer: Any, data: DataSection) -> None:
    texts = [TEXT, "short", ""]
    plain = encode_texts(texts, tokenizer, 32)
    assert encode(texts, tokenizer, replace(data, prompt="{text}"), LABELS) == plain
    assert encode(texts, tokenizer, data, LABELS) == plain


def test_head_and_tail_keep_both_ends(tokenizer: Any, data: DataSection) -> None:
    (found,) = encode([TEXT], tokenizer, replace(data, truncation="head_tail"), LABELS)
    body = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert len(found) == 32
    assert found[0] == tokenizer.bos_token_id
    assert found[1:17] == body[:16]
    assert found[17:] == body[-15:]


@pytest.mark.parametrize("overlap", [0, 8])
def test_windows_cover_the_text(tokenizer: Any, data: DataSection, overlap: int) -> None:
    wanted = replace(data, truncation="windows", window_overlap=overlap, max_windows=99)
    body = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    (found,) = encode([TEXT], tokenizer, wanted, LABELS)
    windows = [found[i : i + 32] for i in range(0, len(found), 32)]
    assert all(len(w) == 32 for w in windows[:-1])
    assert all(w[0] == tokenizer.bos_token_id for w in windows)
    joined = windows[0][1:]
    for window in windows[1:]:
        assert window[1 : 1 + overlap] == joined[len(joined) - overlap :]
        joined += window[1 + overlap :]
    assert joined == body
    (few,) = encode([TEXT], tokenizer, replace(wanted, max_windows=2), LABELS)
    assert few == found[:64]


def test_the_prompt_stays_whole_around_a_cut_text(tokenizer: Any, data: DataSection) -> None:
    wanted = replace(
        data, prompt="Labels:\n{labels}\nText: {text}\nAnswer:", label_descriptions={"music": "songs"}, max_length=64
    )
    (found,) = encode([TEXT], tokenizer, wanted, LABELS)
    words = tokenizer.decode(found, skip_special_tokens=True)
    assert words.startswith("Labels:\n- books\n- music: songs\nText: a sturdy kettle")
    assert words.endswith("\nAnswer:")
    assert len(found) == 64


def test_a_text_may_stand_twice_in_a_prompt_and_is_cut_alike(tokenizer: Any, data: DataSection) -> None:
    wanted = replace(data, prompt='"{text}" Again: "{text}" It is about:', max_length=40)
    short, cut = encode(["a kettle", TEXT], tokenizer, wanted, LABELS)
    assert tokenizer.decode(short, skip_special_tokens=True) == '"a kettle" Again: "a kettle" It is about:'
    first, second = tokenizer.decode(cut, skip_special_tokens=True).split('"')[1::2]
    assert first
    assert first == second == TEXT[: len(first)]
    assert len(cut) in (39, 40)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompt": "{text}" + " word" * 40}, "leaves too little for the text"),
        ({"prompt": "{text}", "label_descriptions": {"musik": "x"}}, "'musik' is not a label; did you mean 'music'"),
    ],
)
def test_prompts_that_cannot_work_are_refused(tokenizer: Any, data: DataSection, changes, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        encode(["text"], tokenizer, replace(data, **changes), LABELS)
