"""Block sizes of the Pallas kernel of `fxhlo.grouped_matmul`: a tile of rows and a tile of one group's weight, both with all inputs."""

from __future__ import annotations

from dataclasses import dataclass

from ...runtime.core.targets import LANES, MIB, SUBLANES, Target

ROWS = 256
"""Rows of a tile, of which a group may have few: a v6e multiplies 256 rows in 1.3 times the cycles of 128."""
ROWS_OF_SMALL_VMEM = 64
"""The same for v4, whose VMEM is an eighth of v6e's or less."""
COLUMNS = (1024, 512, 256, 128)
"""Outputs of a tile, the first that fits: each reads all rows once more."""
VMEM_SHARE = 0.85
"""Share of VMEM for both buffers of each block, and what the compiler adds to them."""
SMEM_SHARE = 0.5


@dataclass(frozen=True)
class Tiles:
    """rows, columns: of a tile of the result. vmem: bytes that the kernel needs."""

    rows: int
    columns: int
    vmem: int


def tiles_for(rows: int, groups: int, inputs: int, outputs: int, target: Target) -> Tiles | str:
    """The tiles for bfloat16 operands, or the reason why there are none: one clause."""
    tables = 4 * (2 * most_visits(rows, groups, target) + groups + 1)
    if tables > target.smem * SMEM_SHARE:
        return f"{rows} rows in {groups} groups take {tables / MIB:.1f} MiB of tables, and there are {target.smem / MIB:.0f} of SMEM"
    height = height_of(rows, target)
    for most in COLUMNS:
        columns = _padded(-(-outputs // -(-outputs // most)), LANES)  # as even as can be
        blocks = 2 * (2 * (_padded(height, 2 * SUBLANES) + columns) * _padded(inputs, LANES))
        needed = blocks + blocks // 7 + 4 * 4 * _padded(height, SUBLANES) * columns + MIB
        if needed <= target.vmem * VMEM_SHARE:
            return Tiles(height, min(columns, outputs), needed)
    return f"{columns} columns of {inputs} inputs take {needed / MIB:.0f} MiB of VMEM, and there are {target.vmem / MIB:.0f}"


def height_of(rows: int, target: Target) -> int:
    """Rows of a tile."""
    return min(rows, ROWS if target.vmem >= 64 * MIB else ROWS_OF_SMALL_VMEM)


def most_visits(rows: int, groups: int, target: Target) -> int:
    """How many pairs of a tile of rows and a group with rows in it there may be."""
    return -(-rows // height_of(rows, target)) + groups - 1


def _padded(size: int, to: int) -> int:
    return -(-size // to) * to
