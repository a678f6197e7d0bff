"""Speed of the generators against a straightforward form of the same algorithms, in one run.

    python bench/generators.py [OUT.json] [--seconds 10]

The straightforward forms work on whole images in NumPy and on nested tuples. Pathfinder's takes the same random numbers
and is checked to give the same bytes; ListOps' draws its own trees. Times are processor time of the one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from math import ceil, cos, pi, sin
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from noscratch.generators import listops, pathfinder
from noscratch.record import Stopwatch, write_bench

# ---------------------------------------------------------------- straightforward ListOps

MODULES = ("noscratch.generators.listops", "noscratch.generators.pathfinder")

Tree = int | tuple[str, list[Any]]


def listops_tree(random: Random, depth: int = 1) -> tuple[Tree, int]:
    """A random tree and its length."""
    if depth == listops.MAX_DEPTH or random.random() > 0.25:
        return random.randint(0, 9), 1
    parts = [listops_tree(random, depth + 1) for _ in range(random.randint(2, listops.MAX_ARGUMENTS))]
    operator = random.choice(listops.SYMBOLS[listops.MIN : listops.CLOSE])
    return (operator, [tree for tree, _ in parts]), 2 + sum(length for _, length in parts)


def listops_value(tree: Tree) -> int:
    """What a tree evaluates to."""
    if isinstance(tree, int):
        return tree
    values = [listops_value(part) for part in tree[1]]
    if tree[0] == "[MED":
        return int(median(values))
    return {"[MIN": min, "[MAX": max}[tree[0]](values) if tree[0] != "[SM" else sum(values) % 10


def listops_words(tree: Tree) -> list[str]:
    """A tree's symbols."""
    if isinstance(tree, int):
        return [str(tree)]
    return [tree[0], *(word for part in tree[1] for word in listops_words(part)), "X"]


def straightforward_listops(seed: int, count: int) -> list[tuple[list[str], int]]:
    """`count` different expressions of lengths 501 to 1999 with their values."""
    random = Random(seed)
    kept: dict[str, tuple[list[str], int]] = {}
    while len(kept) < count:
        tree, length = listops_tree(random)
        if 500 < length < 2000:
            words = listops_words(tree)
            kept[" ".join(words)] = words, listops_value(tree)
    return list(kept.values())


# ---------------------------------------------------------------- straightforward Pathfinder


class Stream:
    """The random stream of one example: noscratch.generators' SplitMix64, in whole numbers."""

    def __init__(self, seed: int, index: int) -> None:
        self.state = self.mix(self.mix(seed + 0x9E3779B97F4A7C15) + index)

    @staticmethod
    def mix(z: int) -> int:
        z %= 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    def below(self, n: int) -> int:
        self.state += 0x9E3779B97F4A7C15
        return self.mix(self.state) % n


