"""Language models of transformers: the peer of `benchmarks.parity`, `benchmarks.generation` and of their test.

Run by a Python with torch, transformers and numpy; reads one JSON line per request from standard input and answers each with one.

    {"make": FOLDER, "config": {"model_type": ..., ...}}      ->  {"parameters": N}        a random model, saved
    {"open": FOLDER}                                          ->  {"seconds": ...}         to load it
    {"logits": [[...]], "dtype": "float64" | "float32" | "bfloat16"}      ->  {"logits": [[[...]]]}
    {"generate": [[...]], "new": N, "calls": N}               ->  {"seconds": ..., "ids": [[...]]}   greedy, without an end

The last model made or opened is the one that is asked.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM


def make(folder: str, config: dict[str, Any]) -> Any:
    """A model whose maps keep the size of what they are given, and whose norms and biases are no ones and zeros."""
    torch.manual_seed(0)
    said = dict(config)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(said.pop("model_type"), **said), attn_implementation="eager").eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(0.3 * noise if parameter.ndim == 1 else noise * parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    return model


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__}), flush=True)
    model: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        begin = time.perf_counter()
        if "make" in request:
            model = make(request["make"], request["config"])
            answer: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
        elif "open" in request:
            model = None
            model = AutoModelForCausalLM.from_pretrained(request["open"], dtype=torch.float32).eval()
            answer = {"seconds": time.perf_counter() - begin}
        elif "logits" in request:
            with torch.inference_mode():
                chosen = model.to(getattr(torch, request["dtype"]))
                answer = {"logits": chosen(torch.tensor(request["logits"])).logits.double().tolist()}
        else:
            ids = torch.tensor(request["generate"])
            how = {"max_new_tokens": request["new"], "min_new_tokens": request["new"], "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
            with torch.inference_mode():
                for _ in range(request["calls"]):
                    written = model.generate(ids, attention_mask=torch.ones_like(ids), **how)
            answer = {"seconds": (time.perf_counter() - begin) / request["calls"], "ids": written[:, ids.shape[1] :].tolist()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
