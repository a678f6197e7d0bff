"""Evidence: records become tables (collect), tables and claims become verdicts (judge), and both become pages.

results.parquet    one row = cell x phase x split x metric         collect.SCHEMA
metrics.json       the primary test metric of every cell           collect.collect
curves.parquet     every point of every run's curves               collect.CURVES_SCHEMA
curves.csv         validation scores against steps                 collect.PLOTTED
cells.parquet      one row = cell without its seed                 cells.SCHEMA
flags.parquet      one row = run x flag                            flags.SCHEMA
verdicts.parquet   one row = claim x quantity x tier, + headlines  judge.SCHEMA
compute.parquet    what SPT gains at equal compute, three ways     compute.SCHEMA
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

PART = 1 << 16  # rows


def write_if_changed(path: Path, content: bytes) -> bool:
    """Write a report under a temporary name and rename it, only if its bytes differ; return whether they did.

    A report that did not change keeps its modification time, so that nothing after it looks out of date.
    """
    if path.is_file() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as Parquet: with fixed options, and without pandas' metadata, the same rows are the same bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(None),
        sink,
        version="2.6",
        compression="zstd",
        compression_level=3,
        use_dictionary=True,
        write_statistics=True,
        row_group_size=1 << 20,
        data_page_version="1.0",
        store_schema=True,
    )
    return sink.getvalue().to_pybytes()


def parquet_table(content: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table that is in the bytes of a Parquet file, or those of its columns.

    Read in this thread: a thread of Arrow's that has not let go of Python's memory when the process ends aborts it
    (apache/arrow issue 34314).
    """
    return pq.ParquetFile(pa.BufferReader(content)).read(columns, use_threads=False)


def rows_of(table: pa.Table, *columns: str) -> Iterator[tuple[Any, ...]]:
    """The rows of these columns, a part at a time: a million points are 30 MB for Arrow and 250 MB as Python's."""
    for part in table.select(columns).to_batches(PART):
        yield from zip(*(column.to_pylist() for column in part.columns), strict=True)
