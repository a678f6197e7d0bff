"""ListOps (Nangia and Bowman 2018) as in Long Range Arena (Tay et al. 2020), and its official text form.

A tree starts at depth 1. Above the greatest depth a node is an operator with probability 1/4, with 2 to 10 arguments;
otherwise it is a digit. Its length counts an operator and its closing bracket, never parentheses. A tree is kept when
min_length < length < max_length (lra_benchmarks/data/listops.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from numba import njit

from noscratch.errors import NoscratchError
from noscratch.generators import bits, stream

SYMBOLS = (*"0123456789", "[MIN", "[MAX", "[MED", "[SM", "X")
MIN, MAX, MED, SM, CLOSE = range(10, 15)
MAX_DEPTH = 10
MAX_ARGUMENTS = 10
_STREAM = int.from_bytes(b"listops")  # apart from the other generator under the same seed


class Batch(NamedTuple):
    """Examples start..stop of one seed: symbols (n, max_length - 1) uint8, 0 after the end; lengths, labels (n,)."""

    symbols: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray


def generate(seed: int, start: int, stop: int, min_length: int = 500, max_length: int = 2000) -> Batch:
    """Examples start..stop, as positions in SYMBOLS. Raises NoscratchError where no tree has a length in between."""
    if min_length < 0 or max_length < max(min_length, 3) + 2:
        raise NoscratchError(
            f"ListOps keeps lengths strictly between min_length and max_length; got {min_length} and {max_length}, "
            "which leave none of 4 or more. Set max_length at least 2 above min_length, and at least 5."
        )
    count = stop - start
    batch = Batch(np.zeros((count, max_length - 1), np.uint8), np.empty(count, np.int64), np.empty(count, np.int64))
    _fill(np.uint64(seed ^ _STREAM), start, min_length, max_length, *batch)
    return batch


@njit(nogil=True)
def _fill(
    seed: np.uint64,
    start: int,
    min_length: int,
    max_length: int,
    symbols: np.ndarray,
    lengths: np.ndarray,
    labels: np.ndarray,
) -> None:
    """Draw trees from each example's stream until one is kept; a tree that grows too long is given up at once."""
    operator = np.empty(MAX_DEPTH, np.int64)
    wanted = np.empty(MAX_DEPTH, np.int64)
    held = np.empty(MAX_DEPTH, np.int64)
    values = np.empty((MAX_DEPTH, MAX_ARGUMENTS), np.int64)  # each open operator's arguments so far, sorted
    for i in range(len(lengths)):
        state = stream(seed, np.uint64(start + i))
        length = 0
        while length <= min_length or length >= max_length:
            length = 0
            written = 0
            open_ = 0
            value = np.int64(-1)
            while length < max_length and (open_ > 0 or value < 0):
                draw = bits(state)
                high = draw >> np.uint64(32)
                if open_ + 1 < MAX_DEPTH and draw & np.uint64(3) == 0:
                    operator[open_] = MIN + np.int64((draw >> np.uint64(2)) & np.uint64(3))
                    wanted[open_] = 2 + np.int64((high * np.uint64(MAX_ARGUMENTS - 1)) >> np.uint64(32))
                    held[open_] = 0
                    symbols[i, written] = operator[open_]
                    written += 1
                    open_ += 1
                    length += 2
                    continue
                value = np.int64((high * np.uint64(10)) >> np.uint64(32))
                symbols[i, written] = value
                written += 1
                length += 1
                while open_ > 0:
                    top = open_ - 1
                    n = held[top]
                    while n > 0 and values[top, n - 1] > value:
                        values[top, n] = values[top, n - 1]
                        n -= 1
                    values[top, n] = value
                    held[top] += 1
                    if held[top] < wanted[top]:
                        break
                    n = held[top]
                    if operator[top] == MIN:
                        value = values[top, 0]
                    elif operator[top] == MAX:
                        value = values[top, n - 1]
                    elif operator[top] == MED:
                        value = (values[top, (n - 1) // 2] + values[top, n // 2]) // 2
                    else:
                        value = values[top, :n].sum() % 10
                    symbols[i, written] = CLOSE
                    written += 1
                    open_ -= 1
        symbols[i, written:] = 0
        lengths[i] = length
        labels[i] = value


def evaluate(symbols: Sequence[int]) -> int:
    """The value of an expression, by the definition. Raises ValueError where it is not one whole expression."""
    frames: list[list[int]] = [[]]
    for symbol in symbols:
        if symbol < MIN:
            frames[-1].append(symbol)
        elif symbol < CLOSE:
            frames.append([symbol])
        else:
            operator, *arguments = frames.pop()
            if not frames or not arguments:
                raise ValueError("a bracket closes nothing, or an operator has no argument")
            frames[-1].append(_VALUE[operator](arguments))
    if len(frames) != 1 or len(frames[0]) != 1:
        raise ValueError("the symbols are not one whole expression")
    return frames[0][0]


_VALUE: dict[int, Callable[[list[int]], int]] = {
    MIN: min,
    MAX: max,
    MED: lambda arguments: int(median(arguments)),
    SM: lambda arguments: sum(arguments) % 10,
}


def to_text(symbols: Iterable[int]) -> str:
    """The official text: application is binary and nests to the left, so `[MAX a b]` is `( ( ( [MAX a ) b ) ] )`."""
    frames: list[list[str]] = [[]]
    for symbol in symbols:
        if symbol < MIN:
            frames[-1].append(SYMBOLS[symbol])
        elif symbol < CLOSE:
            frames.append([SYMBOLS[symbol]])
        else:
            operator, *arguments = frames.pop()
            applied = "".join(f" {argument} )" for argument in [*arguments, "]"])
            frames[-1].append("( " * (len(arguments) + 1) + operator + applied)
    return frames[0][0]


def write_tsv(path: Path, examples: Iterable[tuple[Sequence[int], int]]) -> None:
    """Write (symbols, label) rows as the official files have them: a header, tabs, CRLF."""
    with path.open("w", encoding="ascii", newline="") as file:
        file.write("Source\tTarget\r\n")
        file.writelines(f"{to_text(symbols)}\t{label}\r\n" for symbols, label in examples)


def read_tsv(path: Path) -> Iterator[tuple[np.ndarray, int]]:
    """The (symbols uint8, label) rows of an official file, LF or CRLF. NoscratchError: the first wrong row.

    As in Long Range Arena, parentheses are dropped and "]" becomes "X": the operators and "]" alone fix the tree.
    """
    code = {symbol.encode(): i for i, symbol in enumerate(SYMBOLS)} | {b"]": CLOSE}
    with path.open("rb") as file:
        if file.readline().rstrip(b"\r\n") != b"Source\tTarget":
            raise NoscratchError(
                f"{path.name}: the first line of a ListOps file is `Source<tab>Target`. Is it another file?"
            )
        for row, line in enumerate(file, start=1):
            source, tab, target = line.rstrip(b"\r\n").partition(b"\t")
            words = source.translate(None, b"()").split()
            unknown = next((word for word in words if word not in code), None)
            if not tab or len(target) != 1 or not target.isdigit() or unknown is not None or not words:
                what = f"the symbol {unknown!r}" if unknown is not None else f"the target {target[:20]!r}"
                raise NoscratchError(
                    f"{path.name}, row {row}: a row is an expression over {' '.join(SYMBOLS[:CLOSE])} ], "
                    f"a tab and a digit; got {what}. Download the file again."
                )
            yield np.array([code[word] for word in words], np.uint8), int(target)
