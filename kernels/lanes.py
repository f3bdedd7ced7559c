# SPDX-License-Identifier: Apache-2.0
"""Sixteen float32 side by side as one numba value.

Rows of a splat are 7 to 17 pixels long: too short for LLVM's own vectoriser. ``Lanes`` is a numba type whose
values are ``<16 x float>`` of LLVM, on any processor (split into what it has: two registers on AVX2, four on
NEON). Every kernel written with the functions below also runs with one lane, in plain float32, from the same
source: the last argument ``lanes`` chooses. Its *type* decides, so that numba's cache on disk keeps both.
"""

import functools
import operator

import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, overload, register_model

VECTOR = np.int16(16)
PLAIN = np.int8(1)
FAST = {"contract", "nsz", "arcp"}  # not reassoc: the rounding in exp2_above would be optimised away
FUSED = ("contract",)  # of the vector operations: products and sums may fuse, nothing may be reordered
# Least relative error of 2 ** r on [-1/2, 1/2] by a polynomial of degree 5, found by a Remez iteration.
EXP2 = (0.00132779389, 0.009675757641, 0.05550709598, 0.2402211434, 0.6931469682, 1.000000073)


class LanesType(types.Type):
    """Type of ``VECTOR`` float32 values."""

    def __init__(self):
        super().__init__(name="Lanes16")


LANES = LanesType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, ir.VectorType(ir.FloatType(), int(VECTOR)))


def _chosen(lanes):
    """Type of the values that the argument ``lanes`` asks for."""
    return LANES if lanes == types.int16 else types.float32 if lanes == types.int8 else None


def _backend(kind):
    return ir.VectorType(ir.FloatType(), int(VECTOR)) if kind == LANES else ir.FloatType()


def _constant(llvm, value):
    """The same number in every lane; ``llvm`` is a vector or scalar type."""
    return ir.Constant(llvm, [value] * llvm.count if isinstance(llvm, ir.VectorType) else value)


@intrinsic
def width(typingctx, lanes):
    """Number of lanes, known to the compiler."""
    count = int(VECTOR) if lanes == types.int16 else 1
    return types.int64(lanes), lambda context, builder, signature, args: ir.Constant(ir.IntType(64), count)


@intrinsic
def spread(typingctx, value, lanes):
    """``value`` in every lane."""
    kind = _chosen(lanes)

    def codegen(context, builder, signature, args):
        scalar = context.cast(builder, args[0], signature.args[0], types.float32)
        if kind != LANES:
            return scalar
        vector = builder.insert_element(ir.Constant(_backend(kind), ir.Undefined), scalar, ir.IntType(32)(0))
        return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(ir.IntType(32), int(VECTOR)),
                                                                  [0] * int(VECTOR)))
    return kind(value, lanes), codegen


@intrinsic
def ramp(typingctx, lanes):
    """0, 1, 2, ... in the lanes."""
    kind = _chosen(lanes)

    def codegen(context, builder, signature, args):
        llvm = _backend(kind)
        return ir.Constant(llvm, [float(k) for k in range(llvm.count)] if kind == LANES else 0.0)
    return kind(lanes), codegen


def _address(context, builder, signature, args):
    """Address of ``array[i, j]`` as a pointer to the lanes; never checked, never counted from the end."""
    kind, array = signature.args[0], context.make_array(signature.args[0])(context, builder, args[0])
    index = [context.cast(builder, a, t, types.intp) for a, t in zip(args[1:3], signature.args[1:3], strict=True)]
    return cgutils.get_item_pointer(context, builder, kind, array, index, wraparound=False)


@intrinsic
def read(typingctx, array, i, j, lanes):
    """``array[i, j : j + lanes]`` of a C-contiguous float32 array; the caller sees to it that they exist."""
    kind = _chosen(lanes)

    def codegen(context, builder, signature, args):
        llvm = _backend(kind)
        pointer = builder.bitcast(_address(context, builder, signature, args), llvm.as_pointer())
        return builder.load(pointer, align=4)
    return kind(array, i, j, lanes), codegen


@intrinsic
def write(typingctx, array, i, j, values):
    """Store ``values`` to ``array[i, j : j + lanes]``."""
    def codegen(context, builder, signature, args):
        pointer = builder.bitcast(_address(context, builder, signature, args), args[3].type.as_pointer())
        builder.store(args[3], pointer, align=4)
        return context.get_dummy_value()
    return types.void(array, i, j, values), codegen


@intrinsic
def exp2_above(typingctx, e, least):
    """``2 ** e`` where ``e > least``, else 0; relative error under 2e-7 for e in [-126, 127].

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
    """Sum of the lanes, halves first: the same order on every processor."""
    def codegen(context, builder, signature, args):
        vector = args[0]
        if signature.args[0] != LANES:
            return vector
        count = int(VECTOR)
        while count > 1:
            count //= 2
            low, high = ([ir.IntType(32)(k + start) for k in range(count)] for start in (0, count))
            masks = [ir.Constant(ir.VectorType(ir.IntType(32), count), part) for part in (low, high)]
            low, high = (builder.shuffle_vector(vector, vector, mask) for mask in masks)
            vector = builder.fadd(low, high)
        return builder.extract_element(vector, ir.IntType(32)(0))
    return types.float32(values), codegen


def _arithmetic(operation, instruction):
    @intrinsic
    def apply(typingctx, a, b):
        def codegen(context, builder, signature, args):
            return getattr(builder, instruction)(*args, flags=FUSED)
        return LANES(a, b), codegen

    @overload(operation)
    def _operation(a, b):
        if a == LANES and b == LANES:
            return lambda a, b: apply(a, b)
        return None


for _operation, _instruction in [(operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")]:
    _arithmetic(_operation, _instruction)


@nb.njit(cache=True)
def _probe(array, lanes):
    values = exp2_above(read(array, 0, 0, lanes) * ramp(lanes), spread(np.float32(-100.0), lanes))
    write(array, 0, 0, values + values)
    return total(values)


@functools.cache
def vectors_work() -> bool:
    """Whether vectors compile and calculate here; if not, every kernel has its plain form."""
    try:
        return int(_probe(np.ones((1, int(VECTOR)), np.float32), VECTOR)) == 2 ** int(VECTOR) - 1
    except Exception:  # whatever a compiler of another processor may raise
        return False
