"""Attention over devices that have the caches of other requests: each attends with the rows of its own, and all get all rows.

Comes in: a composite's operands and its partition rule (`Share`), and what a device calls. Goes out: one region, with a sum over the devices
of `rule.requests`, in which each row is on one device and zero on the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...kernels import requests
from ...kernels.spec import Operands, TensorSpec
from ...runtime.core.sharding import REPLICATED
from ..mlir import func, ir
from .context import NUMBER, Lower, calls
from .shardy import Value, local_type, manual
from .shares import Share

BATCH = ("slot_mapping", "block_tables", "seq_lens", "query_start_loc")


def over_requests(share: Share, symbol: str, local: Operands, types: Sequence[ir.Type], lower: Lower) -> list[Value]:
    """The composite's results at the insertion point. symbol: of the function that a device calls. local: the operands of one device. types:
    of the results, as a whole."""
    rule, collectives, call = share.rule, share.collectives, calls(requests.__name__, lower)
    mesh, names = collectives.mesh, list(local.named)
    devices = int(np.prod([mesh.size(axis) for axis in rule.requests]))
    output, cache = (local_type(type_, one, mesh) for type_, one in zip(types, rule.results, strict=True))
    blocks, block_size = local.named["kv_cache"].shape[:2]
    integer, tokens = np.dtype(np.int32), local.named["slot_mapping"].shape[0]
    rows = [name for name in names if name in requests.ROWS]

    def body(values: list[Value]) -> list[Value]:
        given = dict(zip(names, values, strict=True))
        taken = [*rows, *BATCH]
        specs = {**{name: local.named[name] for name in taken}, NUMBER: TensorSpec((), integer)}
        places = ir.RankedTensorType.get([tokens], ir.IntegerType.get_signless(32))
        *own, to = call(
            "taken",
            specs,
            {"block_size": block_size, "blocks": blocks},
            [*(given[name] for name in taken), collectives.start(devices, rule.requests)],
            [*(given[name].type for name in taken), places],
        )
        given |= dict(zip(taken, own, strict=True))
        called = func.CallOp([output, cache], ir.FlatSymbolRefAttr.get(symbol), [given[name] for name in names])
        attended, updated = called.results
        shape = tuple(ir.RankedTensorType(output).shape)
        back = {"output": TensorSpec(shape, local.named["query"].dtype), "places": TensorSpec((tokens,), integer)}
        (mine,) = call("put_back", back, {}, [attended, to], [output])
        return [collectives.sum(mine, rule.requests), updated]

    operands = [(value, rule.operands.get(name, REPLICATED)) for name, value in share.named.items()]
    return manual(operands, list(zip(types, rule.results, strict=True)), mesh, body)
