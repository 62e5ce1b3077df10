"""Encoding: a row's text fields joined, put into the prompt, and turned into token ids no longer than allowed."""

from __future__ import annotations

import difflib
from typing import Any

from llmcls.common.user_error import UserError
from llmcls.data.tables import cell_text
from llmcls.recipe.schema import DataSection


def join_text_fields(columns: list[list[Any]], separator: str) -> list[str]:
    """One text per row: the fields that are not empty, joined."""
    cleaned = [[cell_text(cell).strip() for cell in column] for column in columns]
    return [separator.join(cell for cell in row if cell) for row in zip(*cleaned, strict=True)]


def whole_texts(table: Any, data: DataSection) -> list[str]:
    """The joined texts of a table, in memory."""
    return join_text_fields([table[column][:] for column in data.text_columns()], data.text_separator)


def encode_texts(texts: list[str], tokenizer: Any, max_length: int) -> list[list[int]]:
    """Token ids of each text, cut to ``max_length``; never empty, since a text must have a last token."""
    encoded = tokenizer(texts, truncation=True, max_length=max_length, return_attention_mask=False)["input_ids"]
    stand_in = _stand_in(tokenizer)
    return [ids if ids else [stand_in] for ids in encoded]


def encode(texts: list[str], tokenizer: Any, data: DataSection, label_names: list[str]) -> list[list[int]]:
    """Token ids of each text as the recipe wants them: prompted, and cut by its rule.

    Returns
    -------
    At most ``max_length`` ids a text; with ``truncation: windows``, whole windows of ``max_length`` ids one after
    the other, the last one shorter, each with the prompt and the special tokens around its part of the text.

    Raises
    ------
    UserError: the prompt leaves no room for a text; a description of a label that is none.

    Notes
    -----
    Keeping head and tail: Sun et al. 2019, "How to Fine-Tune BERT for Text Classification?", section 5.3.1, in
    halves. The prompt is tokenized apart from the text, so that cutting the text leaves it whole.
    """
    if data.prompt is None and data.truncation == "head":
        return encode_texts(texts, tokenizer, data.max_length)
    lead, trail = special_ids(tokenizer)
    before, after = _prompt_ids(tokenizer, data, label_names)
    before, after = lead + before, after + trail
    room = data.max_length - len(before) - len(after)
    if room < 1 + (data.window_overlap if data.truncation == "windows" else 0):
        raise UserError(
            f"data.max_length is {data.max_length}; prompt and special tokens take {len(before) + len(after)} of it, "
            "which leaves too little for the text; shorten data.prompt or data.window_overlap, or raise max_length"
        )
    bodies = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    stand_in = _stand_in(tokenizer)
    encoded = []
    for body in bodies:
        parts = [before + part + after for part in _parts(body, room, data)]
        encoded.append([i for part in parts for i in part] or [stand_in])
    return encoded


def special_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, mask = encoded["input_ids"], encoded["special_tokens_mask"]
    if all(mask):
        raise ValueError("the tokenizer knows no letter a")
    first, last = mask.index(0), len(mask) - mask[::-1].index(0)
    return ids[:first], ids[last:]


def _parts(body: list[int], room: int, data: DataSection) -> list[list[int]]:
    if len(body) <= room:
        return [body]
    if data.truncation == "head":
        return [body[:room]]
    if data.truncation == "head_tail":
        head = room - room // 2
        return [body[:head] + body[len(body) - room // 2 :]]
    stride = room - data.window_overlap
    # The last window begins where the one before it does not reach the end.
    starts = range(0, max(1, len(body) - data.window_overlap), stride)
    return [body[start : start + room] for start in starts[: data.max_windows]]


def _prompt_ids(tokenizer: Any, data: DataSection, label_names: list[str]) -> tuple[list[int], list[int]]:
    descriptions = data.label_descriptions or {}
    for name in descriptions:
        if name not in label_names:
            near = difflib.get_close_matches(name, label_names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the labels are {', '.join(label_names[:20])}"
            raise UserError(f"data.label_descriptions: {name!r} is not a label; {hint}")
    if data.prompt is None:
        return [], []
    words = [f"{n}: {descriptions[n]}" if n in descriptions else n for n in label_names]
    listed = "\n".join(f"- {w}" for w in words) if descriptions else ", ".join(words)
    before, after = (part.replace("{labels}", listed) for part in data.prompt.split("{text}"))

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    return ids(before), ids(after)


def _stand_in(tokenizer: Any) -> int:
    known = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return int(next(token for token in known if token is not None))
