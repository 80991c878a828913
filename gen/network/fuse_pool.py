"""Pooling of a graph as steps on the vector unit."""

from __future__ import annotations

import numpy as np
from maskwork.gen.config import Config
from maskwork.gen.network.elementwise import Pool
from maskwork.gen.network.fuse import Refused, covered, must_tail, needs_vector, points, quantised_input
from maskwork.gen.network.fuse_products import spatial
from maskwork.gen.network.graph import Graph, Node
from maskwork.gen.network.quant import Quantised, can_multiply
from maskwork.gen.network.steps import Step

MOST_WINDOW = 1 << 14
"""Values of one window that the vector unit counts."""


def pool(graph: Graph, node: Node, config: Config) -> list[Step]:
    """MaxPool, AveragePool and their global forms; MaxPool of integers as well."""
    needs_vector(config)
    is_max = node.op in ("MaxPool", "GlobalMaxPool")
    name = node.inputs[0]
    if node.op == "MaxPool" and len([o for o in node.outputs if o]) > 1:
        raise Refused("its second output is asked for")
    if node.op == "MaxPool" and graph.dtypes[name].kind in "iu":
        x = target = Quantised(name, graph.dtypes[name], np.ones(()), np.zeros((), dtype=np.int64))
        if not can_multiply(x):
            raise Refused("its type is not int8 or uint8")
        low, high, output, nodes = *x.limits, node.outputs[0], covered(node)
    else:
        x, end = quantised_input(graph, node, 0), must_tail(graph, node)
        target, low, high, output, nodes = end.target, end.low, end.high, end.target.name, covered(node, end)
    shape = graph.shapes[name]
    taps = tuple(shape[2:]) if node.op.startswith("Global") else tuple(node.attributes["kernel_shape"])
    how = spatial(graph, node, taps)
    if int(np.prod(taps)) > MOST_WINDOW:
        raise Refused(f"a window has {int(np.prod(taps))} positions; the vector unit counts {MOST_WINDOW}")
    step = Pool(
        name=node.name, nodes=nodes, operation=node.op, inputs=(x.name,), outputs=(output,), target=target, low=low,
        high=high, kind="max" if is_max else "sum", x=x, x_shape=shape, y_shape=graph.shapes[node.outputs[0]],
        kernel=taps, multipliers={}, count_padding=bool(node.attributes.get("count_include_pad", 0)), **how,
    )  # fmt: skip
    ratio = float(x.scale / target.scale)
    if is_max:
        step.multipliers[0] = _point(ratio)
    else:
        for count in np.unique(step.counts()):
            if not count:
                raise Refused("a window lies in the padding altogether")
            step.multipliers[int(count)] = _point(ratio / int(count))
    return [step]


def _point(ratio: float) -> tuple[int, int]:
    (mult,), shift = points((ratio,))
    return mult, shift
