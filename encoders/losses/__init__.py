"""Losses of contrastive training: one per file, pure torch, usable without the rest of isthmus.

Each loss takes a `Shard`: the pairs of the whole batch, and the range of its rows that this process computes. In one
process the shard is `Shard.whole(pairs)`; over several processes `gather.gather_pairs` makes it.
"""

from encoders.losses.pairs import Pairs, Shard

__all__ = ["Pairs", "Shard"]