def dilate(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The greatest value under the kernel; minus infinity where the kernel lies outside, as in OpenCV."""
    half = len(kernel) // 2
    wide = np.pad(image.astype(float), half, constant_values=-np.inf)
    dilated = np.full(image.shape, -np.inf)
    for y, x in np.argwhere(kernel):
        dilated = np.maximum(dilated, wide[y : y + len(image), x : x + len(image)])
    return dilated


def disc(radius: int) -> np.ndarray:
    """A disc as a kernel."""
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return y**2 + x**2 <= radius**2


def shrink(image: np.ndarray, size: int) -> np.ndarray:
    """Lanczos on 8 bits, as scipy.misc.imresize."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS)) / 255


def translate(y: int, x: int, angle: float, distance: float) -> tuple[int, int]:
    """A step rounded up, rounding noise and all."""
    return ceil(y + distance * sin(angle)), ceil(x + distance * cos(angle))


Snake = tuple[np.ndarray, np.ndarray, tuple[int, int], float, tuple[int, int]]  # image, last area, anchor, angle, head


class Painter:
    """One image by the original algorithm: every step works on the whole image."""

    def __init__(self, stream: Stream, size: int) -> None:
        self.p = pathfinder.PARAMETERS[size]
        self.stream = stream
        self.size = size

    def paint(self, distractors: int) -> tuple[np.ndarray, int]:
        """The image and its label."""
        label = self.stream.below(2)
        self.margin = self.p.margins[self.stream.below(len(self.p.margins))]
        targets = self.targets()
        while targets is None:
            targets = self.targets()
        (first, second), tips, mask = targets
        image = np.maximum(first[0], second[0])
        for _ in range(distractors):
            for _ in range(pathfinder.SNAKE_TRIALS):
                grown = self.distractor(mask)
                if grown is not None:
                    image, mask = np.maximum(image, grown[0]), grown[1]
                    break
        origin = self.stream.below(2)
        heads = first[4], second[4]
        for y, x in (tips[origin], heads[origin if label else 1 - origin]):
            image = np.maximum(image, self.circle(y, x))
        return (image * (255 / image.max()) + 0.5).astype(np.uint8), label

    # The original draws the same in other ways: from lists of all free pixels, and weights with a float.

    def draw_first(self, free: np.ndarray) -> tuple[int, int]:
        """A tail for the first snake; the free pixels form a rectangle."""
        rows, columns = np.unique(free[:, 0]), np.unique(free[:, 1])
        return int(rows[self.stream.below(len(rows))]), int(columns[self.stream.below(len(columns))])

    def draw_direction(self) -> float:
        """Where the second snake starts from the first."""
        return (self.stream.below(360) - 180) * pi / 180

    def draw_tail(self, free: np.ndarray) -> tuple[int, int]:
        """A tail for a distractor."""
        pixels = set((free[:, 0] * self.size + free[:, 1]).tolist())
        draws = (self.stream.below(self.size**2) for _ in range(self.size))
        tail = next((draw for draw in draws if draw in pixels), -1)
        return divmod(tail if tail >= 0 else sorted(pixels)[self.stream.below(len(pixels))], self.size)

    def draw_weight(self, total: int) -> int:
        """A place among cumulative weights."""
        return self.stream.below(total)

    def circle(self, y: int, x: int) -> np.ndarray:
        grid = np.arange(self.size * 2)
        far = (grid[:, None] - 2 * y) ** 2 + (grid - 2 * x) ** 2
        return shrink(np.where(far <= (2 * self.p.marker_radius) ** 2, np.uint8(255), np.uint8(0)), self.size)

    def paddle(self, y: int, x: int, angle: float, contrast: float, shape: int) -> tuple[np.ndarray, np.ndarray]:
        """A line from (y, x) and the area that it occupies, each in an image of its own."""
        half = self.p.length + ceil(self.p.thickness) + self.margin
        canvas = Image.new("L", (4 * half + 1, 4 * half + 1))
        end_y, end_x = translate(2 * half, 2 * half, angle, 2 * self.p.length)
        ends = [(2 * half, 2 * half), (end_x, end_y)]
        ImageDraw.Draw(canvas).line(ends, fill=255, width=round(2 * self.p.thickness))
        drawn = np.asarray(canvas)
        line = np.zeros((shape + 2 * half, shape + 2 * half), np.float32)
        area = line.copy()
        line[y : y + 2 * half + 1, x : x + 2 * half + 1] = shrink(drawn, 2 * half + 1) * contrast
        grown = dilate(drawn, disc(2 * self.margin)).astype(np.uint8)
        area[y : y + 2 * half + 1, x : x + 2 * half + 1] = shrink(grown, 2 * half + 1)
        inner = slice(half, half + shape)
        return line[inner, inner].astype(float), area[inner, inner].astype(float)

    def inside(self, *points: tuple[int, int]) -> bool:
        return all(0 <= y < self.size and 0 <= x < self.size for y, x in points)

    def start(self, y: int, x: int, degree: int, contrast: float) -> Snake | None:
        """A seed from the tail (y, x)."""
        angle = (degree - 180) * pi / 180
        head = translate(y, x, angle, self.p.length)
        pivot = translate(*head, angle + pi if angle < 0 else angle - pi, self.p.length + self.margin)
        if not self.inside(head, pivot):
            return None
        line, area = self.paddle(y, x, angle, contrast, self.size)
        return line, area, pivot, angle, head

    def free(self, mask: np.ndarray, degree: int) -> np.ndarray:
        """The pixels where a seed may start."""
        reach = self.p.length + self.margin
        _, area = self.paddle(reach + 1, reach + 1, (degree - 180) * pi / 180, 1.0, 2 * reach + 1)
        dilated = np.ceil(dilate(mask, area >= 1) - 0.3)
        return np.argwhere(dilated == 0) if dilated.min() >= 0 else np.empty((0, 2), int)

    def targets(self) -> tuple[list[Snake], list[tuple[int, int]], np.ndarray] | None:
        p, below = self.p, self.stream.below
        mask = np.ones((self.size, self.size))
        mask[p.padding : -p.padding, p.padding : -p.padding] = 0
        frame = 2 * p.seed_distance
        framed = np.ones_like(mask)
        framed[frame:-frame, frame:-frame] = 0
        for _ in range(pathfinder.PADDLE_TRIALS):
            degree = below(360)
            free = self.free(framed, degree)
            if len(free) == 0:
                return None
            tail = self.draw_first(free)
            first = self.start(*tail, degree, p.target_contrast)
            if first is not None:
                break
        else:
            return None
        for _ in range(pathfinder.PADDLE_TRIALS):
            degree = below(360)
            towards = self.draw_direction()
            y = round(tail[0] + round(p.seed_distance * sin(towards), 9))
            x = round(tail[1] + round(p.seed_distance * cos(towards), 9))
            second = self.start(y, x, degree, p.target_contrast)
            if second is not None:
                break
        else:
            return None
        snakes = [first, second]
        for _ in range(1, pathfinder.CONTOUR_LENGTH):
            for k in range(2):
                extended = self.extend(snakes[k], mask, p.target_contrast)
                if extended is None:
                    return None
                snakes[k], mask = extended
        return snakes, [tail, (y, x)], np.maximum(mask, snakes[1][1])

    def distractor(self, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        below = self.stream.below
        for _ in range(pathfinder.PADDLE_TRIALS):
            degree = below(360)
            free = self.free(mask, degree)
            if len(free) == 0 or np.mean(np.ceil(mask - 0.3) == 0) < 0.01:
                return None
            snake = self.start(*self.draw_tail(free), degree, self.p.distractor_contrast)
            if snake is None:
                continue
            for _ in range(1, pathfinder.DISTRACTOR_LENGTH):
                extended = self.extend(snake, mask, self.p.distractor_contrast)
                if extended is None:
                    return None
                snake, mask = extended
            return snake[0], np.maximum(mask, snake[1])
        return None

    def extend(self, snake: Snake, mask: np.ndarray, contrast: float) -> tuple[Snake, np.ndarray] | None:
        """The snake with one more paddle, and the mask with the one before it."""
        image, area, (y, x), angle, _ = snake
        reach = self.p.length + self.margin
        y, x = translate(y, x, angle, reach + self.margin)
        arcs = np.arange(ceil(2 * pi * reach)) / reach
        circle = np.stack([np.floor(y + reach * np.sin(arcs)), np.floor(x + reach * np.cos(arcs))], 1).astype(int)
        circle = np.unique(circle[((circle >= 0) & (circle < self.size)).all(1)], axis=0)
        angles = np.arctan2(circle[:, 0] - y, circle[:, 1] - x)
        turns = np.minimum(np.abs(angles - angle), 2 * pi - np.abs(angles - angle))
        weights = np.rint(np.cos(np.minimum(turns * self.p.continuity, pi / 2)) ** 2 * 2**20)
        near = dilate(mask, disc(self.margin))[circle[:, 0], circle[:, 1]]
        cumulative = np.cumsum(weights * np.rint(255 * (1 - near)))
        if len(circle) == 0 or cumulative[-1] < 1e-4 * 255 * 2**20:
            return None
        for _ in range(pathfinder.PADDLE_TRIALS):
            c = int(np.argmax(cumulative > self.draw_weight(int(cumulative[-1]))))
            head = int(circle[c, 0]), int(circle[c, 1])
            line, ground = self.paddle(*head, angles[c] + pi, contrast, self.size)
            if np.max(mask + ground) < 1.7999:
                return (np.maximum(image, line), ground, (y, x), float(angles[c]), head), np.maximum(mask, area)
        return None


def straightforward_pathfinder(seed: int, start: int, stop: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels start..stop, as noscratch.generators.pathfinder.generate."""
    key = seed ^ int.from_bytes(b"pathfndr")
    snakes = pathfinder.PARAMETERS[size].distractors
    made = [Painter(Stream(key, index), size).paint(snakes) for index in range(start, stop)]
    return np.stack([image for image, _ in made]), np.array([label for _, label in made])


# ---------------------------------------------------------------- timing


def rate(make: Callable[[int, int], Any], seconds: float, part: int) -> float:
    """Examples per second of one core's time, over at least `seconds` of it, in parts of `part`."""
    start = time.process_time()
    made = 0
    while time.process_time() - start < seconds:
        make(made, made + part)
        made += part
    return made / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, help="where to write the rows as JSON, with a record beside it")
    parser.add_argument("--seconds", type=float, default=10.0, help="least time of each of the ten measurements")
    args = parser.parse_args()
    watch = Stopwatch(Path(__file__).parents[1], "cpu")
    rows: list[dict[str, Any]] = []
    before = time.process_time()
    listops.generate(0, 0, 1)
    compiling = time.process_time() - before
    fast = rate(partial(listops.generate, 0), args.seconds, 1000)
    slow = rate(lambda start, stop: straightforward_listops(start, stop - start), args.seconds, 100)
    rows.append({"data": "listops", "compile_s": compiling, "fast_per_s": fast, "straightforward_per_s": slow})
    for size in pathfinder.PARAMETERS:
        before = time.process_time()
        pathfinder.generate(0, 0, 1, size)
        compiling = time.process_time() - before
        fast = rate(partial(pathfinder.generate, 0, size=size), args.seconds, 50)
        slow = rate(partial(straightforward_pathfinder, 0, size=size), args.seconds, 1)
        images, _ = straightforward_pathfinder(0, 0, 1, size)
        if not np.array_equal(images, pathfinder.generate(0, 0, 1, size).images):
            raise SystemExit(f"the two forms of pathfinder-{size} differ")
        name = f"pathfinder-{size}"
        rows.append({"data": name, "compile_s": compiling, "fast_per_s": fast, "straightforward_per_s": slow})
    print(f"{'data':16}{'compile s':>10}{'fast /s':>12}{'plain /s':>12}{'ratio':>10}")
    for row in rows:
        row["ratio"] = row["fast_per_s"] / row["straightforward_per_s"]
        print("{data:16}{compile_s:10.1f}{fast_per_s:12.1f}{straightforward_per_s:12.3f}{ratio:10.0f}".format(**row))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(rows, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_bench(args.out.parent, "generators", {"seconds": args.seconds}, MODULES, watch)


if __name__ == "__main__":
    main()
