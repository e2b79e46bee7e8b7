"""Why a document answers a query: which of its tokens answered each token of the query, in the terminal and as a page.

    score = sum over query tokens i of max over document tokens j of <q_i, d_j>

Each term of the sum has one document token behind it; a token is what has a vector, a word piece or a whole word. `Explanation.text` prints a line for
each; `explain_page.page` makes one file of it, without outside parts.
"""

from __future__ import annotations

import bisect
import difflib
import functools
import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.data.passages import Passages
from jaxrec.data.tokenizers import MARKS, Frame, bert_frame, tokenize
from jaxrec.method import Encoder, Vectors
from jaxrec.methods.late_interaction.colbert import ColBERT
from jaxrec.methods.late_interaction.colberter import APART
from jaxrec.param import Tree

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MASK = "[MASK]"
SHOWN = {MARKS["query"]: "[Q]", MARKS["document"]: "[D]"}
BEGINS = ("\u0120", "\u2581")  # what tokens begin with that begin a word, in tokenizers of language models
BLANK = "\u2423"  # a token of space alone
NO_WORD = "[no word]"  # what a document is compared by that has none
CONTEXT = 3  # words on either side of an answer
CLOSING, OPENING, JOINING = {*",.;:!?)]}%"}, {*"([{$#"}, {*"-/'’_@"}
EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, eq=False)
class Explanation:
    """A query and a document, token by token.

    Attributes:
      query: [N] word pieces, or whole words.
      document: [M] likewise, each as often as the text has it.
      similarity: [N, M] float32; -inf at document tokens that are not compared (punctuation), and between a word and a whole text.
      name: of the document.
    """

    query: tuple[str, ...]
    document: tuple[str, ...]
    similarity: np.ndarray
    name: str = ""

    @functools.cached_property
    def answers(self) -> np.ndarray:
        """[N] the document token most similar to each query token, the first of equal ones; -1 where none is compared."""
        if not self.compared.any():
            return np.full(len(self.query), -1)
        return self.similarity.argmax(axis=1)

    @functools.cached_property
    def scores(self) -> np.ndarray:
        """[N] what each query token adds to the score."""
        return self.similarity.max(axis=1, initial=-np.inf)

    @functools.cached_property
    def compared(self) -> np.ndarray:
        """[M] bool, False for document tokens that are left out."""
        return np.any(self.similarity > -np.inf, axis=0, keepdims=True)[0] if len(self.query) else np.ones(len(self.document), bool)

    @property
    def total(self) -> float:
        """The MaxSim score: -inf of a document without tokens, 0 of a query without."""
        if len(self.query) and not self.compared.any():
            return float("-inf")
        return float(self.scores.sum())

    @property
    def expansion(self) -> float:
        """The part of the score that the [MASK] tokens of query augmentation bring."""
        return float(sum(score for token, score in zip(self.query, self.scores, strict=True) if token == MASK))

    def text(self, width: int | None = None) -> str:
        """One line per query token: the token, its score as a bar, and the document token that answered it, in its context.

        Args:
          width: of a line, in columns; None: the terminal's.
        """
        width = width or shutil.get_terminal_size((120, 24)).columns
        labels = [_plain(label) for label in labels_of(self.query)]
        column = max([5, *(_columns(label) for label in labels)])
        room, lines = max(12, width - column - 30), []
        most = max(self.scores.max(initial=0), 1e-9)
        for label, score, answer in zip(labels, self.scores, self.answers, strict=True):
            found = "(no token is compared)" if answer < 0 else _clip(context_of(self.document, int(answer)), room)
            lines.append(f"{label}{' ' * (column - _columns(label))}  {score:7.3f}  {bar(score / most, 16)}  {found}".rstrip())
        words = _plain(words_of(self.query))
        head = [f"query     {words}", *([f"document  {_plain(self.name)}"] if self.name else []), f"score     {self.summary()}"]
        return "\n".join([*head, "", *lines])

    def summary(self) -> str:
        """The total, and where it comes from."""
        masks = self.query.count(MASK)
        if not masks or not np.isfinite(self.total):
            return f"{self.total:.3f} from {len(self.query)} query tokens"
        share = f" ({self.expansion / self.total:.0%})" if self.total > 0 else ""
        own = f"{self.total - self.expansion:.3f} from {len(self.query) - masks} tokens of the query"
        return f"{self.total:.3f} = {own} + {self.expansion:.3f} from {masks} {MASK}{share}"


