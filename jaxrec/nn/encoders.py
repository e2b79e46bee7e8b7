"""The encoder that a published model's `config.json` asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxrec.nn.bert import BERT, ROBERTA, BidirectionalEncoder
from jaxrec.nn.modernbert import ModernBERT
from jaxrec.nn.t5 import T5
from jaxrec.nn.tensors import check_sizes

ENCODERS: Mapping[str, type[BidirectionalEncoder]] = dict.fromkeys(("bert", *ROBERTA), BERT) | {"modernbert": ModernBERT, "t5": T5}
"""By the `model_type` in a `config.json`."""


def from_config(config: Mapping[str, Any]) -> BidirectionalEncoder:
    """The hyper-parameters in a Hugging Face `config.json`, of a T5 those of its encoder alone; `from_hf` of what it gives reads the tensors beside it.

    Raises:
      ValueError: it is of another architecture, lacks an entry, or asks for what is not here; names it.
    """
    if (kind := str(config.get("model_type", ""))) not in ENCODERS:
        raise ValueError(f"config.json says model_type={kind!r}; the encoders known are {', '.join(ENCODERS)}")
    check_sizes(config)
    model = ENCODERS[kind].from_config(config)
    return model.encoder if isinstance(model, T5) else model
