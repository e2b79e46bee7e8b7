"""SASRec in torch, as fast as its eager mode gives: the twin of `jaxrec.methods.sequential.sasrec` that `benchmarks.sasrec_step` times and
`benchmarks.sasrec_peer` trains.

Run by a Python with torch and numpy; reads one JSON line per request from standard input and answers each with one.

    {"open": NAME, "batches": FILE.npz, "model": {...}}             ->  {"opened": NAME}
    {"time": NAME, "steps": N}                                      ->  {"seconds": ..., "cpu": ..., "loss": ...}
    {"start": NAME, "model": {...}, "warmup": STEPS, "from": FILE}  ->  {"done": steps done, as FILE tells if it is there}
    {"learn": NAME, "batches": FILE.npz, "to": FILE}                ->  {"done": ..., "loss": ...}, a step on each batch, then saved
    {"encode": NAME, "batches": FILE.npz, "to": FILE.npz}           ->  {"encoded": histories}

Same sizes, same places of dropout, same loss over the same negatives, Adam with the same constants. Fused attention, fused Adam and only real tokens
in the loss are torch's own advantages. Batches wait in memory.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

Batch = dict[str, torch.Tensor]


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); dropout on both branches and inside the feed-forward layer."""

    def __init__(self, dim: int, heads: int, rate: float):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.feed_norm = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.output = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.inner, self.outer, self.dropout = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Dropout(rate)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """x [B, T, D], mask [B, 1, T, T] bool or None for causal attention over the whole row."""
        B, T, D = x.shape
        q, k, v = self.qkv(self.attention_norm(x)).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)  # each [B, H, T, K]
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x = x + self.dropout(self.output(mixed.transpose(1, 2).reshape(B, T, D)))
        return x + self.dropout(self.outer(self.dropout(functional.relu(self.inner(self.feed_norm(x))))))