def explanation(
    query_tokens: Sequence[str],
    query_vectors: np.ndarray,
    document_tokens: Sequence[str],
    document_vectors: np.ndarray,
    *,
    compared: np.ndarray | None = None,
    name: str = "",
) -> Explanation:
    """From tokens and their vectors.

    Args:
      query_tokens: [N] word pieces.
      query_vectors: [N, D].
      document_tokens: [M] word pieces.
      document_vectors: [M, D].
      compared: [M] bool, False where a document token is shown and not compared; None: all are.
      name: of the document, to be shown.

    Raises:
      ValueError: tokens, vectors and `compared` do not go together, or a vector is not finite; says which.
    """
    queries, documents = np.asarray(query_vectors, np.float32), np.asarray(document_vectors, np.float32)
    for what, tokens, vectors in (("query", query_tokens, queries), ("document", document_tokens, documents)):
        if vectors.ndim != 2 or len(vectors) != len(tokens):
            raise ValueError(f"{len(tokens)} {what} tokens have vectors of shape {vectors.shape}; give one vector per token, [{len(tokens)}, D]")
    if queries.shape[1] != documents.shape[1]:
        raise ValueError(f"query vectors have {queries.shape[1]} dimensions, document vectors {documents.shape[1]}; encode both by the same model")
    kept = np.ones(len(documents), bool) if compared is None else np.asarray(compared, bool)
    if kept.shape != (len(documents),):
        raise ValueError(f"compared has shape {kept.shape}, and there are {len(documents)} document tokens")
    for what, tokens, vectors in (("query", query_tokens, queries), ("document", document_tokens, np.where(kept[:, None], documents, 0))):
        if (wrong := ~np.isfinite(vectors).all(axis=1)).any():
            place = int(wrong.argmax())
            raise ValueError(f"the vector of {what} token {place}, {tokens[place]!r}, is not finite; the model or its parameters are broken")
    similarity = queries @ np.where(kept[:, None], documents, 0).T  # [N, M]
    similarity = np.where(kept[None, :] & (similarity > -APART), similarity, np.float32(-np.inf))
    return Explanation(tuple(query_tokens), tuple(document_tokens), similarity, name)


def explain(
    system: Encoder, params: Tree, query_pieces: np.ndarray, document_pieces: np.ndarray, *, tokenizer: Tokenizer, frame: Frame | None = None, name: str = ""
) -> Explanation:
    """Encodes one query and one document, and explains their score.

    Args:
      system: gives one vector per word piece, or says as `ColBERT.pieces` does which of them a vector stands for.
      params: of the system.
      query_pieces: [Tq] int32, as `tokenize` gives them, padding included: a system may fill it up.
      document_pieces: [Td] int32.
      tokenizer: whose word pieces they are.
      frame: what stands around them; None: BERT's.
      name: of the document, to be shown.

    Raises:
      ValueError: the system gives another number of vectors than there are word pieces.
    """
    asked, found, *owners = jax.device_get(_encode(system, params, jnp.asarray(query_pieces)[None], jnp.asarray(document_pieces)[None]))
    for what, vectors, owner, pieces in (("query", asked, owners[0], query_pieces), ("document", found, owners[1], document_pieces)):
        if vectors.mask.shape != owner.shape[:2]:
            count = vectors.mask.shape[1]
            raise ValueError(f"{type(system).__name__} gives {count} vectors for the {len(pieces)} word pieces of a {what}; only one for each can be explained")
    frame = frame or bert_frame(tokenizer)
    tokens = [MASK if piece == frame.pad else _piece(tokenizer, frame, piece) for piece in query_pieces]  # padding that is compared stands for [MASK]
    first = {row: token for token, row in reversed(_tokens(tokens, owners[0][0]))}  # a word that occurs again has one vector
    kept = np.flatnonzero(asked.mask[0])
    length = int(np.flatnonzero(np.asarray(document_pieces) != frame.pad).max(initial=-1)) + 1
    shown = _tokens([_piece(tokenizer, frame, piece) for piece in document_pieces[:length]], owners[1][0])
    shown = [(NO_WORD, row) for row in np.flatnonzero(found.mask[0] & ~owners[1][0].any(axis=1)).tolist()] + shown
    rows = np.array([row for _, row in shown], int)
    return explanation(
        [first[row] for row in kept.tolist()],
        asked.values[0][kept],
        [token for token, _ in shown],
        found.values[0][rows],
        compared=found.mask[0][rows] & (rows >= 0),
        name=name,
    )


