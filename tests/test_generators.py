"""The generators: seeded per example, the published distributions, labels right, the original's pixels."""

from __future__ import annotations

import importlib.util
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noscratch.errors import NoscratchError
from noscratch.generators import bits, in_parts, listops, pathfinder, stream

ONE_IN_TEN_THOUSAND = 3.9  # standard errors, two-sided


@pytest.fixture(scope="session")
def bench() -> ModuleType:
    """bench/generators.py, which holds the straightforward forms."""
    path = Path(__file__).parents[1] / "bench" / "generators.py"
    spec = importlib.util.spec_from_file_location("bench_generators", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def symbols_of(text: str) -> list[int]:
    return [listops.SYMBOLS.index("X" if word == "]" else word) for word in text.split() if word not in "()"]


# ---------------------------------------------------------------- random streams


def test_streams_are_splitmix64() -> None:
    # The first outputs for the seed 1234567, as published with many implementations.
    state = np.array([1234567], np.uint64)
    assert [int(bits(state)) for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_no_two_examples_or_seeds_share_a_stream() -> None:
    starts = {int(stream(np.uint64(seed), np.uint64(i))[0]) for seed in range(50) for i in range(50)}
    assert len(starts) == 2500


@given(st.integers(0, 60), st.integers(1, 40), st.integers(1, 9), st.integers(1, 3))
def test_parts_cover_a_range_in_order(start: int, count: int, size: int, workers: int) -> None:
    parts = list(in_parts(lambda first, last: list(range(first, last)), start, start + count, size, workers))
    assert [i for part in parts for i in part] == list(range(start, start + count))
    assert all(len(part) == size for part in parts[:-1])


@pytest.mark.parametrize("generate", [listops.generate, pathfinder.generate], ids=["listops", "pathfinder"])
def test_an_example_depends_on_seed_and_index_alone(generate: Any) -> None:
    whole = generate(3, 0, 23)
    for size, workers in ((23, 1), (7, 1), (7, 2), (1, 3)):
        parts = list(in_parts(lambda first, last: generate(3, first, last), 0, 23, size, workers))
        for k, field in enumerate(whole):
            assert field.tobytes() == np.concatenate([part[k] for part in parts]).tobytes()
    assert generate(4, 0, 23)[0].tobytes() != whole[0].tobytes()


# ---------------------------------------------------------------- ListOps


def test_listops_lengths_follow_the_exact_distribution() -> None:
    lengths = listops.generate(0, 0, 10_000).lengths
    # P(length) of a subtree, from the leaves up: a digit, or 2 symbols round 2 to 10 subtrees one level deeper.
    size = 2000
    deeper = np.zeros(size)
    deeper[1] = 1
    for _ in range(listops.MAX_DEPTH - 1):
        spectrum = np.fft.rfft(deeper, 10 * size)  # wide enough for ten factors: nothing wraps round
        children = np.fft.irfft(sum(spectrum**k for k in range(2, 11)) / 9, 10 * size)[: size - 2]
        deeper = np.concatenate([[0, 0], children]) / 4
        deeper[1] = 3 / 4
    expected = np.where(np.arange(size) > 500, deeper, 0).cumsum()
    expected /= expected[-1]
    found = np.searchsorted(np.sort(lengths), np.arange(size), "right") / len(lengths)
    assert np.abs(found - expected).max() < 2.2 / len(lengths) ** 0.5  # Kolmogorov-Smirnov, 1 in 10,000
    assert lengths.min() > 500
    assert lengths.max() < 2000


def test_listops_labels_follow_the_published_simulation() -> None:
    # 20,000 examples of the original algorithm: the majority class holds 17 %.
    published = np.array([0.170, 0.090, 0.077, 0.081, 0.091, 0.087, 0.080, 0.075, 0.082, 0.167])
    batch = listops.generate(0, 0, 10_000)
    found = np.bincount(batch.labels, minlength=10) / 10_000
    error = np.sqrt(published * (1 - published) * (1 / 10_000 + 1 / 20_000)) + 0.0005  # published to three digits
    assert (np.abs(found - published) < ONE_IN_TEN_THOUSAND * error).all()
    operators = ((batch.symbols >= listops.MIN) & (batch.symbols < listops.CLOSE)).sum(1)
    assert abs(operators.mean() - 148) < 3


@given(st.integers(0, 2**63), st.sampled_from([(0, 5), (0, 40), (20, 60), (500, 2000)]))
def test_listops_expressions_are_whole_and_their_labels_right(seed: int, bounds: tuple[int, int]) -> None:
    least, most = bounds
    batch = listops.generate(seed, 0, 20, least, most)
    for symbols, length, label in zip(*batch, strict=True):
        own = symbols[:length].tolist()
        assert least < length < most
        assert listops.evaluate(own) == label
        assert not symbols[length:].any()
        depth = np.cumsum([(s in range(listops.MIN, listops.CLOSE)) - (s == listops.CLOSE) for s in own])
        assert depth.max() < listops.MAX_DEPTH
        assert symbols_of(listops.to_text(own)) == own


def test_long_listops_expressions_reach_the_greatest_depth() -> None:
    for symbols, length, _ in zip(*listops.generate(0, 0, 50), strict=True):
        own = symbols[:length]
        depth = np.cumsum(((own >= listops.MIN) & (own < listops.CLOSE)) * 1 - (own == listops.CLOSE) * 1)
        assert depth.max() == listops.MAX_DEPTH - 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("[MIN 4 2 9 X", 2),
        ("[MAX 4 2 9 X", 9),
        ("[SM 4 9 9 X", 2),
        ("[MED 9 1 2 X", 2),
        ("[MED 1 2 9 4 X", 3),
        ("[MED 1 4 9 0 X", 2),  # the mean 2.5, truncated
        ("[MAX [MIN 3 [SM 9 9 X X 1 X", 3),
    ],
)
def test_listops_operators(text: str, value: int) -> None:
    assert listops.evaluate(symbols_of(text)) == value


