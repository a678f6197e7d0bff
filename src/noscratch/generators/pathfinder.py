"""Pathfinder (Linsley et al. 2018) with the parameters of Long Range Arena: 32, 64, 128 (Path-X) and 256 pixels.

Two snakes of dashes ("paddles") are grown together, shorter distractor snakes are added, and two discs mark snake ends:
the two ends of one snake (label 1) or one of each (label 0). The algorithm is drewlinsley/pathfinder's, commit ab9c130,
with everything in it that shapes the images: coordinates rounded up, the squared-cosine law of turning, occupancy that
lags one paddle behind, both snakes thrown away when one gets stuck, directions that no seed can take where the margin
is 1, and the brightness stretch of each image. Given the original's random draws, it is the original byte for byte.

What makes it fast: a seed points in one of 360 directions and any later paddle ends at one of the few pixels round its
anchor, so every direction, move, turn weight and antialiased stamp comes from a finite table, and growing a snake
touches only the pixels under its stamps. Occupancy is in 1/255, as the 8-bit stamps are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import atan2, ceil, cos, floor, pi, sin
from typing import NamedTuple

import numpy as np
from numba import njit
from PIL import Image, ImageDraw

from noscratch.errors import NoscratchError
from noscratch.generators import Int, below, stream


@dataclass(frozen=True)
class Parameters:
    """One resolution, in pixels: lra_benchmarks/data/pathfinder.py and the defaults of snakes2_wrapper.py."""

    padding: int  # blocked border
    seed_distance: int  # between the first ends of the two snakes
    marker_radius: float
    length: int  # of a paddle
    thickness: float  # of a paddle
    margins: tuple[int, ...]  # free space round a paddle, drawn per image
    continuity: float  # the greater, the straighter
    target_contrast: float
    distractor_contrast: float
    distractors: int  # distractor snakes


PARAMETERS = {
    32: Parameters(1, 7, 1.5, 2, 0.5, (1,), 1.0, 1.5, 2.0, 5),
    64: Parameters(1, 12, 2.5, 5, 1.0, (1,), 1.8, 0.8, 0.8, 5),
    128: Parameters(1, 20, 3.0, 5, 1.5, (2, 3), 1.8, 0.9, 0.9, 8),
    256: Parameters(22, 27, 5.0, 5, 2.0, (3,), 1.8, 1.0, 1.0, 7),
}
CONTOUR_LENGTH = 14  # paddles of a target snake: the "hard" set
DISTRACTOR_LENGTH = CONTOUR_LENGTH // 3
ANTIALIAS = 2
SNAKE_TRIALS = 5  # attempts at a distractor snake
PADDLE_TRIALS = 3  # attempts at a seed, and at a paddle

FREE = 76  # occupancy up to 0.3 is free ground for a seed
OVERLAP = 459  # a paddle is refused where the occupancies sum to 1.8
_UNIT = 2**20  # turn weights are integers in 2^-20
_DEAD_END = ceil(1e-4 * 255 * _UNIT)  # a snake is stuck below this sum of weight x free ground
_STREAM = int.from_bytes(b"pathfndr")  # apart from the other generator under the same seed


class Batch(NamedTuple):
    """Examples start..stop of one seed.

    images (n, size, size) uint8; labels (n,): 1 where the marks are the ends of one snake; margins (n,);
    paddles (n, 2, CONTOUR_LENGTH, 4): both target snakes, paddle by paddle, tail and head (y, x, y, x);
    markers (n, 2, 2): the marked points (y, x). All but the images int64.
    """

    images: np.ndarray
    labels: np.ndarray
    margins: np.ndarray
    paddles: np.ndarray
    markers: np.ndarray


def generate(seed: int, start: int, stop: int, size: int = 32, distractors: int | None = None) -> Batch:
    """Examples start..stop at `size` pixels with `distractors` distractor snakes (None: the resolution's number)."""
    if size not in PARAMETERS:
        raise NoscratchError(
            f"Pathfinder has the resolutions {', '.join(map(str, PARAMETERS))}; got {size}. Choose one of them."
        )
    p = PARAMETERS[size]
    if distractors is None:
        distractors = p.distractors
    elif distractors < 0:
        raise NoscratchError(f"the number of distractor snakes is 0 or more; got {distractors}")
    count = stop - start
    layers = np.zeros((count, 3, size, size), np.uint8)  # targets, distractors, markers
    about = (
        np.empty(count, np.int64),
        np.empty(count, np.int64),
        np.empty((count, 2, CONTOUR_LENGTH, 4), np.int64),
        np.empty((count, 2, 2), np.int64),
    )
    for choice, margin in enumerate(p.margins):
        _fill(
            np.uint64(seed ^ _STREAM),
            start,
            _tables(size, margin),
            margin,
            choice,
            len(p.margins),
            _border(size, p.padding),
            _marker_stamps(p.marker_radius),
            distractors,
            layers,
            *about,
        )
    # The original keeps paddles in float32 and markers in float64, then stretches each image to 0..255.
    shades = np.arange(256) / 255 * np.array([[p.target_contrast], [p.distractor_contrast], [1]])
    shades[:2] = shades[:2].astype(np.float32)
    images = np.empty((count, size, size), np.uint8)
    for image, layer in zip(images, layers, strict=True):
        peak = max(shade[most] for shade, most in zip(shades, layer.max((1, 2)), strict=True))
        targets, snakes, marks = (shades * (255 / peak) + 0.5).astype(np.uint8)
        image[:] = np.maximum(np.maximum(targets[layer[0]], snakes[layer[1]]), marks[layer[2]])
    return Batch(images, *about)


# ---------------------------------------------------------------- tables


class Tables(NamedTuple):
    """All that depends on the resolution and the margin alone.

    D directions: 360 whole degrees from -180, then the C directions from an anchor to the pixels on its circle.
    Moves and offsets are (y, x). Moves are float64 and rounded up where they end, noise and all: cos(pi/2) > 0, so near
    the upper and left borders, which snakes like to follow, a straight move ends one pixel aside.
    """

    lines: np.ndarray  # (D, S, S) uint8: a paddle drawn from the middle of its stamp; backwards for circle directions
    areas: np.ndarray  # (D, S, S) uint8: the ground that it occupies
    ends: np.ndarray  # (D, 2) float64: from the middle of a paddle's stamp to its other end
    pivots: np.ndarray  # (360, 2) float64: from a seed's head to its pivot
    moves: np.ndarray  # (D, 2) float64: from one anchor to the next
    circle: np.ndarray  # (C, 2): from an anchor to its candidate heads
    turns: np.ndarray  # (D, C): weight of a turn, in 2^-20
    ring: np.ndarray  # (360, 2) float64: from the first snake's tail to the second's, not rounded
    feet: np.ndarray  # (360, K, 2): ground that must be free for a seed, relative to its tail; the last one repeated
    sound: np.ndarray  # (360,) bool: whether a seed may point this way, see _is_sound
    room: np.ndarray  # (360, 4): first and last row, first and last column of tails that the first snake may start from
    disc: np.ndarray  # (M, 2): offsets up to `margin` away


@lru_cache
def _tables(size: int, margin: int) -> Tables:
    p = PARAMETERS[size]
    reach = p.length + margin
    degrees = [degree * pi / 180 for degree in range(-180, 180)]
    steps = [(floor(reach * sin(arc / reach)), floor(reach * cos(arc / reach))) for arc in range(ceil(2 * pi * reach))]
    circle = np.array(sorted(set(steps)))
    angles = [atan2(y, x) for y, x in circle]
    turns = np.zeros((360 + len(circle), len(circle)), np.int64)
    for d, last in enumerate(degrees + angles):
        for c, angle in enumerate(angles):
            turn = min(abs(angle - last), 2 * pi - abs(angle - last))
            turns[d, c] = round(cos(min(turn * p.continuity, pi / 2)) ** 2 * _UNIT)
    drawn = degrees + [angle + pi for angle in angles]
    lines, areas = _paddle_stamps(p, margin, drawn)
    # The ground under a seed: its fully occupied pixels, one to the lower right of where it is drawn, cut to a window.
    middle = areas.shape[1] // 2
    feet = [np.argwhere(area == 255) - middle + 1 for area in areas[:360]]
    feet = [foot[np.abs(foot).max(1) <= reach] for foot in feet]
    most = max(len(foot) for foot in feet)
    frame = 2 * p.seed_distance
    room = [np.stack([frame - foot.min(0), size - frame - 1 - foot.max(0)], 1).ravel() for foot in feet]
    return Tables(
        lines,
        areas,
        np.array([_move(p.length, angle) for angle in drawn]),
        np.array([_move(reach, angle + pi if angle < 0 else angle - pi) for angle in degrees]),
        np.array([_move(p.length + 2 * margin, angle) for angle in degrees + angles]),
        circle,
        turns,
        np.array([(p.seed_distance * sin(angle), p.seed_distance * cos(angle)) for angle in degrees]).round(9),
        np.stack([np.concatenate([foot, np.repeat(foot[-1:], most - len(foot), 0)]) for foot in feet]),
        np.array([_is_sound(foot) for foot in feet]),
        np.array(room),
        np.array(
            [
                (y, x)
                for y in range(-margin, margin + 1)
                for x in range(-margin, margin + 1)
                if y * y + x * x <= margin**2
            ]
        ),
    )


def _is_sound(feet: np.ndarray) -> bool:
    """Whether a seed's ground reaches into the image from each of its corners.

    Where it does not, the original finds no free pixel in the whole image: OpenCV's dilation leaves minus infinity in
    that corner, and find_available_coordinates then reports none ("mystery"). So with a margin of 1 most directions are
    ruled out: snakes start towards the upper left, and many distractors are given up.
    """
    return all((np.multiply(feet, corner) >= 0).all(1).any() for corner in ((1, 1), (1, -1), (-1, 1), (-1, -1)))


def _move(distance: float, angle: float) -> tuple[float, float]:
    return distance * sin(angle), distance * cos(angle)


def _paddle_stamps(p: Parameters, margin: int, angles: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Lines from the middle, drawn large and shrunk; and the same after dilation by a disc of the margin."""
    half = p.length + ceil(p.thickness) + margin
    centre = half * ANTIALIAS
    large = np.zeros((len(angles), 2 * centre + 1, 2 * centre + 1), np.uint8)
    for drawn, angle in zip(large, angles, strict=True):
        image = Image.new("L", drawn.shape)
        y, x = _move(p.length * ANTIALIAS, angle)
        line = [(centre, centre), (ceil(centre + x), ceil(centre + y))]
        ImageDraw.Draw(image).line(line, fill=255, width=round(p.thickness * ANTIALIAS))
        drawn[:] = np.asarray(image)
    radius = margin * ANTIALIAS
    wide = np.pad(large, ((0, 0), (radius, radius), (radius, radius)))
    dilated = np.zeros_like(large)
    for y in range(-radius, radius + 1):
        for x in range(-radius, radius + 1):
            if y * y + x * x <= radius**2:
                shifted = wide[:, radius + y : radius + y + large.shape[1], radius + x : radius + x + large.shape[2]]
                np.maximum(dilated, shifted, out=dilated)
    return _shrink(large, 2 * half + 1), _shrink(dilated, 2 * half + 1)


@lru_cache
def _marker_stamps(radius: float) -> np.ndarray:
    """Marker discs (2R + 1, 2R + 1, 2R + 1, 2R + 1) uint8 by the distance of their centre from the border.

    Shrinking works differently at the border. Index R of an axis: the centre is far from both borders; below, its
    distance from the first row (column); above, 2R minus its distance from the last.
    """
    reach = ceil(radius) + 3  # the disc, and how far Lanczos spreads it
    size = 4 * reach + 1
    places = [*range(reach), 2 * reach, *range(size - reach, size)]
    grid = np.arange(size * ANTIALIAS)
    stamps = np.zeros((len(places), len(places), 2 * reach + 1, 2 * reach + 1), np.uint8)
    for i, y in enumerate(places):
        for j, x in enumerate(places):
            far = (grid[:, None] - y * ANTIALIAS) ** 2 + (grid - x * ANTIALIAS) ** 2
            disc = _shrink(np.where(far <= (radius * ANTIALIAS) ** 2, np.uint8(255), np.uint8(0))[None], size)[0]
            stamps[i, j] = np.pad(disc, reach)[y : y + 2 * reach + 1, x : x + 2 * reach + 1]
    return stamps


def _shrink(images: np.ndarray, size: int) -> np.ndarray:
    return np.stack(
        [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS)) for image in images]
    )


def _border(size: int, padding: int) -> np.ndarray:
    """The occupancy of an empty image."""
    occupied = np.full((size, size), 255, np.uint8)
    occupied[padding : size - padding, padding : size - padding] = 0
    return occupied


# ---------------------------------------------------------------- growing and drawing
# A snake is an array with a row for each paddle: y, x of the middle of its stamp (the tail of a seed, the head of a
# later paddle), its direction, y, x of its anchor (a seed's pivot). Plain loops: array expressions compile slowly.


@njit(nogil=True)
def _inside(y: Int, x: Int, size: int) -> bool | np.bool:
    return 0 <= y < size and 0 <= x < size


@njit(nogil=True)
def _moved(position: Int, move: np.float64) -> np.int64:
    return np.int64(np.ceil(position + move))


@njit(nogil=True)
def _stamp(onto: np.ndarray, stamp: np.ndarray, y: int, x: int) -> None:
    """Combine a stamp with its middle at (y, x) by the maximum."""
    half = stamp.shape[0] // 2
    for row in range(max(y - half, 0), min(y + half + 1, onto.shape[0])):
        for column in range(max(x - half, 0), min(x + half + 1, onto.shape[0])):
            value = stamp[row - y + half, column - x + half]
            if value > onto[row, column]:
                onto[row, column] = value


@njit(nogil=True)
def _copy(source: np.ndarray, target: np.ndarray) -> None:
    for row in range(source.shape[0]):
        for column in range(source.shape[1]):
            target[row, column] = source[row, column]


@njit(nogil=True)
def _lay(snake: np.ndarray, n: int, y: Int, x: Int, direction: Int, anchor_y: Int, anchor_x: Int) -> None:
    snake[n, 0] = y
    snake[n, 1] = x
    snake[n, 2] = direction
    snake[n, 3] = anchor_y
    snake[n, 4] = anchor_x


@njit(nogil=True)
def _seed(t: Tables, y: Int, x: Int, degree: Int, snake: np.ndarray, size: int) -> bool | np.bool:
    """Lay the first paddle with its tail at (y, x); False where its head or pivot leaves the image."""
    head_y = _moved(y, t.ends[degree, 0])
    head_x = _moved(x, t.ends[degree, 1])
    pivot_y = _moved(head_y, t.pivots[degree, 0])
    pivot_x = _moved(head_x, t.pivots[degree, 1])
    _lay(snake, 0, y, x, degree, pivot_y, pivot_x)
    return _inside(head_y, head_x, size) and _inside(pivot_y, pivot_x, size)


@njit(nogil=True)
def _extend(state: np.ndarray, t: Tables, occupied: np.ndarray, snake: np.ndarray, n: int) -> bool:
    """Lay paddle n of a snake; False when the snake is stuck."""
    size = occupied.shape[0]
    last = snake[n - 1, 2]
    anchor_y = _moved(snake[n - 1, 3], t.moves[last, 0])
    anchor_x = _moved(snake[n - 1, 4], t.moves[last, 1])
    cumulative = np.empty(len(t.circle), np.int64)
    total = 0
    for c in range(len(t.circle)):
        y = anchor_y + t.circle[c, 0]
        x = anchor_x + t.circle[c, 1]
        if t.turns[last, c] > 0 and _inside(y, x, size):
            near = 0
            for m in range(len(t.disc)):
                row = y + t.disc[m, 0]
                column = x + t.disc[m, 1]
                if _inside(row, column, size) and occupied[row, column] > near:
                    near = occupied[row, column]
            total += t.turns[last, c] * (255 - near)
        cumulative[c] = total
    if total < _DEAD_END:
        return False
    half = t.areas.shape[1] // 2
    for _ in range(PADDLE_TRIALS):
        draw = below(state, total)
        c = 0
        while cumulative[c] <= draw:
            c += 1
        y = anchor_y + t.circle[c, 0]
        x = anchor_x + t.circle[c, 1]
        overlap = 0
        for row in range(max(y - half, 0), min(y + half + 1, size)):
            for column in range(max(x - half, 0), min(x + half + 1, size)):
                both = np.int64(occupied[row, column]) + t.areas[360 + c, row - y + half, column - x + half]
                if both > overlap:
                    overlap = both
        if overlap < OVERLAP:
            _lay(snake, n, y, x, 360 + c, anchor_y, anchor_x)
            # The lag: only now does the paddle before become an obstacle.
            _stamp(occupied, t.areas[last], snake[n - 1, 0], snake[n - 1, 1])
            return True
    return False


@njit(nogil=True)
def _seed_targets(state: np.ndarray, t: Tables, size: int, targets: np.ndarray) -> bool:
    """The first paddles of both target snakes: one where the frame leaves room, the other at its distance from it."""
    placed = 0
    for _ in range(PADDLE_TRIALS):
        degree = below(state, 360)
        rows = t.room[degree, 1] - t.room[degree, 0] + 1
        columns = t.room[degree, 3] - t.room[degree, 2] + 1
        if not t.sound[degree] or rows < 1 or columns < 1:
            return False
        y = t.room[degree, 0] + below(state, rows)
        x = t.room[degree, 2] + below(state, columns)
        if _seed(t, y, x, degree, targets[0], size):
            placed = 1
            break
    for _ in range(PADDLE_TRIALS * placed):
        degree = below(state, 360)
        towards = below(state, 360)
        y = round(targets[0, 0, 0] + t.ring[towards, 0])
        x = round(targets[0, 0, 1] + t.ring[towards, 1])
        if _seed(t, y, x, degree, targets[1], size):
            return True
    return False


@njit(nogil=True)
def _is_free(occupied: np.ndarray, feet: np.ndarray, y: Int, x: Int) -> bool:
    for f in range(len(feet)):
        row = y + feet[f, 0]
        column = x + feet[f, 1]
        if _inside(row, column, occupied.shape[0]) and occupied[row, column] > FREE:
            return False
    return True


@njit(nogil=True)
def _free_tail(state: np.ndarray, occupied: np.ndarray, feet: np.ndarray) -> np.int64:
    """A pixel (y size + x) uniform over those where a seed may start; -1: none, or under 1 % of the image is empty.

    Where many are free, the first free one of some uniform draws is as good as a draw from their list, and sooner made.
    """
    size = occupied.shape[0]
    unoccupied = 0
    for row in range(size):
        for column in range(size):
            unoccupied += occupied[row, column] <= FREE
    if 100 * unoccupied < size * size:
        return np.int64(-1)
    for _ in range(size):
        tail = below(state, size * size)
        if _is_free(occupied, feet, tail // size, tail % size):
            return tail
    free = np.empty(size * size, np.int64)
    count = 0
    for pixel in range(size * size):
        if _is_free(occupied, feet, pixel // size, pixel % size):
            free[count] = pixel
            count += 1
    return free[below(state, count)] if count > 0 else np.int64(-1)


@njit(nogil=True)
def _seed_distractor(state: np.ndarray, t: Tables, occupied: np.ndarray, snakes: np.ndarray) -> bool:
    """The first paddle of a distractor snake, anywhere on free ground."""
    size = occupied.shape[0]
    for _ in range(PADDLE_TRIALS):
        degree = below(state, 360)
        tail = _free_tail(state, occupied, t.feet[degree]) if t.sound[degree] else np.int64(-1)
        if tail < 0:
            return False
        if _seed(t, tail // size, tail % size, degree, snakes[0], size):
            return True
    return False


@njit(nogil=True)
def _grow(state: np.ndarray, t: Tables, occupied: np.ndarray, snakes: np.ndarray) -> bool:
    """Grow seeded snakes, a paddle each in turn; False as soon as one is stuck, whatever they occupied by then."""
    count = len(snakes)
    for step in range(count, count * snakes.shape[1]):
        if not _extend(state, t, occupied, snakes[step % count], step // count):
            return False
    # Of the last paddles only the last snake's becomes an obstacle.
    y, x, direction = snakes[-1, -1, 0], snakes[-1, -1, 1], snakes[-1, -1, 2]
    _stamp(occupied, t.areas[direction], y, x)
    return True


@njit(nogil=True)
def _draw(layer: np.ndarray, t: Tables, snakes: np.ndarray) -> None:
    for k in range(len(snakes)):
        for n in range(snakes.shape[1]):
            _stamp(layer, t.lines[snakes[k, n, 2]], snakes[k, n, 0], snakes[k, n, 1])


@njit(nogil=True)
def _place(position: int, reach: int, size: int) -> int:
    """Index into one axis of the marker stamps."""
    return min(position, reach) + max(reach - (size - 1 - position), 0)


@njit(nogil=True)
def _fill(
    seed: np.uint64,
    start: int,
    t: Tables,
    margin: int,
    choice: int,
    choices: int,
    empty: np.ndarray,
    discs: np.ndarray,
    distractors: int,
    layers: np.ndarray,
    labels: np.ndarray,
    margins: np.ndarray,
    paddles: np.ndarray,
    markers: np.ndarray,
) -> None:
    """Make those examples whose margin is number `choice` of `choices`; only those are written."""
    size = empty.shape[0]
    reach = discs.shape[0] // 2
    occupied = np.empty_like(empty)
    before = np.empty_like(empty)
    targets = np.empty((2, CONTOUR_LENGTH, 5), np.int64)
    snake = np.empty((1, DISTRACTOR_LENGTH, 5), np.int64)
    for i in range(len(labels)):
        state = stream(seed, np.uint64(start + i))
        label = below(state, 2)
        if below(state, choices) != choice:
            continue
        labels[i] = label
        margins[i] = margin
        _copy(empty, occupied)
        while not (_seed_targets(state, t, size, targets) and _grow(state, t, occupied, targets)):
            _copy(empty, occupied)
        _draw(layers[i, 0], t, targets)
        for _ in range(distractors):
            for _ in range(SNAKE_TRIALS):
                _copy(occupied, before)
                if _seed_distractor(state, t, occupied, snake) and _grow(state, t, occupied, snake):
                    _draw(layers[i, 1], t, snake)
                    break
                _copy(before, occupied)
        origin = below(state, 2)
        for k in range(2):
            whose, n = (origin, 0) if k == 0 else (origin ^ 1 ^ label, CONTOUR_LENGTH - 1)
            y = targets[whose, n, 0]
            x = targets[whose, n, 1]
            markers[i, k, 0] = y
            markers[i, k, 1] = x
            _stamp(layers[i, 2], discs[_place(y, reach, size), _place(x, reach, size)], y, x)
            for n in range(CONTOUR_LENGTH):
                y, x, direction = targets[k, n, 0], targets[k, n, 1], targets[k, n, 2]
                middle = 0 if n == 0 else 2  # a seed's stamp has its tail in the middle, any other its head
                paddles[i, k, n, middle] = y
                paddles[i, k, n, middle + 1] = x
                paddles[i, k, n, 2 - middle] = _moved(y, t.ends[direction, 0])
                paddles[i, k, n, 3 - middle] = _moved(x, t.ends[direction, 1])
