"""Beam search of Hugging Face `generate` over semantic IDs: the peer of `benchmarks.beam_search`.

Run by a Python with torch, transformers and numpy; reads one JSON line per request from standard input and answers each with one.

    {"open": FILE.npz, "model": {...}}              ->  {"opened": FILE}
    {"time": BEAMS, "constrained": true, "calls": N} ->  {"seconds": ..., "valid": share of IDs that are items'}

The model is T5 with random weights of the same sizes; its search is held to the catalogue by `prefix_allowed_tokens_fn` over a dict of prefixes.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration

PAD, END, START, FIRST = 0, 1, 2, 3


class Peer:
    """T5 and the catalogue's prefixes."""

    def __init__(self, file: str, model: dict[str, Any]):
        with np.load(file) as arrays:
            codes, history = arrays["codes"], arrays["history"]  # [N, H], [B, T] items 1..N
        widths = codes.max(axis=0) + 1
        tokens = codes + FIRST + np.cumsum([0, *widths[:-1]])
        self.levels = codes.shape[1]
        torch.manual_seed(0)
        self.model = T5ForConditionalGeneration(
            T5Config(
                vocab_size=FIRST + int(widths.sum()),
                d_model=model["dim"],
                d_ff=model["hidden"],
                d_kv=model["head"],
                num_heads=model["heads"],
                num_layers=model["layers"],
                num_decoder_layers=model["layers"],
                pad_token_id=PAD,
                eos_token_id=END,
                decoder_start_token_id=START,
            )
        ).eval()
        self.input = torch.from_numpy(tokens[history - 1].reshape(len(history), -1))
        self.known = set(map(tuple, tokens.tolist()))
        children: dict[tuple[int, ...], set[int]] = {}
        for row in self.known:
            for level in range(self.levels):
                children.setdefault(row[:level], set()).add(row[level])
        self.children = {prefix: sorted(codes) for prefix, codes in children.items()}

    @torch.inference_mode()
    def generate(self, beams: int, constrained: bool) -> torch.Tensor:
        allowed = (lambda _, written: self.children.get(tuple(written.tolist()[1:]), [END])) if constrained else None
        return self.model.generate(
            input_ids=self.input,
            attention_mask=torch.ones_like(self.input),
            num_beams=beams,
            num_return_sequences=beams,
            do_sample=False,
            max_new_tokens=self.levels,
            min_new_tokens=0 if constrained else self.levels,
            prefix_allowed_tokens_fn=allowed,
            use_cache=True,
        )


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    transformers.logging.set_verbosity_error()
    print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__}), flush=True)
    peer: Peer | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if "open" in request:
            peer = Peer(request["open"], request["model"])
            print(json.dumps({"opened": request["open"]}), flush=True)
            continue
        assert peer is not None
        begin = time.perf_counter()
        for _ in range(request["calls"]):
            written = peer.generate(request["time"], request["constrained"])
        seconds = (time.perf_counter() - begin) / request["calls"]
        rows = written[:, 1 : 1 + peer.levels].tolist()
        print(json.dumps({"seconds": seconds, "valid": sum(tuple(row) in peer.known for row in rows) / len(rows)}), flush=True)


if __name__ == "__main__":
    main()