@pytest.mark.parametrize("text", ["", "1 2", "[MAX 1 2", "1 X", "[MAX X"])
def test_listops_evaluates_only_whole_expressions(text: str) -> None:
    with pytest.raises(ValueError, match=r"expression|bracket"):
        listops.evaluate(symbols_of(text))


def test_listops_official_rows(mirror: Path, tmp_path: Path) -> None:
    path = mirror / "listops" / "format_sample.tsv"
    rows = list(listops.read_tsv(path))
    assert len(rows) == 5
    lines = path.read_text(encoding="ascii").splitlines()[1:]
    for (symbols, label), line in zip(rows, lines, strict=True):
        assert listops.evaluate(symbols.tolist()) == label
        assert f"{listops.to_text(symbols.tolist())}\t{label}" == line
    # Written again: the writer's CRLF, nothing else changed.
    listops.write_tsv(tmp_path / "again.tsv", [(symbols.tolist(), label) for symbols, label in rows])
    assert (tmp_path / "again.tsv").read_bytes().replace(b"\r\n", b"\n").split() == path.read_bytes().split()
    assert (tmp_path / "again.tsv").read_bytes().count(b"\r\n") == 6


def test_listops_files_read_back(tmp_path: Path) -> None:
    batch = listops.generate(1, 0, 20, 0, 80)
    examples = [(s[:n].tolist(), int(y)) for s, n, y in zip(*batch, strict=True)]
    listops.write_tsv(tmp_path / "some.tsv", examples)
    assert [(symbols.tolist(), label) for symbols, label in listops.read_tsv(tmp_path / "some.tsv")] == examples


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "first line"),
        ("Target\tSource\n1\t1\n", "first line"),
        ("Source\tTarget\n1\t1\n( ( ( [MAX 1 ) 22 ) ] )\t1\n", r"row 2.*b'22'"),
        ("Source\tTarget\n( ( [FIRST 1 ) ] )\t1\n", r"row 1.*FIRST"),
        ("Source\tTarget\n1\t12\n", "row 1.*'12'"),
        ("Source\tTarget\n1\n", "row 1"),
        ("Source\tTarget\n1\t1\n\n", "row 2"),
        ("Source\tTarget\n<html>\t1\n", "row 1.*html"),
    ],
)
def test_listops_files_that_break_a_rule_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "basic_train.tsv"
    path.write_text(content, encoding="ascii", newline="")
    with pytest.raises(NoscratchError, match=message):
        list(listops.read_tsv(path))


@pytest.mark.parametrize("bounds", [(500, 501), (0, 4), (10, 10), (-1, 20)])
def test_listops_lengths_that_no_expression_has_are_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(NoscratchError, match="strictly between"):
        listops.generate(0, 0, 1, *bounds)


# ---------------------------------------------------------------- Pathfinder


@pytest.mark.parametrize(("size", "indices"), [(32, range(4)), (64, [49]), (128, [29, 23]), (256, [0])])
def test_pathfinder_gives_the_bytes_of_the_straightforward_form(
    bench: ModuleType, size: int, indices: list[int]
) -> None:
    for index in indices:
        images, labels = bench.straightforward_pathfinder(0, index, index + 1, size)
        batch = pathfinder.generate(0, index, index + 1, size)
        np.testing.assert_array_equal(batch.images, images)
        np.testing.assert_array_equal(batch.labels, labels)


