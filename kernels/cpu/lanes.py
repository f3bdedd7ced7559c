# SPDX-License-Identifier: Apache-2.0
"""Lanes: several numbers side by side as one numba value.

Rows of a splat are 7 to 17 pixels long: too short for LLVM's own vectoriser. ``LanesType`` is a numba type whose
values are vectors of LLVM, on any processor (split into what it has: two registers on AVX2, four on NEON). Every
kernel written with the functions below also runs with one lane, in plain numbers, from the same source: an
argument ``lanes`` chooses. Its *type* decides, so that numba's cache on disk keeps all of them.
"""

import operator

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, overload, register_model

VECTOR = np.int16(16)  # 16 float32: strips of pixels
PLAIN = np.int8(1)  # one float32
DOUBLE = np.uint8(1)  # one float64
INTEGER = np.uint32(1)  # one int32, for load
FAST = {"contract", "nsz", "arcp"}  # not reassoc: the rounding in exp2_above would be optimised away
FUSED = ("contract",)  # of the vector operations: products and sums may fuse, nothing may be reordered
# Least relative error of 2 ** r on [-1/2, 1/2] by a polynomial of degree 5, found by a Remez iteration.
EXP2 = (0.00132779389, 0.009675757641, 0.05550709598, 0.2402211434, 0.6931469682, 1.000000073)


class LanesType(types.Type):
    """Numba type of ``count`` values of the numba type ``scalar``."""

    def __init__(self, scalar, count):
        self.scalar, self.count = scalar, count
        super().__init__(name=f"Lanes({scalar}x{count})")


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, ir.VectorType(_backend(kind.scalar), kind.count))


# By the type of the argument ``lanes``: the values of strips, of narrow strips, and of Gaussians side by side.
KINDS = {
    types.int16: LanesType(types.float32, int(VECTOR)),
    types.uint16: LanesType(types.float32, 8),
    types.int32: LanesType(types.float64, 8),
    types.int8: types.float32,
    types.uint8: types.float64,
    types.uint32: types.int32,
}


def _backend(kind):
    if isinstance(kind, LanesType):
        return ir.VectorType(_backend(kind.scalar), kind.count)
    return {types.float64: ir.DoubleType(), types.float32: ir.FloatType(), types.int32: ir.IntType(32)}[kind]


def _constant(llvm, value):
    """Return the same number in every lane; ``llvm`` is a vector or scalar type."""
    return ir.Constant(llvm, [value] * llvm.count if isinstance(llvm, ir.VectorType) else value)


def _mask(numbers):
    return ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), list(numbers))


def narrow(lanes):
    """Return the argument ``lanes`` for half as many float32 (or one)."""


def doubles(lanes):
    """Return the argument ``lanes`` for as many float64 as fit two registers of AVX2 (or one)."""


@overload(narrow)
def _narrow(lanes):
    return (lambda lanes: np.uint16(8)) if lanes == types.int16 else (lambda lanes: np.int8(1))


@overload(doubles)
def _doubles(lanes):
    return (lambda lanes: np.int32(8)) if lanes == types.int16 else (lambda lanes: np.uint8(1))


@intrinsic
def width(typingctx, lanes):
    """Return the number of lanes, known to the compiler."""
    count = getattr(KINDS[lanes], "count", 1)
    return types.int64(lanes), lambda context, builder, signature, args: ir.Constant(ir.IntType(64), count)


