"""Pieces for a unigram language model of words (Kudo 2018, arXiv:1804.10959, section 3.2), the same on every run.

The trainer of the library `tokenizers` sums in the order of hash maps and threads, so that no two runs agree. This one
only adds, multiplies and divides, in a fixed order, which rounds alike on every machine, and rounds logarithms before
it compares them.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LONGEST_PIECE = 16  # characters
LONGEST_WORD = 48  # characters; longer words are few, and their probabilities would leave the range of float64
SEEDS = 16  # candidates at the start, for each piece asked for
LEAST_COUNT = 2  # occurrences of a candidate
ITERATIONS = 2  # of expectation and maximization before each pruning, and at the end
KEPT = 0.75  # share of the pieces that a round of pruning keeps
DISCOUNT = 0.5  # exp(digamma(count)) is about count - 1/2: a Bayesian prior, under which rare pieces fade
SCALE = 2.0**10  # a factor for each character, which changes no share, and keeps products in range


class Lattice(NamedTuple):
    """Every place of a piece in some texts. Nodes are the gaps between characters, numbered through the texts.

    start, end, piece: of each edge; levels: the edges by the position of their end in its text, one part for each.
    first, last: the nodes at both ends of each text.
    """

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    piece: NDArray[np.int64]
    levels: list[slice]
    first: NDArray[np.int64]
    last: NDArray[np.int64]

    def keep(self, new: NDArray[np.int64]) -> Lattice:
        """Without the edges of pieces whose new number is negative."""
        kept = new[self.piece] >= 0
        below = np.concatenate([[0], np.cumsum(kept)]).tolist()
        levels = [slice(below[part.start], below[part.stop]) for part in self.levels]
        return self._replace(start=self.start[kept], end=self.end[kept], piece=new[self.piece[kept]], levels=levels)

    def expected(self, share: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.float64]:
        """How often each piece is expected, of these shares, in texts that occur so many times."""
        factor = share[self.piece] * SCALE ** (self.end - self.start)
        before, after = np.zeros(self.last[-1] + 1), np.zeros(self.last[-1] + 1)
        before[self.first] = 1.0
        for part in self.levels:
            np.add.at(before, self.end[part], before[self.start[part]] * factor[part])
        after[self.last] = times / before[self.last]
        for part in reversed(self.levels):
            np.add.at(after, self.start[part], after[self.end[part]] * factor[part])
        total = np.zeros(len(share))
        np.add.at(total, self.piece, before[self.start] * factor * after[self.end])
        return total

    def likeliest(self, share: NDArray[np.float64]) -> NDArray[np.float64]:
        """The probability of the likeliest way through each text, times SCALE for each of its characters."""
        factor = share[self.piece] * SCALE ** (self.end - self.start)
        best = np.zeros(self.last[-1] + 1)
        best[self.first] = 1.0
        for part in self.levels:
            np.maximum.at(best, self.end[part], best[self.start[part]] * factor[part])
        return best[self.last]


def lattice(texts: Sequence[str], ids: Mapping[str, int], whole: bool = True) -> Lattice:
    """The places of the pieces `ids` in the texts. whole: may one piece of several characters be all of a text?"""
    columns = array("q"), array("q"), array("q"), array("q")
    nodes = [0]
    for text in texts:
        for i in range(len(text)):
            for j in range(i + 1, min(i + LONGEST_PIECE, len(text)) + 1):
                piece = ids.get(text[i:j])
                if piece is not None and (whole or j - i == 1 or j - i < len(text)):
                    for column, value in zip(columns, (nodes[-1] + i, nodes[-1] + j, piece, j), strict=True):
                        column.append(value)
        nodes.append(nodes[-1] + len(text) + 1)
    start, end, pieces, position = (np.array(column, np.int64) for column in columns)
    order = np.argsort(position, kind="stable")
    edges = np.searchsorted(position[order], np.arange(1, position.max(initial=0) + 2)).tolist()
    levels = [slice(a, b) for a, b in pairwise(edges)]
    ends = np.array(nodes, np.int64)
    return Lattice(start[order], end[order], pieces[order], levels, ends[:-1], ends[1:] - 1)


def learn(words: Mapping[str, int], characters: Sequence[str], size: int) -> list[tuple[str, float]]:
    """At most `size` pieces (the characters in any case), each with the logarithm of its probability: the characters as
    they come, then the others from the likeliest. words, made of `characters` alone: how often each occurs."""
    words = {word: n for word, n in words.items() if len(word) <= LONGEST_WORD}
    fixed, seen = len(characters), Counter[str]()
    for word, n in words.items():
        for i in range(len(word)):
            for j in range(i + 1, min(i + LONGEST_PIECE, len(word)) + 1):
                seen[word[i:j]] += n
    longer = sorted((-n * len(piece), piece) for piece, n in seen.items() if n >= LEAST_COUNT and len(piece) > 1)
    pieces = [*characters, *(piece for _, piece in longer[: SEEDS * size])]
    count = np.array([float(seen[piece]) for piece in pieces])

    ids = {piece: i for i, piece in enumerate(pieces)}
    texts, inner = lattice(list(words), ids), lattice(pieces, ids, whole=False)
    times, alive = np.array(list(words.values()), np.float64), np.arange(len(pieces))
    while True:
        for _ in range(ITERATIONS):
            # A character has a share whatever it counts, so that nothing made of characters is ever unknown.
            floor = np.where(np.arange(len(count)) < fixed, DISCOUNT, 0.0)
            share = np.maximum(count - DISCOUNT, floor) / math.fsum(np.maximum(count - DISCOUNT, floor))
            count = texts.expected(share, times)
        if len(pieces) <= max(size, fixed):
            break
        # The likelihood that the words lose with a piece, where each place of it is read in the likeliest other way.
        scale = SCALE ** np.array([len(piece) for piece in pieces])
        with np.errstate(divide="ignore", invalid="ignore"):
            loss = np.round(count * (np.log(share) - np.log(inner.likeliest(share)[alive] / scale)), 6)
        used = (np.flatnonzero(share[fixed:] > 0) + fixed).tolist()
        most = max(size - fixed, int(KEPT * (len(pieces) - fixed)))
        kept = [*range(fixed), *sorted(sorted(used, key=lambda i: (-loss[i], pieces[i]))[:most])]
        new = np.full(len(pieces), -1)
        new[kept] = np.arange(len(kept))
        texts, inner = texts.keep(new), inner.keep(new)
        pieces, count, alive = [pieces[i] for i in kept], count[kept], alive[kept]
    scores = [round(math.log(p), 6) if p > 0 else -math.inf for p in share.tolist()]
    rest = sorted(
        (-score, piece) for piece, score in zip(pieces[fixed:], scores[fixed:], strict=True) if score > -math.inf
    )
    return [*zip(characters, scores[:fixed], strict=True), *((piece, -score) for score, piece in rest)]