def explain_document(system: Encoder, params: Tree, data: Passages, query: str, document: str) -> Explanation:
    """Explains what a document of a collection scores for a query.

    Args:
      system: trained on `data`.
      params: of the system.
      data: the collection and its tokenizer.
      query: any text.
      document: outside id of a document of the collection.

    Raises:
      ValueError: the query has no text, or there is no such document; names those with similar ids.
    """
    if not query.strip():
        raise ValueError("the query has no text; ask something: --query 'TEXT'")
    collection, tokenizer, frame = data.collection(), data.tokenizer.get(), data.tokenizer.frame()
    if document not in collection.ids:
        near = difflib.get_close_matches(document, collection.ids, n=3)
        raise ValueError(f"there is no document {document!r}; ids are like {', '.join(near or collection.ids[:3])}")
    row = collection.ids.index(document)
    pieces, _ = tokenize(tokenizer, [query], data.query_length, "query", frame)
    title = collection.titles[row]
    name = f"{document}: {title}" if title else document
    return explain(system, params, pieces[0], data.tokens()["documents"][row], tokenizer=tokenizer, frame=frame, name=name)


@functools.partial(jax.jit, static_argnums=0)
def _encode(system: Encoder, params: Tree, query: jax.Array, document: jax.Array) -> tuple[Vectors, Vectors, jax.Array, jax.Array]:
    """Vectors of a query and of a document, and for both the pieces that each vector stands for, [1, V, T] bool."""
    batch: Mapping[str, Any] = {"query": query, "document": document}
    asked, found = (jnp.eye(ids.shape[1], dtype=bool)[None] for ids in (query, document))
    if isinstance(system, ColBERT):
        asked, found = system.pieces(query, document=False), system.pieces(document, document=True)
    with jax.default_matmul_precision("highest"):  # accelerators would round float32 products to tf32 or bfloat16
        return system.encode_query(params, batch), system.encode_item(params, batch), asked, found


def _tokens(pieces: Sequence[str], owner: np.ndarray) -> list[tuple[str, int]]:
    """(token, row of its vector, -1 for none) in the order of the text, the pieces of a word put together where they have one vector: `owner` [V, T]."""
    rows = np.where(owner.any(axis=0), owner.argmax(axis=0), -1)[: len(pieces)].tolist()
    tokens: list[tuple[str, int]] = []
    for place, (piece, row) in enumerate(zip(pieces, rows, strict=True)):
        if place and row >= 0 and row == rows[place - 1] and continues(pieces, place):
            tokens[-1] = tokens[-1][0] + spelled(piece), row
        else:
            tokens.append((piece, row))
    return tokens


def _piece(tokenizer: Tokenizer, frame: Frame, piece: int) -> str:
    """A token as BERT would write it: ##x continues a word, [x] is none of the text's."""
    token = tokenizer.id_to_token(int(piece))
    if token is None or token in SHOWN or tokenizer.token_to_id(MASK) is not None:
        return f"[{piece}]" if token is None else SHOWN.get(token, token)
    if piece in (*frame.query, *frame.document, frame.end, frame.pad):
        return f"[{token}]"
    text = tokenizer.decode([int(piece)], skip_special_tokens=False).strip() or BLANK  # the letters of byte-level tokens are not those of the text
    return text if token.startswith(BEGINS) else f"##{text}"


