"""Costs of the loops of a compiled program, read from its HLO text: a TPU's cycles, a GPU's kernels and bytes.

Cycles are those that the TPU's compiler itself estimates. A GPU's kernels are counted, and each costs at least its
bytes at the memory's full rate, or its products at the full rate of their kind. None of it is a measurement of time.
"""

import collections
import math
import re
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8, "c64": 8}
FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "iota", "after-all", "partition-id",
        "while", "conditional", "call", "all-reduce-done", "copy-done", "async-done", "slice-done"}  # fmt: skip


class Loop(NamedTuple):
    """What one turn of a loop costs. Loops inside it whose number of turns is known count that often; of branches, the
    dearest counts."""

    cycles: int  # TPU
    kernels: collections.Counter  # GPU, by kind
    bytes: float
    operations: float
    seconds: float  # GPU: the sum of each kernel's roofline
    loops: tuple[str, ...] = ()  # in it, whose number of turns is not known


class Op(NamedTuple):
    """A line of HLO."""

    shape: str
    kind: str
    operands: list[str]
    attributes: str


def loops(text: str, target) -> dict[str, Loop]:
    """Return the cost of the program, and of each of its loops whose number of turns is not known, by name.

    Args:
      text: of the compiled program.
      target: a `targets.Target`.
    """
    code, entry = parse(text)
    found, memo = {}, {}

    def cost(name):
        if name not in memo:
            memo[name] = _total([part for op in code[name].values() if (part := one(name, op))])
        return memo[name]

    def one(name, op):
        """Return an operation's cost and how often it runs, and the loops in it."""
        called = [x for x in re.findall(r"%([\w.\-]+)", op.attributes) if x in code]
        if op.kind == "while":
            turns = re.search(r'known_trip_count":\{"n":"(\d+)"', op.attributes)
            body = re.search(r"body=%([\w.\-]+)", op.attributes)[1]
            inner = cost(body)
            if turns:
                return inner, int(turns[1]), inner.loops
            found[body] = inner
            return inner, 0, (body, *inner.loops)
        if op.kind in ("conditional", "call", "async-start") and called:
            dearest = max(map(cost, called), key=lambda c: (len(c.loops), c.seconds, c.cycles))
            return dearest, 1, dearest.loops
        return _kernel(code, name, op, target)

    return {entry: cost(entry), **found}


def step(found: dict[str, Loop]) -> Loop:
    """Return the training step: the dearest of the loops that hold no other."""
    innermost = [one for one in found.values() if not one.loops]
    return max(innermost, key=lambda one: (one.cycles, one.seconds, sum(one.kernels.values())))


def parse(text: str) -> tuple[dict[str, dict[str, Op]], str]:
    """Return the computations of a program by name, and the name of the first."""
    code, name, entry = {}, None, None
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line):
            name, entry = head[2], head[2] if head[1] else entry
            code[name] = {}
        elif name and (found := re.match(r"\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$", line)):
            inside, _, attributes = found[4].partition(")")
            code[name][found[1]] = Op(found[2], found[3], re.findall(r"%([\w.\-]+)", inside), attributes)
    return code, entry


def _total(parts):
    kernels, inner = collections.Counter(), []
    for cost, times, inside in parts:
        kernels.update({kind: times * count for kind, count in cost.kernels.items() if times})
        inner += inside
    sums = [sum(getattr(c, name) * n for c, n, _ in parts) for name in ("cycles", "bytes", "operations", "seconds")]
    cycles, bytes_, operations, seconds = sums
    return Loop(cycles, kernels, bytes_, operations, seconds, tuple(inner))


def _kernel(code, name, op, target):
    """Return the cost of one kernel, or None where an operation is none."""
    own = re.search(r'estimated_cycles":"(\d+)"', op.attributes)
    if op.kind in FREE or (target.peak is None and not own):
        return None
    amount, operations, kind = _traffic(code, name, op)
    seconds = 0.0 if target.peak is None else max(amount / target.bandwidth, operations / target.peak[kind])
    cycles, label = int(own[1]) if own else 0, collections.Counter([_label(op)])
    return Loop(cycles, label, amount, operations, seconds), 1, ()


def _label(op):
    custom = re.search(r'custom_call_target="([^"]+)"', op.attributes)
    fusion = re.search(r"kind=k(\w+)", op.attributes)
    return custom[1] if custom else f"fusion:{fusion[1]}" if op.kind == "fusion" and fusion else op.kind


def _arrays(shape):
    found = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape)
    return [(kind, [int(n) for n in dims.split(",") if n]) for kind, dims in found]


def _size(shape):
    return sum(BYTES.get(kind, 4) * math.prod(dims) for kind, dims in _arrays(shape))


def _traffic(code, name, op):
    """Return the bytes and operations of a kernel and the kind of the latter; of an array that is only sliced or
    gathered, the slices."""
    shapes, body = [code[name][x].shape for x in op.operands if x in code[name]], {}
    if op.kind == "fusion":
        body = code[re.search(r"calls=%([\w.\-]+)", op.attributes)[1]]
        shapes = [shape for x, y in body.items() if y.kind == "parameter" for shape in _read(body, x)]
    written = sum(_size(body[y.operands[1]].shape) for y in body.values() if y.kind == "dynamic-update-slice")
    products = [(y, [body[x].shape for x in y.operands]) for y in body.values() if y.kind == "dot"] or [(op, shapes)]
    operations = sum(_operations(y, around) for y, around in products)
    narrow = {kind for shape in shapes for kind, _ in _arrays(shape)} & {"bf16", "f16"}
    exact = "highest" in op.attributes.lower() or not operations
    kind = "bf16" if narrow and operations else "f32" if exact else "tf32"
    return (written or _size(op.shape)) + sum(map(_size, shapes)), operations, kind


def _read(body, parameter):
    """Return the shapes that a fusion reads of a parameter."""
    users = [y for y in body.values() if parameter in y.operands]
    parts = ("dynamic-slice", "gather", "slice", "dynamic-update-slice")
    if not users or not all(y.kind in parts and y.operands[0] == parameter for y in users):
        return [body[parameter].shape]
    return [y.shape if y.kind != "dynamic-update-slice" else body[y.operands[1]].shape for y in users]


def _operations(op, shapes):
    """Return the multiplications and additions of a product or a convolution; 0 of anything else."""
    contracted = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][\[{]"?([\d,"]*)', op.attributes)
    if contracted and shapes:
        left = _arrays(shapes[0])[0][1]
        over = math.prod(left[int(i)] for i in re.findall(r"\d+", contracted[1]))
        return 2 * math.prod(_arrays(op.shape)[0][1]) * over
    labels = re.search(r"dim_labels=\w+_\w+->(\w+)", op.attributes)
    if labels and len(shapes) > 1:
        arrays = [_arrays(op.shape)[0][1], *(_arrays(s)[0][1] for s in shapes[:2])]
        backward = {"BackwardInput": (1, 0, 2), "BackwardFilter": (2, 1, 0)}
        order = next((places for word, places in backward.items() if word in op.attributes), (0, 1, 2))
        out, _, kernel = (arrays[i] for i in order)
        return 2 * math.prod(out) * math.prod(kernel) / out[labels[1].index("f")]
    return 0
