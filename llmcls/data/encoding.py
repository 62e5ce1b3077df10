"""Encoding texts: joins the text columns of a row, inserts the text into the prompt, and tokenizes and truncates it."""

from __future__ import annotations

import re
from typing import Any

from llmcls.common.nearest import nearest
from llmcls.common.user_error import UserError
from llmcls.data.tables import cell_text
from llmcls.recipe.schema import DataSection

# Characters of a very long text that are tokenized for each token that is kept; a token has about five.
_REACH = 32


def join_text_fields(columns: list[list[Any]], separator: str) -> list[str]:
    """Join the text columns of each row. Cells are stripped, and empty ones are skipped.

    Parameters
    ----------
    columns : list of list
        The cells of each column, [columns][rows].
    separator : str

    Returns
    -------
    list of str, one per row

    Examples
    --------
    >>> join_text_fields([["A novel", None], ["by a debut author ", "in large print"]], ", ")
    ['A novel, by a debut author', 'in large print']
    """
    cleaned = [[cell_text(cell).strip() for cell in column] for column in columns]
    return [separator.join(cell for cell in row if cell) for row in zip(*cleaned, strict=True)]


def whole_texts(table: Any, data: DataSection) -> list[str]:
    """The joined texts of all rows of a table, in memory."""
    return join_text_fields([table[column][:] for column in data.text_columns()], data.text_separator)


def encode_texts(texts: list[str], tokenizer: Any, max_length: int) -> list[list[int]]:
    """Tokenize texts with special tokens.

    Parameters
    ----------
    texts : list of str
    tokenizer : PreTrainedTokenizerBase
    max_length : int
        Longer texts keep their first tokens.

    Returns
    -------
    list of list of int
        At least one id per text, because the model reads the last token of each text.
    """
    encoded = _first_ids(texts, tokenizer, max_length, truncation=True, max_length=max_length)
    fallback = [_fallback_token(tokenizer)]
    return [ids or fallback for ids in encoded]


def encode(texts: list[str], tokenizer: Any, data: DataSection, label_names: list[str]) -> list[list[int]]:
    """Tokenize texts with the prompt and the truncation rule of a recipe.

    Parameters
    ----------
    texts : list of str
    tokenizer : PreTrainedTokenizerBase
    data : DataSection
    label_names : list of str
        Inserted into the prompt for ``{labels}``.

    Returns
    -------
    list of list of int
        Between 1 and ``max_length`` ids per text. With ``truncation: windows``, the windows of the text in order: each
        has the prompt and the special tokens around its part of the text, and all but the last one have
        ``max_length`` ids.

    Raises
    ------
    UserError
        If the prompt leaves no room for a text, or ``label_descriptions`` contains an unknown label.

    Notes
    -----
    ``head_tail`` keeps the first and the last half of what fits: Sun et al. 2019, "How to Fine-Tune BERT for Text
    Classification?", section 5.3.1. The prompt is tokenized separately from the text, so that truncation of the text
    never shortens the prompt. A prompt may contain the text twice: in a decoder, the tokens of the second copy see the
    whole text (Springer et al. 2024, "Repetition Improves Language Model Embeddings").
    """
    if data.prompt is None and data.truncation == "head":
        return encode_texts(texts, tokenizer, data.max_length)
    lead, trail = special_ids(tokenizer)
    first, *others = _prompt_ids(tokenizer, data, label_names)
    first, others[-1] = lead + first, others[-1] + trail
    fixed = len(first) + sum(map(len, others))
    room = (data.max_length - fixed) // len(others)
    if room < 1 + (data.window_overlap if data.truncation == "windows" else 0):
        raise UserError(
            f"data.max_length is {data.max_length}; prompt and special tokens take {fixed} tokens, "
            "which leaves too little for the text; shorten data.prompt or data.window_overlap, or raise max_length"
        )
    bodies = _first_ids(texts, tokenizer, _reached(room, data), add_special_tokens=False)
    fallback = [_fallback_token(tokenizer)]
    encoded = []
    for body in bodies:
        ids: list[int] = []
        for part in _truncate(body, room, data):
            ids += first
            for following in others:
                ids += part + following
        encoded.append(ids or fallback)
    return encoded


