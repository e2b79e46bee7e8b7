"""Where the sentences of a text end, by a rule."""

from __future__ import annotations

import re

# A line's end; or a full stop, closing quotes and brackets with it, before white space. Chinese and Japanese write none there.
_END = re.compile(r"(?=\s*\n)|[.!?…]+[\"'”’)\]]*(?=\s+(\S))|[。！？]+[”’」』）]*")
_NO_END = re.compile(r"(?:\b(?:[A-Z]|Dr|Mr|Mrs|Ms|Prof|St|No|Nos|Fig|Figs|Eq|Eqs|Sec|Ref|Refs|vs|al|cf|e\.g|i\.e))\.$")
_LONGEST = 8  # characters of what `_NO_END` matches, and one before


def sentence_ends(text: str) -> list[int]:
    """The places after the last character of each sentence, rising; the last is the length of the text, and white space belongs to the sentence after it.

    A sentence ends at the end of a line, and at a full stop, question or exclamation mark that something other than a lower-case letter follows.
    Initials and a few abbreviations (Dr., Fig., e.g.) end none. An empty text has no sentence.
    """
    ends: list[int] = []
    last = 0
    for match in _END.finditer(text):
        end = match.end()
        goes_on = (match[1] or "").islower() or _NO_END.search(text[max(last, end - _LONGEST) : end])
        if text[last:end].strip() and not goes_on:
            ends.append(end)
            last = end
    if text[last:].strip() or not ends:
        ends.append(len(text))
    else:
        ends[-1] = len(text)  # white space alone is no sentence
    return ends if text else []
