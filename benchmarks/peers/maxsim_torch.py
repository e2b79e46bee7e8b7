"""MaxSim on the CPU by others: the peers of `benchmarks.maxsim` and `benchmarks.maxsim_gradient`.

Run by a Python with torch and numpy, and maxsim-cpu for its own row; reads one JSON line per request from standard input and answers each with one.

    {"open": FILE.npz}                    ->  {"opened": FILE, "peers": [names]}
    {"time": NAME, "calls": N}            ->  {"seconds": ..., "checksum": ...}

    flat      one product of all document tokens with all query tokens, then a maximum by segments: no padding
    padded    documents padded to the longest, einsum, a mask, a maximum: what the scoring functions of late-interaction libraries do
    maxsim-cpu  the package of that name
    gradient  the in-batch softmax loss over padded documents, forward and backward
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
import time

import numpy as np
import torch


class Peer:
    """The work of a file: queries [B, N, D], tokens [T, D], lengths [C]."""

    def __init__(self, file: str):
        with np.load(file) as arrays:
            self.queries, self.tokens, self.lengths = (arrays[name] for name in ("queries", "tokens", "lengths"))
        offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self.documents = [self.tokens[low:high] for low, high in itertools.pairwise(offsets)]
        padded = np.zeros((len(self.lengths), self.lengths.max(), self.tokens.shape[1]), np.float32)
        mask = np.arange(self.lengths.max()) < self.lengths[:, None]
        padded[mask] = self.tokens
        self.q, self.flat_tokens, self.padded_tokens, self.mask = map(torch.from_numpy, (self.queries, self.tokens, padded, mask))
        self.segments = torch.from_numpy(self.lengths.astype(np.int64))
        self.names = ["flat", "padded", "gradient"] + ["maxsim-cpu"] * (importlib.util.find_spec("maxsim_cpu") is not None)

    @torch.inference_mode()
    def flat(self) -> torch.Tensor:
        scores = self.flat_tokens @ self.q.reshape(-1, self.q.shape[-1]).T
        if len(set(self.lengths.tolist())) == 1:
            best = scores.reshape(len(self.lengths), -1, scores.shape[1]).amax(1)
        else:
            best = torch.segment_reduce(scores, "max", lengths=self.segments, axis=0)
        return best.reshape(len(self.lengths), *self.q.shape[:2]).sum(-1).T

    @torch.inference_mode()
    def padded(self) -> torch.Tensor:
        scores = torch.einsum("bnd,cmd->bcnm", self.q, self.padded_tokens)
        return scores.masked_fill(~self.mask[None, :, None, :], -torch.inf).amax(-1).sum(-1)

    def maxsim_cpu(self) -> np.ndarray:
        import maxsim_cpu

        if len(set(self.lengths.tolist())) == 1:
            padded = self.padded_tokens.numpy()
            return np.stack([maxsim_cpu.maxsim_scores(query, padded) for query in self.queries])
        return np.stack([maxsim_cpu.maxsim_scores_variable(query, self.documents) for query in self.queries])

    def gradient(self) -> torch.Tensor:
        q, d = self.q.clone().requires_grad_(), self.padded_tokens.clone().requires_grad_()
        scores = torch.einsum("bnd,cmd->bcnm", q, d).amax(-1).sum(-1)
        loss = torch.nn.functional.cross_entropy(scores, torch.arange(len(q)))
        loss.backward()
        return loss.detach()


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps({"torch": torch.__version__}), flush=True)
    peer: Peer | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if "open" in request:
            peer = Peer(request["open"])
            answer = {"opened": request["open"], "peers": peer.names}
        else:
            assert peer is not None
            function = getattr(peer, request["time"].replace("-", "_"))
            begin = time.perf_counter()
            for _ in range(request["calls"]):
                result = function()
            answer = {"seconds": (time.perf_counter() - begin) / request["calls"], "checksum": float(np.asarray(result, np.float64).sum())}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
