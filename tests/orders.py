"""The order of an epoch told again, row by row, without any of the loader's code."""

from __future__ import annotations

import numpy as np

LANES = 8
CHUNK_ROWS = 64


def plain_batches(
    rows: list[int], batch_size: int, seed: int, epoch: int, pool_chunks: int = 32
) -> list[list[list[int]]]:
    """Return all batches of a pool shuffle; each is the parts of eight lanes, some of them empty."""
    chunks: dict[int, list[int]] = {}
    for row in rows:
        chunks.setdefault(row // CHUNK_ROWS, []).append(row)
    in_order = [chunks[number] for number in sorted(chunks)]
    rng = np.random.default_rng([seed, epoch])
    dealt: list[list[list[int]]] = [[] for _ in range(LANES)]
    for index in rng.permutation(len(in_order)):
        fewest = min(range(LANES), key=lambda lane: sum(map(len, dealt[lane])))
        dealt[fewest].append(in_order[index])
    window = pool_chunks // LANES
    lanes = []
    for hand in dealt:
        lane: list[int] = []
        for start in range(0, len(hand), window):
            mixed = [row for chunk in hand[start : start + window] for row in chunk]
            lane += rng.permutation(mixed).tolist()
        lanes.append(lane)
    batches = []
    shares = [batch_size // LANES + (lane < batch_size % LANES) for lane in range(LANES)]
    while all(len(lane) >= share for lane, share in zip(lanes, shares, strict=True)):
        batches.append([lane[:share] for lane, share in zip(lanes, shares, strict=True)])
        lanes = [lane[share:] for lane, share in zip(lanes, shares, strict=True)]
    rest = [row for lane in lanes for row in lane]
    rest = rng.permutation(rest).tolist() if rest else []
    while rest:
        batch, rest = rest[:batch_size], rest[batch_size:]
        sizes = [len(batch) // LANES + (lane < len(batch) % LANES) for lane in range(LANES)]
        parts = []
        for size in sizes:
            parts.append(batch[:size])
            batch = batch[size:]
        batches.append(parts)
    return batches
