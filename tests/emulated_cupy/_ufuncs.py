"""Elementwise operations, with CuPy's tables of loops and its way of choosing one.

The results are NumPy's, loop for loop. What is CuPy's own is mirrored: the first loop of the table
that takes the inputs is the one used, NumPy arrays are refused, outputs must have the exact shape,
and an input that overlaps the output is copied first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import _array
from ._devices import get_device_id
from ._dtypes import from_code
from ._layout import broadcast_shape
from ._log import Operation, record
from ._scalars import Scalar
from ._streams import current_pointer

_FLOATS = "eEfd"
_INTEGERS = "bBhHiIlLqQ"


class Loop:
    """The dtypes of one loop."""

    def __init__(self, signature: str) -> None:
        ins, out = signature.split("->")
        self.signature = signature
        self.ins = tuple(from_code(code) for code in ins)
        self.out = from_code(out)

    @property
    def exists(self) -> bool:
        return not any(dtype is None for dtype in (*self.ins, self.out))


class ufunc:
    """An elementwise operation; ``function`` computes it on NumPy arrays of the loop's dtypes."""

    def __init__(
        self,
        name: str,
        signatures: list[str],
        function: Callable[..., Any],
        default_casting: str = "same_kind",
        out_signatures: list[str] | None = None,
        strong_ints: bool = False,
    ) -> None:
        self.name = self.__name__ = name
        self.nin = len(signatures[0].split("->")[0])
        self.nout = 1
        self.nargs = self.nin + 1
        self._function = function
        self._default_casting = default_casting
        self._strong_ints = strong_ints
        self._loops = _existing(signatures)
        self._out_loops = _existing(out_signatures) if out_signatures else self._loops

    def __repr__(self) -> str:
        return f"<ufunc '{self.name}'>"

    @property
    def types(self) -> list[str]:
        return [loop.signature for loop in self._loops]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = kwargs.pop("out", None)
        where = kwargs.pop("_where", None)
        dtype = kwargs.pop("dtype", None)
        casting = kwargs.pop("casting", self._default_casting)
        if kwargs:
            raise TypeError(f"Wrong arguments {kwargs}")
        if not self.nin <= len(args) <= self.nargs:
            raise TypeError(
                f"Wrong number of arguments for {self.name!r}. It must be either {self.nin} or"
                f" {self.nargs} (with outputs), but given {len(args)}."
            )
        ins = [as_operand(each) for each in args[: self.nin]]
        out = self._given_output(args[self.nin :], out)
        condition = None if where is None else _condition(where)
        loop = self._choose(ins, dtype)
        if condition is not None:
            ins.append(condition)
        ins = [_apart_from(each, out) for each in ins]
        arrays = [each for each in ins if isinstance(each, _array.ndarray)]
        shape = broadcast_shape([each.shape for each in [*arrays, *([] if out is None else [out])]])
        out = self._output(out, shape, loop, casting, arrays)
        if out.size:
            self._run(ins, condition is not None, loop, out)
        return out

    def _given_output(self, positional: Any, out: Any) -> Any:
        if out is not None and positional:
            raise ValueError("Cannot specify 'out' as both a positional and keyword argument")
        if isinstance(out, tuple):
            if len(out) != 1:
                raise ValueError("The 'out' tuple must have exactly one entry per ufunc output")
            out = out[0]
        if positional:
            out = positional[0]
        if out is None:
            return None
        if not isinstance(as_operand(out), _array.ndarray):
            raise TypeError("Output arguments type must be cupy.ndarray")
        return out

    def _choose(self, ins: list[Any], dtype: Any) -> Loop:
        if dtype is not None:
            wanted = np.dtype(dtype)
            found = next((loop for loop in self._out_loops if loop.out == wanted), None)
        else:
            wanted = tuple(each.dtype for each in ins)
            weak = _weak_types(ins)
            if self._strong_ints:
                weak = _with_strong_ints(ins, weak)
            found = next((loop for loop in self._loops if _takes(loop, wanted, weak)), None)
        if found is None:
            raise TypeError(f"Wrong type ({wanted}) of arguments for {self.name}")
        return found

    def _output(self, out: Any, shape: Any, loop: Loop, casting: str, arrays: list[Any]) -> Any:
        if out is None:
            like = next((each for each in arrays if type(each) is not _array.ndarray), None)
            kind = _array.ndarray if like is None else type(like)
            return kind(shape, loop.out, _obj=like)
        if out.shape != shape:
            raise ValueError("Out shape is mismatched")
        require_cast(loop.out, out.dtype, casting, "output operand")
        return out

    def _run(self, ins: list[Any], conditional: bool, loop: Loop, out: Any) -> None:
        dtypes = (*loop.ins, np.dtype(np.bool_))
        with np.errstate(all="ignore"):
            values = [
                each.as_array(dtype)
                if isinstance(each, Scalar)
                else each._read(self.name).astype(dtype, copy=False)
                for each, dtype in zip(ins, dtypes, strict=False)
            ]
            where = np.broadcast_to(values.pop(), out.shape) if conditional else True
            result = np.broadcast_to(self._function(*values), out.shape).astype(out.dtype)
        out._write(result, where)
        nbytes = sum(each.nbytes for each in ins if isinstance(each, _array.ndarray))
        record(Operation(self.name, nbytes, out.nbytes, get_device_id(), current_pointer()))