def _spread(context, builder, value, given, kind):
    """Return a value of the type ``kind`` from one of the numba type ``given``: a number goes to every lane."""
    if given == kind:
        return value
    scalar = context.cast(builder, value, given, getattr(kind, "scalar", kind))
    if not isinstance(kind, LanesType):
        return scalar
    vector = builder.insert_element(ir.Constant(_backend(kind), ir.Undefined), scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(vector, vector, _mask([0] * kind.count))


@intrinsic
def spread(typingctx, value, lanes):
    """Return ``value`` in every lane."""
    kind = KINDS[lanes]

    def codegen(context, builder, signature, args):
        return _spread(context, builder, args[0], signature.args[0], kind)

    return kind(value, lanes), codegen


@intrinsic
def ramp(typingctx, lanes):
    """Return 0, 1, 2, ... in the lanes."""
    kind = KINDS[lanes]

    def codegen(context, builder, signature, args):
        llvm = _backend(kind)
        return ir.Constant(llvm, [float(k) for k in range(llvm.count)] if isinstance(kind, LanesType) else 0.0)

    return kind(lanes), codegen


@intrinsic
def widen(typingctx, values, lanes):
    """Return ``values`` of ``narrow(lanes)`` as the first of ``lanes``, zeros behind."""
    kind = KINDS[lanes]

    def codegen(context, builder, signature, args):
        if not isinstance(kind, LanesType):
            return args[0]
        return builder.shuffle_vector(args[0], _constant(args[0].type, 0.0), _mask(range(kind.count)))

    return kind(values, lanes), codegen


def _recast(builder, value, scalar):
    """Convert a vector or scalar of LLVM to float32 or float64."""
    vector = isinstance(value.type, ir.VectorType)
    llvm = ir.VectorType(scalar, value.type.count) if vector else scalar
    if llvm == value.type:
        return value
    return (builder.fpext if isinstance(scalar, ir.DoubleType) else builder.fptrunc)(value, llvm)


@intrinsic
def address(typingctx, array):
    """Return the address of the first element of an array, which the caller keeps alive.

    Inner loops take addresses and tuples of numbers: an array costs them atomic counts of its references.
    """

    def codegen(context, builder, signature, args):
        return builder.ptrtoint(context.make_array(signature.args[0])(context, builder, args[0]).data, ir.IntType(64))

    return types.int64(array), codegen


def _place(builder, at, offset, llvm):
    """Return a pointer to what lies ``offset`` numbers behind the address ``at``."""
    size = 3 if isinstance(getattr(llvm, "element", llvm), ir.DoubleType) else 2
    return builder.inttoptr(builder.add(at, builder.shl(offset, ir.IntType(64)(size))), llvm.as_pointer())


@intrinsic
def load(typingctx, at, offset, lanes):
    """Load the numbers from number ``offset`` on behind the address ``at``, in the type that ``lanes`` asks for."""
    kind = KINDS[lanes]

    def codegen(context, builder, signature, args):
        return builder.load(_place(builder, args[0], args[1], _backend(kind)), align=4)

    return kind(types.int64, types.int64, lanes), codegen


@intrinsic
def store(typingctx, at, offset, values):
    """Store numbers as :func:`load` reads them."""

    def codegen(context, builder, signature, args):
        builder.store(args[2], _place(builder, args[0], args[1], args[2].type), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, values), codegen


@intrinsic
def single(typingctx, values):
    """Round float64 lanes, or a number, to float32."""
    kind = LanesType(types.float32, values.count) if isinstance(values, LanesType) else types.float32

    def codegen(context, builder, signature, args):
        return _recast(builder, args[0], ir.FloatType())

    return kind(values), codegen


def _turned(builder, rows):
    """Exchange rows and columns of eight vectors of eight."""
    for half in (4, 2, 1):  # lanes of blocks of 2, 4, 8 rows change places
        turned = list(rows)
        for k in (k for k in range(8) if not k & half):
            first = [c if not c & half else 8 + (c ^ half) for c in range(8)]
            second = [(c | half) if not c & half else 8 + c for c in range(8)]
            turned[k] = builder.shuffle_vector(rows[k], rows[k | half], _mask(first))
            turned[k | half] = builder.shuffle_vector(rows[k], rows[k | half], _mask(second))
        rows = turned
    return rows


@intrinsic
def gather(typingctx, table, columns, index, start, column, lanes):
    """Load eight columns from ``column`` on of the rows ``index[start + lane]``, as a tuple of float64 lanes.

    ``table`` and ``index``: addresses of float32 in rows of ``columns``, and of int32.
    """
    kind = KINDS[lanes]
    result = types.UniTuple(kind, 8)  # type: ignore[attr-defined]

    def codegen(context, builder, signature, args):
        table, columns, index, start, column = args[:5]
        rows = []
        for lane in range(getattr(kind, "count", 1)):
            row = builder.load(_place(builder, index, builder.add(start, ir.IntType(64)(lane)), ir.IntType(32)))
            offset = builder.add(builder.mul(builder.sext(row, ir.IntType(64)), columns), column)
            rows.append(builder.load(_place(builder, table, offset, ir.VectorType(ir.FloatType(), 8)), align=4))
        if isinstance(kind, LanesType):
            values = _turned(builder, rows)
        else:
            values = [builder.extract_element(rows[0], ir.IntType(32)(k)) for k in range(8)]
        return context.make_tuple(builder, result, [_recast(builder, v, ir.DoubleType()) for v in values])

    return result(*[types.int64] * 5, lanes), codegen


@intrinsic
def scatter(typingctx, at, stride, values):
    """Store lane k of eight float64 lanes or numbers as eight consecutive float32 at ``at + k * stride``."""

    def codegen(context, builder, signature, args):
        parts = [_recast(builder, v, ir.FloatType()) for v in cgutils.unpack_tuple(builder, args[2], 8)]
        if isinstance(signature.args[2].dtype, LanesType):
            rows = _turned(builder, parts)
        else:
            row = ir.Constant(ir.VectorType(ir.FloatType(), 8), ir.Undefined)
            for k, value in enumerate(parts):
                row = builder.insert_element(row, value, ir.IntType(32)(k))
            rows = [row]
        for lane, row in enumerate(rows):
            offset = builder.mul(args[1], ir.IntType(64)(lane))
            builder.store(row, _place(builder, args[0], offset, row.type), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, values), codegen


@intrinsic
def exp2_above(typingctx, e, least):
    """Return ``2 ** e`` where ``e > least``, else 0; relative error under 2e-7 for e in [-126, 127].

    ``e`` is split into its nearest integer and a rest r; 2 ** r is a polynomial, the integer goes to the exponent.
    """

    def codegen(context, builder, signature, args):
        value, floor = args
        llvm = value.type
        bits = ir.VectorType(ir.IntType(32), llvm.count) if isinstance(llvm, ir.VectorType) else ir.IntType(32)
        rounding = _constant(llvm, 12582912.0)  # 1.5 * 2 ** 23: adding it leaves the integer in the low bits
        shifted = builder.fadd(value, rounding)
        rest = builder.fsub(value, builder.fsub(shifted, rounding))
        power = _constant(llvm, EXP2[0])
        for coefficient in EXP2[1:]:
            power = builder.fadd(builder.fmul(power, rest, flags=FUSED), _constant(llvm, coefficient), flags=FUSED)
        exponent = builder.shl(builder.bitcast(shifted, bits), _constant(bits, 23))
        power = builder.bitcast(builder.add(builder.bitcast(power, bits), exponent), llvm)
        return builder.select(builder.fcmp_ordered(">", value, floor), power, _constant(llvm, 0.0))

    return (e(e, least), codegen) if e == least else None


@intrinsic
def total(typingctx, values):
    """Sum the lanes, halves first: the same order on every processor."""

    def codegen(context, builder, signature, args):
        vector = args[0]
        if not isinstance(signature.args[0], LanesType):
            return vector
        count = vector.type.count
        while count > 1:
            count //= 2
            low, high = (builder.shuffle_vector(vector, vector, _mask(range(k, k + count))) for k in (0, count))
            vector = builder.fadd(low, high)
        return builder.extract_element(vector, ir.IntType(32)(0))

    return getattr(values, "scalar", values)(values), codegen


def _join(builder, a, b, group):
    """Sum the halves of every ``group`` lanes of ``a``, then of ``b``."""
    starts = range(0, 2 * a.type.count, group)
    halves = ([k + c for k in starts for c in range(h, h + group // 2)] for h in (0, group // 2))
    return builder.fadd(*(builder.shuffle_vector(a, b, _mask(half)) for half in halves))


@intrinsic
def totals(typingctx, at, lanes):
    """Return in lane k the sum of the k-th ``lanes`` float32 behind the address ``at``; of ``doubles(lanes)``."""
    kind = KINDS[types.int32 if lanes == types.int16 else types.uint8]
    count = getattr(kind, "count", 1)

    def codegen(context, builder, signature, args):
        row = _backend(KINDS[lanes])
        vectors = [
            builder.load(_place(builder, args[0], ir.IntType(64)(k * int(VECTOR)), row), align=4) for k in range(count)
        ]
        if count == 1:
            return _recast(builder, vectors[0], ir.DoubleType())
        half = group = row.count // 2
        vectors = [
            builder.fadd(*(builder.shuffle_vector(v, v, _mask(range(k, k + half))) for k in (0, half))) for v in vectors
        ]
        while len(vectors) > 1:
            vectors = [_join(builder, *vectors[k : k + 2], group) for k in range(0, len(vectors), 2)]  # type: ignore[call-arg]
            group //= 2
        return _recast(builder, vectors[0], ir.DoubleType())

    return kind(types.int64, lanes), codegen


@intrinsic
def root(typingctx, values):
    """Return the square root of every lane."""

    def codegen(context, builder, signature, args):
        llvm = args[0].type
        name = {"float": "f32", "double": "f64"}[str(getattr(llvm, "element", llvm))]
        name = f"v{llvm.count}{name}" if isinstance(llvm, ir.VectorType) else name
        return builder.call(
            builder.module.declare_intrinsic(f"llvm.sqrt.{name}", fnty=ir.FunctionType(llvm, [llvm])), args
        )

    return values(values), codegen


@intrinsic
def positive(typingctx, values):
    """Return the values where they are greater than 0, else 0."""

    def codegen(context, builder, signature, args):
        zero = _constant(args[0].type, 0.0)
        return builder.select(builder.fcmp_ordered(">", args[0], zero), args[0], zero)

    return values(values), codegen


def _arithmetic(operation, instruction):
    """Overload an operator for lanes, and for lanes and a number."""

    @intrinsic
    def apply(typingctx, a, b):
        kind = a if isinstance(a, LanesType) else b

        def codegen(context, builder, signature, args):
            both = (_spread(context, builder, v, t, kind) for v, t in zip(args, signature.args, strict=True))
            return getattr(builder, instruction)(*both, flags=FUSED)

        return kind(a, b), codegen

    @overload(operation)
    def _operation(a, b):
        lanes = [t for t in (a, b) if isinstance(t, LanesType)]
        if lanes and all(t == lanes[0] or isinstance(t, types.Number | types.Literal) for t in (a, b)):
            return lambda a, b: apply(a, b)
        return None


for _operation, _instruction in [
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
]:
    _arithmetic(_operation, _instruction)


@overload(operator.neg)
def _negative(a):
    return (lambda a: 0.0 - a) if isinstance(a, LanesType) else None
