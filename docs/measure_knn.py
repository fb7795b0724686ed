"""How long exact nearest neighbours take: random float32 vectors, plain torch beside faiss.

    python docs/measure_knn.py                       # 20,000 x 20,000 x 768 on all cores of this machine
    python docs/measure_knn.py --videos 2000

Times of one machine are of no use on another: what is printed last is how they compare with the time that the
same machine takes for the matrix product alone, which no exact search can be faster than.
"""

import argparse
import resource
import time
from collections.abc import Callable

import faiss
import torch

from vidssl.evaluators.knn import CHUNK_BYTES, Backend, nearest

MB = 1 << 20


def measured(what: Callable[[], object]) -> tuple[float, float]:
    """Seconds that pass, and seconds that all cores of this process worked, of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    what()
    return time.perf_counter() - wall, time.process_time() - cpu


def product(train: torch.Tensor, test: torch.Tensor) -> None:
    """All inner products, and nothing of them kept."""
    for chunk in test.split(max(1, CHUNK_BYTES // (4 * len(train)))):
        chunk @ train.T


def highest_mb() -> float:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    faiss.omp_set_num_threads(given.threads)
    generator = torch.Generator().manual_seed(0)
    train, test = (
        torch.nn.functional.normalize(torch.randn(given.videos, given.width, generator=generator), dim=1)
        for _ in range(2)
    )
    backends: tuple[Backend, ...] = ("faiss", "torch")
    found = {}
    print(f"{given.videos:,} x {given.videos:,} x {given.width}, k = {given.k}, {given.threads} threads")
    worked = {}
    for backend in backends:
        before = highest_mb()

        def search(backend: Backend = backend) -> None:
            found[backend] = nearest(train, test, given.k, backend)

        wall, worked[backend] = measured(search)
        more = f"{highest_mb() - before:.0f} MB more than before"
        print(f"{backend}: {wall:.1f} s, {worked[backend]:.1f} CPU seconds, {more}")
    wall, cpu = measured(lambda: product(train, test))
    shares = ", ".join(f"{backend} {seconds / cpu:.2f}" for backend, seconds in worked.items())
    print(f"all similarities at once: {4 * given.videos**2 / MB:.0f} MB")
    print(f"product alone: {wall:.1f} s, {cpu:.1f} CPU seconds; in CPU seconds of that: {shares}")
    same = (found["faiss"][1] == found["torch"][1]).all(1).double().mean().item()
    print(f"the same neighbours in the same order: {100 * same:.3f} % of videos")


if __name__ == "__main__":
    main()