@pytest.mark.parametrize(
    ("reference", "size", "seed", "count"), [("pf32_n400_seed1", 32, 1, 6), ("pf256_n16_seed0", 256, 0, 2)]
)
def test_the_straightforward_form_gives_the_bytes_of_the_original(
    bench: ModuleType, mirror: Path, reference: str, size: int, seed: int, count: int
) -> None:
    class Original(bench.Painter):  # type: ignore[misc, name-defined]
        """Draws as the original does; it is its own stream."""

        def __init__(self) -> None:
            super().__init__(self, size)
            self.random = np.random.RandomState(seed)

        def below(self, n: int) -> int:
            return int(self.random.randint(0, n))

        def draw_tail(self, free: np.ndarray) -> tuple[int, int]:
            y, x = free[self.below(len(free))]
            return int(y), int(x)

        draw_first = draw_tail

        def draw_direction(self) -> float:
            return self.below(360) * np.pi / 180

        def draw_weight(self, total: int) -> int:
            return int(self.random.random_sample() * total)

    with np.load(mirror / "pathfinder_reference" / f"{reference}.npz") as arrays:
        images, labels = arrays["X"][:count], arrays["y"][:count]
    original = Original()
    for image, label in zip(images, labels, strict=True):
        made, is_connected = original.paint(pathfinder.PARAMETERS[size].distractors)
        np.testing.assert_array_equal(made, image)
        assert is_connected == label


@pytest.mark.parametrize(
    ("reference", "size", "distractors", "count"),
    [
        ("pf32_n400_seed1", 32, None, 1600),
        ("pf64_n60_seed0", 64, None, 120),
        ("pf128_n40_seed0", 128, None, 120),
        ("pf128_17distractors_n40_seed1", 128, 17, 80),
        ("pf256_n16_seed0", 256, None, 160),
    ],
)
def test_pathfinder_images_are_distributed_as_the_originals(
    mirror: Path, reference: str, size: int, distractors: int | None, count: int
) -> None:
    with np.load(mirror / "pathfinder_reference" / f"{reference}.npz") as arrays:
        original = arrays["X"]
    ours = pathfinder.generate(0, 0, count, size, distractors).images
    statistics = {
        "mean": lambda x: x.mean((1, 2)),
        "pixel standard deviation": lambda x: x.std((1, 2)),
        "above 0": lambda x: (x > 0).mean((1, 2)),
        "above 127": lambda x: (x > 127).mean((1, 2)),
        "255": lambda x: (x == 255).mean((1, 2)),
    }
    for name, of in statistics.items():
        a, b = of(ours), of(original)
        error = (a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)) ** 0.5
        assert abs(a.mean() - b.mean()) < ONE_IN_TEN_THOUSAND * error, name
    # The spread between images, with the error of a standard deviation from the fourth moment.
    a, b = ours.mean((1, 2)), original.mean((1, 2))
    spread = [x.std(ddof=1) for x in (a, b)]
    error = sum((((x - x.mean()) ** 4).mean() / x.var() ** 2 - 1) / (4 * len(x)) for x in (a, b)) ** 0.5
    assert abs(np.log(spread[0] / spread[1])) < ONE_IN_TEN_THOUSAND * error


def test_pathfinder_labels_are_balanced_and_margins_even() -> None:
    batch = pathfinder.generate(0, 0, 1600)
    assert abs(batch.labels.mean() - 0.5) < ONE_IN_TEN_THOUSAND * 0.5 / 40
    assert set(batch.margins) == {1}
    wide = pathfinder.generate(0, 0, 100, 128)
    assert abs((wide.margins == 3).mean() - 0.5) < ONE_IN_TEN_THOUSAND * 0.5 / 10


@pytest.mark.parametrize("size", pathfinder.PARAMETERS)
def test_pathfinder_labels_say_whether_the_marked_ends_are_connected(size: int) -> None:
    batch = pathfinder.generate(5, 0, 40, size)
    for image, label, margin, snakes, (origin, terminal) in zip(*batch, strict=True):
        component = {}
        for name, snake in enumerate(snakes):
            for tail, head in snake.reshape(-1, 2, 2):
                # A paddle is as long as it should be and drawn where the record says.
                assert abs(np.hypot(*(head - tail)) - pathfinder.PARAMETERS[size].length) < 2
                middle = (head + tail) // 2
                assert image[middle[0] - 1 : middle[0] + 2, middle[1] - 1 : middle[1] + 2].max() > 60
            for before, after in pairwise(snake):
                assert np.hypot(*(after[:2] - before[2:])) <= 2 * margin + 3  # no gap is wider than the next dash
            component[tuple(snake[0, :2])] = component[tuple(snake[-1, 2:])] = name
        assert len(component) == 4
        assert (component[tuple(origin)] == component[tuple(terminal)]) == label
        assert tuple(origin) in {tuple(snake[0, :2]) for snake in snakes}
        assert tuple(terminal) in {tuple(snake[-1, 2:]) for snake in snakes}


def test_pathfinder_distractors_are_a_parameter() -> None:
    none, some = (pathfinder.generate(0, 0, 30, 128, distractors) for distractors in (0, 8))
    np.testing.assert_array_equal(none.paddles, some.paddles)
    assert ((none.images > 0).sum((1, 2)) < (some.images > 0).sum((1, 2))).all()
    np.testing.assert_array_equal(some.images, pathfinder.generate(0, 0, 30, 128).images)


@pytest.mark.parametrize(("arguments", "message"), [((48,), "32, 64, 128, 256; got 48"), ((32, -1), "got -1")])
def test_pathfinder_refuses_other_parameters(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(NoscratchError, match=message):
        pathfinder.generate(0, 0, 1, *arguments)