def _first_ids(texts: list[str], tokenizer: Any, tokens: int | None, **options: Any) -> list[list[int]]:
    """Token ids of texts; of a very long text at least the first ``tokens``, because the others would be cut.

    Tokenizers split at white space before anything else, so the first ids do not depend on what follows. Only in a word
    of more than ``_REACH * tokens`` characters could they.
    """
    heads = texts if tokens is None else [_head(text, _REACH * tokens) for text in texts]
    found: list[list[int]] = tokenizer(heads, return_attention_mask=False, **options)["input_ids"]
    # A long run of white space, for example, can be no token at all.
    few = [i for i, ids in enumerate(found) if len(heads[i]) < len(texts[i]) and len(ids) < (tokens or 0)]
    if few:
        whole = tokenizer([texts[i] for i in few], return_attention_mask=False, **options)["input_ids"]
        for i, ids in zip(few, whole, strict=True):
            found[i] = ids
    return found


def _head(text: str, characters: int) -> str:
    """The first words of a text: as many characters, and the rest of the last word if it is not as long again."""
    if len(text) <= 2 * characters:
        return text
    space = re.compile(r"\s").search(text, characters, 2 * characters)
    return text[: space.start() if space else 2 * characters]


def _reached(room: int, data: DataSection) -> int | None:
    """Tokens of a text that decide what `_truncate` keeps, or None for all; one more shows that the text is cut."""
    if data.truncation == "head_tail":
        return None
    return room + 1 + (data.max_windows - 1) * (room - data.window_overlap) * (data.truncation == "windows")


def label_texts(label_names: list[str], data: DataSection) -> list[str]:
    """A text for each label: the words of its name and, if the recipe has one, its description.

    Examples
    --------
    >>> data = DataSection("mail", "train.csv", ["topic"], label_descriptions={"card_arrival": "where is my new card"})
    >>> label_texts(["card_arrival", "top-up/failed"], data)
    ['card arrival: where is my new card', 'top up failed']
    """
    descriptions = data.label_descriptions or {}
    words = [re.sub(r"[\W_]+", " ", name).strip() or name for name in label_names]
    return [f"{w}: {descriptions[n]}" if n in descriptions else w for w, n in zip(words, label_names, strict=True)]


def special_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer adds before and after a text.

    Raises
    ------
    ValueError
        If the tokenizer has no token for the letter "a", on which this is tried.
    """
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, mask = encoded["input_ids"], encoded["special_tokens_mask"]
    if all(mask):
        raise ValueError("the tokenizer has no token for the letter 'a'")
    first, last = mask.index(0), len(mask) - mask[::-1].index(0)
    return ids[:first], ids[last:]


def _truncate(body: list[int], room: int, data: DataSection) -> list[list[int]]:
    """The tokens of a text that are kept: one part of at most ``room`` tokens, or one part per window."""
    if len(body) <= room:
        return [body]
    if data.truncation == "head":
        return [body[:room]]
    if data.truncation == "head_tail":
        head = room - room // 2
        return [body[:head] + body[len(body) - room // 2 :]]
    stride = room - data.window_overlap
    # No window starts after one that reaches the end of the text.
    starts = range(0, max(1, len(body) - data.window_overlap), stride)
    return [body[start : start + room] for start in starts[: data.max_windows]]


def _prompt_ids(tokenizer: Any, data: DataSection, label_names: list[str]) -> list[list[int]]:
    """The token ids of the prompt's parts: what comes before, between and after the places of the text."""
    descriptions = data.label_descriptions or {}
    for name in descriptions:
        if name not in label_names:
            near = nearest(name, label_names)
            hint = f"did you mean {near!r}?" if near else f"the labels are {', '.join(label_names[:10])}"
            raise UserError(f"data.label_descriptions: {name!r} is not a label; {hint}")
    if data.prompt is None:
        return [[], []]
    entries = [f"{n}: {descriptions[n]}" if n in descriptions else n for n in label_names]
    label_list = "\n".join(f"- {entry}" for entry in entries) if descriptions else ", ".join(entries)
    parts = [part.replace("{labels}", label_list) for part in data.prompt.split("{text}")]
    return [tokenizer(part, add_special_tokens=False)["input_ids"] if part else [] for part in parts]


def _fallback_token(tokenizer: Any) -> int:
    """The token that replaces an empty text: begin of text, end of text or padding."""
    candidates = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return int(next(token for token in candidates if token is not None))
