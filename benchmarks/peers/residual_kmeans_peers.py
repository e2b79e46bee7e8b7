"""Residual k-means by faiss and by scikit-learn, which `benchmarks.residual_kmeans` times.

Run by a Python with faiss, scikit-learn and numpy; reads one JSON line per request from standard input and answers each with one.

    {"fit": "faiss" | "sklearn", "vectors": FILE.npy, "levels": L, "codes": W, "iterations": T, "seed": S}
        ->  {"seconds": ..., "cpu": ..., "error": sum of squares that is left}
"""

from __future__ import annotations

import json
import os
import sys
import time

import faiss
import numpy as np
import sklearn
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits


def by_faiss(vectors: np.ndarray, codes: int, iterations: int, seed: int) -> np.ndarray:
    """[N, E] the centroid of each vector; centroids start at random vectors."""
    clustering = faiss.Kmeans(vectors.shape[1], codes, niter=iterations, seed=seed, max_points_per_centroid=len(vectors))
    clustering.train(vectors)
    return clustering.centroids[clustering.index.search(vectors, 1)[1][:, 0]]


def by_sklearn(vectors: np.ndarray, codes: int, iterations: int, seed: int) -> np.ndarray:
    """[N, E] the centroid of each vector; centroids start by greedy k-means++."""
    clustering = KMeans(codes, n_init=1, max_iter=iterations, tol=0, random_state=seed).fit(vectors)
    return clustering.cluster_centers_[clustering.labels_]


PEERS = {"faiss": by_faiss, "sklearn": by_sklearn}


def fit(name: str, path: str, levels: int, codes: int, iterations: int, seed: int) -> dict[str, float]:
    """Times one residual fit, the assignment of its vectors included."""
    vectors = np.load(path)
    wall, cpu = time.perf_counter(), time.process_time()
    for level in range(levels):
        vectors = np.ascontiguousarray(vectors - PEERS[name](vectors, codes, iterations, levels * seed + level), np.float32)
    return {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "error": float((vectors.astype(np.float64) ** 2).sum())}


def serve(threads: int) -> None:
    """Answers requests until standard input ends."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    faiss.omp_set_num_threads(threads)
    print(json.dumps({"faiss": faiss.__version__, "scikit-learn": sklearn.__version__}), flush=True)
    with threadpool_limits(threads):
        for line in sys.stdin:
            request = json.loads(line)
            answer = fit(request["fit"], request["vectors"], *(request[name] for name in ("levels", "codes", "iterations", "seed")))
            print(json.dumps(answer), flush=True)


serve(int(sys.argv[1]))
