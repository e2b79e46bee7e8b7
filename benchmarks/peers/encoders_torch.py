"""Bidirectional encoders of transformers: the peer of `benchmarks.parity` and of their tests.

Run by a Python with torch, transformers and numpy; reads one JSON line per request from standard input and answers each with one.

    {"make": FOLDER, "config": {"model_type": ..., ...}}                  ->  {"parameters": N}      a random model, with a head if the family has one, saved
    {"open": FOLDER}                                                      ->  {"missing": [...]}     names of tensors that the folder lacks
    {"states": [[...]], "mask": [[...]], "dtype": "float64" | "float32" | "bfloat16"} ->  {"states": [[[...]]]}  of the last layer

The last model made or opened is the one that is asked.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, T5EncoderModel


def make(folder: str, config: dict[str, Any]) -> Any:
    """A model whose maps keep the size of what they are given, and whose norms and biases are no ones and zeros."""
    torch.manual_seed(0)
    said = dict(config)
    asked = AutoConfig.for_model(said.pop("model_type"), **said)
    model: Any = T5EncoderModel(asked) if asked.model_type == "t5" else AutoModelForMaskedLM.from_config(asked, attn_implementation="eager")
    model = model.float()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else noise * parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    return model if asked.model_type == "t5" else model.base_model


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__}), flush=True)
    model: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        if "make" in request:
            model = make(request["make"], request["config"]).eval()
            answer: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
        elif "open" in request:
            model, loading = AutoModel.from_pretrained(request["open"], dtype=torch.float32, output_loading_info=True, attn_implementation="sdpa")
            model.eval()
            answer = {"missing": sorted(loading["missing_keys"])}
        else:
            with torch.inference_mode():
                ids, mask = (torch.tensor(request[name]) for name in ("states", "mask"))
                chosen = model.to(getattr(torch, request["dtype"]))
                answer = {"states": chosen(input_ids=ids, attention_mask=mask).last_hidden_state.double().tolist()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