class SASRec(nn.Module):
    """Item vectors * sqrt(D) + position vectors, dropout, blocks, layer norm."""

    def __init__(self, items: int, length: int, dim: int, layers: int, heads: int, dropout: float):
        super().__init__()
        self.item, self.position = nn.Embedding(items + 1, dim), nn.Embedding(length, dim)
        nn.init.normal_(self.item.weight, std=dim**-0.5)
        nn.init.normal_(self.position.weight, std=dim**-0.5)
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.norm, self.dropout = nn.LayerNorm(dim, eps=1e-6), nn.Dropout(dropout)

    def forward(self, history: torch.Tensor, position: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """[B, T] ids and places -> [B, T, D]."""
        x = self.dropout(self.item(history) * self.item.embedding_dim**0.5 + self.position(position))
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


class Trainer:
    """A model, its optimiser, and how many steps are done; the learning rate rises linearly over the first `warmup` of them."""

    def __init__(self, items: int, loss_name: str, negatives: int, packing: bool, warmup: int = 0, **sizes):
        torch.manual_seed(0)
        self.items, self.loss_name, self.negatives, self.packing = items, loss_name, negatives, packing
        self.model = SASRec(items=items, **sizes)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, betas=(0.9, 0.98), fused=True)
        self.rise = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, step / warmup) if warmup else 1.0)
        self.done = 0

    def save(self, path: str) -> None:
        """Writes all that a continuation needs, whole or not at all."""
        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "rise")}
        torch.save({**parts, "done": self.done, "random": torch.get_rng_state()}, path + ".part")
        Path(path + ".part").replace(path)

    def restore(self, path: str) -> None:
        """Reads what `save` wrote."""
        saved = torch.load(path, weights_only=True)
        for name in ("model", "optimizer", "rise"):
            getattr(self, name).load_state_dict(saved[name])
        self.done = saved["done"]
        torch.set_rng_state(saved["random"])

    @torch.no_grad()
    def encode(self, batch: Batch) -> torch.Tensor:
        """The state at the last item of each padded history: [B, D]."""
        self.model.eval()
        hidden = self.model(batch["history"], batch["position"], None)
        self.model.train()
        return hidden[torch.arange(len(hidden)), (batch["segment"] > 0).sum(1) - 1]

    def step(self, batch: Batch) -> float:
        """One optimiser step; its loss."""
        self.done += 1
        hidden = self.model(batch["history"], batch["position"], visible(batch["segment"]) if self.packing else None)
        real = batch["target"] > 0
        loss = self.loss(hidden[real], batch["target"][real])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.rise.step()
        return loss.item()

    def loss(self, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean over the real tokens; hidden [N, D], target [N]."""
        if self.loss_name == "softmax":
            return functional.cross_entropy(hidden @ self.model.item.weight[1:].T, target - 1)
        positive = (hidden * self.model.item(target)).sum(-1)  # [N]
        if self.loss_name == "bce_own":  # a negative for each token, as the paper has it
            sampled = torch.randint(1, self.items + 1, (len(target), self.negatives))
            negative = torch.einsum("nd,nkd->nk", hidden, self.model.item(sampled))
        else:
            sampled = torch.randint(1, self.items + 1, (self.negatives,))[None]
            negative = hidden @ self.model.item(sampled[0]).T
        hit = sampled == target[:, None]
        if self.loss_name == "sampled_softmax":
            negative = (negative - math.log(self.negatives / self.items)).masked_fill(hit, -torch.inf)
            logits = torch.cat([positive[:, None], negative], 1)
            return functional.cross_entropy(logits, torch.zeros(len(target), dtype=torch.long))
        against = functional.softplus(negative).masked_fill(hit, 0.0).sum(-1)
        return ((functional.softplus(-positive) + against) / (1 + self.negatives)).mean()


def visible(segment: torch.Tensor) -> torch.Tensor:
    """[B, 1, T, T] True where a query may see a key: the same history, not later. segment [B, T]."""
    same = segment[:, None, :, None] == segment[:, None, None, :]
    return same & torch.ones(segment.shape[1], segment.shape[1], dtype=torch.bool).tril()


def read(path: str) -> list[Batch]:
    """The batches of a file."""
    with np.load(path) as arrays:
        stacked = {name: torch.from_numpy(arrays[name].astype(np.int64)) for name in arrays}
    return [{name: stack[number] for name, stack in stacked.items()} for number in range(len(stacked["history"]))]


def serve(threads: int) -> None:
    """Answers requests until standard input ends."""
    torch.set_num_threads(threads)
    trainers: dict[str, Trainer] = {}
    waiting: dict[str, list[Batch]] = {}
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "open" in request:
            name = request["open"]
            trainers[name], waiting[name] = Trainer(**request["model"]), read(request["batches"])
            answer = {"opened": name}
        elif "start" in request:
            trainer = trainers[request["start"]] = Trainer(**request["model"], warmup=request["warmup"])
            if Path(request["from"]).exists():
                trainer.restore(request["from"])
            answer = {"done": trainer.done}
        elif "learn" in request:
            trainer = trainers[request["learn"]]
            losses = [trainer.step(batch) for batch in read(request["batches"])]
            trainer.save(request["to"])
            answer = {"done": trainer.done, "loss": sum(losses) / len(losses)}
        elif "encode" in request:
            trainer = trainers[request["encode"]]
            query = torch.cat([trainer.encode(batch) for batch in read(request["batches"])])
            np.savez(request["to"], query=query.numpy(), table=trainer.model.item.weight.detach().numpy())
            answer = {"encoded": len(query)}
        else:
            trainer, batches = trainers[request["time"]], waiting[request["time"]]
            wall, cpu = time.perf_counter(), time.process_time()
            losses = [trainer.step(batches[trainer.done % len(batches)]) for _ in range(request["steps"])]
            answer = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "loss": losses[-1]}
        print(json.dumps(answer), flush=True)


serve(int(sys.argv[1]))