def _existing(signatures: list[str]) -> list[Loop]:
    return [loop for loop in map(Loop, signatures) if loop.exists]


def as_operand(value: Any) -> Any:
    """Return an array of this device or a scalar; anything else raises TypeError."""
    array = _array.from_interface(value)
    return Scalar(value) if array is None else on_this_device(array)


def on_this_device(array: Any) -> Any:
    """Return an array; raises ValueError if another device holds it."""
    if array.data.device_id != get_device_id():
        raise ValueError(
            f"The device where the array resides ({array.data.device_id}) is different from the"
            f" current device ({get_device_id()})."
            " Peer access is unavailable between these devices."
        )
    return array


def _condition(where: Any) -> Any:
    condition = as_operand(where)
    if isinstance(condition, Scalar):
        return Scalar(bool(condition.value))
    if condition.dtype != np.bool_:
        raise TypeError(
            f"Cannot cast array data from {condition.dtype!r} to {np.dtype(bool)!r} according to"
            " the rule 'safe'"
        )
    return condition


def _apart_from(operand: Any, out: Any) -> Any:
    if out is None or not isinstance(operand, _array.ndarray) or operand is out:
        return operand
    return operand.copy() if _array.may_share_bounds(operand, out) else operand


def _kind_score(kind: str) -> int:
    return {"b": 0, "u": 1, "i": 1}.get(kind, 2)


def _weak_types(ins: list[Any]) -> list[Any]:
    """Return what each input gives way as; none does where the scalars are of a higher kind."""
    weak = [each.weak if isinstance(each, Scalar) else False for each in ins]
    scalars = [_kind_score(np.dtype(each).kind) for each in weak if each]
    arrays = [
        _kind_score(each.dtype.kind) for each, given in zip(ins, weak, strict=True) if not given
    ]
    if scalars and arrays and max(arrays) >= max(scalars):
        return weak
    return [False] * len(ins)


def _with_strong_ints(ins: list[Any], weak: list[Any]) -> list[Any]:
    """Let an int beside integers count as what it is, so that comparing it cannot overflow."""
    others = all(each.dtype.kind in "iu" for each in ins if not isinstance(each, Scalar))
    return [False if each is int and others else each for each in weak]


def _takes(loop: Loop, dtypes: tuple[np.dtype[Any], ...], weak: list[Any]) -> bool:
    for dtype, wanted, given in zip(dtypes, loop.ins, weak, strict=True):
        if np.can_cast(dtype, wanted):
            continue
        if not given or np.result_type(given(0), wanted) != wanted:
            return False
    return True


def require_cast(
    given: np.dtype[Any], wanted: np.dtype[Any], casting: str, what: str = "array data"
) -> None:
    """Raise TypeError where a casting rule forbids a conversion."""
    if casting == "same_kind" and given.kind == wanted.kind:
        return
    if not np.can_cast(given, wanted, casting):
        raise TypeError(
            f"Cannot cast {what} from {given!r} to {wanted!r} according to the rule '{casting}'"
        )


def _unary(codes: str, out: str = "") -> list[str]:
    return [f"{code}->{out or code}" for code in codes]


def _binary(codes: str, out: str = "") -> list[str]:
    return [f"{code}{code}->{out or code}" for code in codes]


_ARITHMETIC = _binary("?bBhHiIlLqQ" + _FLOATS)
_COMPARISON = [*_binary("?qQ", "?"), "qQ->?", "Qq->?", *_binary(_FLOATS, "?")]

add = ufunc("cupy_add", _ARITHMETIC, np.add)
subtract = ufunc("cupy_subtract", _ARITHMETIC, np.subtract)
multiply = ufunc("cupy_multiply", _ARITHMETIC, np.multiply)
true_divide = ufunc(
    "cupy_true_divide",
    ["qq->d", "qQ->d", "Qq->d", "QQ->d", *_binary(_FLOATS)],
    np.true_divide,
    out_signatures=_binary(_FLOATS),
)
negative = ufunc("cupy_negative", _unary("?" + _INTEGERS + _FLOATS), np.negative)
absolute = ufunc("cupy_absolute", _unary("?" + _INTEGERS + _FLOATS), np.absolute)
exp = ufunc("cupy_exp", _unary(_FLOATS), np.exp)
minimum = ufunc("cupy_minimum", _ARITHMETIC, np.minimum)
isnan = ufunc("cupy_isnan", _unary(_FLOATS, "?"), np.isnan)
less = ufunc("cupy_less", _COMPARISON, np.less, strong_ints=True)
less_equal = ufunc("cupy_less_equal", _COMPARISON, np.less_equal, strong_ints=True)
equal = ufunc("cupy_equal", _COMPARISON, np.equal, strong_ints=True)
not_equal = ufunc("cupy_not_equal", _COMPARISON, np.not_equal, strong_ints=True)
greater = ufunc("cupy_greater", _COMPARISON, np.greater, strong_ints=True)
greater_equal = ufunc("cupy_greater_equal", _COMPARISON, np.greater_equal, strong_ints=True)

elementwise_copy = ufunc(
    "cupy_copy", _unary("?" + _INTEGERS + _FLOATS), lambda values: values, "unsafe"
)