# --- words --------------------------------------------------------------------------------------------------------------------------


def special(token: str) -> bool:
    """Whether a token is none of a text's: [CLS], [MASK] ..."""
    return len(token) > 2 and token.startswith("[") and token.endswith("]")


def continues(tokens: Sequence[str], place: int) -> bool:
    """Whether a token is a piece ##x of the word before it."""
    return place > 0 and spelled(tokens[place]) != tokens[place] and not special(tokens[place - 1])


def spelled(token: str) -> str:
    """A word piece without the sign that it continues a word."""
    return token[2:] if token.startswith("##") and len(token) > 2 else token


def words_in(tokens: Sequence[str]) -> list[range]:
    """The tokens of each word."""
    starts = [place for place in range(len(tokens)) if not continues(tokens, place)]
    return [range(low, high) for low, high in zip(starts, [*starts, len(tokens)][1:], strict=True)]


def spaced(tokens: Sequence[str]) -> list[str]:
    """What stands before each token in running text: a space, or "" within a word, around marks that join or close, and within a number (0.88)."""
    before = []
    for place, token in enumerate(tokens):
        last = tokens[place - 1] if place else ""
        number = last in (",", ".") and place > 1 and tokens[place - 2].isdecimal() and token.isdecimal()
        glued = not place or continues(tokens, place) or number or token in CLOSING | JOINING or last in OPENING | JOINING
        before.append("" if glued else " ")
    return before


def words_of(tokens: Sequence[str]) -> str:
    """The running text of tokens, without the special ones."""
    own = [token for token in tokens if not special(token)]
    return "".join(space + spelled(token) for space, token in zip(spaced(own), own, strict=True))


def labels_of(tokens: Sequence[str]) -> list[str]:
    """Each token in its word, in quotes where the word has several: "as«pir»in"."""
    labels = [""] * len(tokens)
    for word in words_in(tokens):
        for place in word:
            before, after = ("".join(spelled(tokens[other]) for other in some) for some in (range(word.start, place), range(place + 1, word.stop)))
            labels[place] = f"{before}«{spelled(tokens[place])}»{after}" if len(word) > 1 else tokens[place]
    return labels


def context_of(tokens: Sequence[str], place: int) -> tuple[str, str, str]:
    """(what stands before, the token, what stands after), a few words of the running text, with an ellipsis where it goes on."""
    spaces = spaced(tokens)
    starts = [0, *(other for other, space in enumerate(spaces) if space), len(tokens)]
    own = bisect.bisect_right(starts, place) - 1
    low, high = starts[max(0, own - CONTEXT)], starts[min(len(starts) - 1, own + CONTEXT + 1)]
    before, after = ("".join(spaces[other] + spelled(tokens[other]) for other in some) for some in (range(low, place), range(place + 1, high)))
    return ("… " if low else "") + (before + spaces[place]).lstrip(), spelled(tokens[place]), after + (" …" if high < len(tokens) else "")


# --- the terminal -------------------------------------------------------------------------------------------------------------------


def bar(share: float, width: int) -> str:
    """A bar of so many columns, to an eighth of one."""
    eighths = round(min(max(float(np.nan_to_num(share, neginf=0.0)), 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (EIGHTHS[rest] if rest else "")).ljust(width)


def _plain(text: str) -> str:
    """Text that cannot steer a terminal."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def _columns(text: str) -> int:
    """Columns that a terminal needs for a text."""
    return sum(0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _clip(context: tuple[str, str, str], room: int) -> str:
    """`before«token»after`, cut at its ends to so many columns."""
    before, token, after = map(_plain, context)
    while before + after and _columns(before + token + after) + 2 > room:
        if _columns(before) >= _columns(after):
            before = "…" + before[2:] if len(before) > 1 else ""
        else:
            after = after[:-2] + "…" if len(after) > 1 else ""
    return f"{before}«{token}»{after}"
