"""Losses of contrastive training: one a file, pure torch, usable without the rest of isthmus.

Each takes a `Shard`: the pairs of the whole batch, and which of its rows this process answers for. A batch in one
process is
`Shard.whole(pairs)`; over many processes `gather.gather_pairs` makes the shard.
"""

from encoders.losses.pairs import Pairs, Shard

__all__ = ["Pairs", "Shard"]
