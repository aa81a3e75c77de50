"""What must be known of an ONNX file before TensorRT's parser sees it, read without the package onnx (boards lack it).

TensorRT takes symmetric quantization only. It refuses a zero point other than 0, but reads uint8 with zero point 0 as
int8 without a word, and half of the values are cut off (TensorRT-RTX 1.7). The parser also opens files with weights by
itself, wherever they are said to be.

Field numbers: onnx/onnx.proto (ONNX 1.21). Wire format: https://protobuf.dev/programming-guides/encoding/
"""

import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from targets.errors import InputError, WorkerError

_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
_TENSOR_NAME, _TENSOR_TYPE, _TENSOR_INTS, _TENSOR_RAW, _EXTERNAL = 8, 2, 5, 9, 13
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_TYPES = {2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 21: "uint4", 22: "int4"}
_SIGNED = ("int8", "int16", "int4")

_OPERATOR, _ATTRIBUTE, _ATTRIBUTE_TENSOR = 4, 5, 5
_FLOAT16, _BFLOAT16, _FLOAT8 = 10, 16, (17, 18, 19, 20)

Field = tuple[int, "memoryview | int"]


@dataclass(frozen=True)
class Contents:
    """What a graph holds."""

    operators: Counter[str]
    """nodes by kind, without those of subgraphs"""
    types: Counter[int]
    """weights by ONNX's number of their type, those of Constant nodes too"""

    @property
    def halves(self) -> bool:
        """Whether some of what it holds is float16."""
        return self.types[_FLOAT16] > 0

    @property
    def bfloats(self) -> bool:
        """Whether some of what it holds is bfloat16."""
        return self.types[_BFLOAT16] > 0

    @property
    def precision(self) -> str:
        """What the graph was made for, as its Q/DQ nodes and the types of its weights show it."""
        if any(kind in self.types for kind in _FLOAT8):
            return "fp8"
        if self.operators["QuantizeLinear"]:
            return "int8"
        if self.operators["DequantizeLinear"]:
            return "int8_weights"
        return "bf16" if self.types[_BFLOAT16] else "fp16" if self.types[_FLOAT16] else "fp32"


def read_contents(runtime: str, path: Path) -> Contents:
    """Count nodes and weights of an ONNX file; raises WorkerError for a file that is not ONNX."""
    operators: Counter[str] = Counter()
    types: Counter[int] = Counter()
    try:
        for number, graph in _fields(_view(runtime, path)):
            for kind, part in _messages(graph) if number == _GRAPH else ():
                if kind == _NODE:
                    operators["".join(bytes(text).decode() for at, text in _messages(part) if at == _OPERATOR)] += 1
                    types.update(_type_of(tensor) for tensor in _constants(part))
                elif kind == _INITIALIZER:
                    types[_type_of(part)] += 1
    except (IndexError, ValueError) as error:
        raise WorkerError(f"{runtime} cannot read {path.name!r}: it is not ONNX or is cut off") from error
    return Contents(operators, types)


def _constants(node: memoryview) -> Iterator[memoryview]:
    """Tensors among the attributes of a node."""
    for at, attribute in _messages(node):
        if at == _ATTRIBUTE:
            yield from (tensor for number, tensor in _messages(attribute) if number == _ATTRIBUTE_TENSOR)


def _type_of(tensor: memoryview) -> int:
    """ONNX's number of a tensor's type."""
    return next((value for number, value in _fields(tensor) if number == _TENSOR_TYPE and isinstance(value, int)), 0)


def check_graph(runtime: str, path: Path) -> None:
    """Refuse asymmetric Q/DQ with its node's name, and weights outside the model's folder.

    Raises InputError, WorkerError for a file that is not ONNX.
    """
    try:
        _check(runtime, path, _view(runtime, path))
    except (IndexError, ValueError) as error:
        raise WorkerError(f"{runtime} cannot read {path.name!r}: it is not ONNX or is cut off") from error


def _view(runtime: str, path: Path) -> memoryview:
    with open(path, "rb") as file:
        if not path.stat().st_size:
            raise WorkerError(f"{runtime} cannot read {path.name!r}: it is empty")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))  # closed with its last slice


def _check(runtime: str, path: Path, view: memoryview) -> None:
    asymmetric: dict[str, str] = {}
    nodes = []
    for number, graph in _fields(view):
        if number != _GRAPH:
            continue
        for kind, part in _messages(graph):
            if kind == _INITIALIZER:
                name, why = _tensor(path, part)
                asymmetric.update({name: why} if why else {})
            elif kind == _NODE:
                nodes.append(part)
    for part in nodes:
        texts: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: []}
        constant, stored = "", 0
        for kind, value in _fields(part):
            if kind in texts and isinstance(value, memoryview):
                texts[kind].append(bytes(value).decode())
            elif kind == 5:  # attribute: Constant's value
                constant = constant or _constant(path, value)
                stored = stored or _whole(value, "output_dtype")
        operator, inputs = "".join(texts[4]), texts[1]
        if operator == "Constant" and constant:
            asymmetric[texts[2][0]] = constant
        if operator not in _QUANTIZERS:
            continue
        zero = "".join(inputs[2:3])
        wrong = asymmetric.get(zero, "")
        if operator == "QuantizeLinear" and not zero and (not stored or _TYPES.get(stored, "int8") not in _SIGNED):
            wrong = "no zero point, which means uint8"
        if wrong:
            node = repr("".join(texts[3])) if texts[3] else f"with output {texts[2][0]!r}"
            raise InputError(
                f"node {node} ({operator}) has {wrong}, and {runtime} takes symmetric int8 only; "
                "quantize with `symmetric: true`"
            )


def _constant(path: Path, attribute: "memoryview | int") -> str:
    return next((_tensor(path, part)[1] for number, part in _messages(attribute) if number == 5), "")


def _whole(attribute: "memoryview | int", name: str) -> int:
    """Value of a node's attribute of this name, a whole number; 0: it is another."""
    fields = dict(_fields(attribute)) if isinstance(attribute, memoryview) else {}
    called, value = fields.get(1, b""), fields.get(3, 0)
    return value if not isinstance(called, int) and bytes(called) == name.encode() and isinstance(value, int) else 0


def _tensor(path: Path, part: memoryview) -> tuple[str, str]:
    """(name, what makes it an asymmetric zero point or nothing)."""
    name, kind = "", 0
    values: memoryview | bytes = b""
    for number, value in _fields(part):
        if number == _TENSOR_NAME and isinstance(value, memoryview):
            name = bytes(value).decode()
        elif number == _TENSOR_TYPE and isinstance(value, int):
            kind = value
        elif number == _TENSOR_RAW and isinstance(value, memoryview):
            values = value if len(value) < 2**20 else b""
        elif number == _TENSOR_INTS:
            values = bytes(value) if isinstance(value, memoryview) else bytes([value & 0xFF])
        elif number == _EXTERNAL:
            _check_place(path, value)
    if kind not in _TYPES:
        return name, ""
    if _TYPES[kind] not in _SIGNED:
        return name, f"a zero point of type {_TYPES[kind]}"
    return name, f"a zero point other than 0 in {_TYPES[kind]}" if any(values) else ""


def _check_place(path: Path, entry: "memoryview | int") -> None:
    key, value = "", ""
    for number, text in _messages(entry):
        key, value = (bytes(text).decode(), value) if number == 1 else (key, bytes(text).decode())
    if key != "location":
        return
    file = path.parent / value
    if Path(value).is_absolute() or ".." in Path(value).parts or file.is_symlink():
        raise InputError(f"{path.name!r} keeps weights at {value!r}; they must be in a plain file beside it")
    if not file.is_file():
        raise InputError(f"{path.name!r} keeps weights in {value!r}, which is not beside it")


def _messages(value: "memoryview | int") -> Iterator[tuple[int, memoryview]]:
    """Those of a message's fields that are themselves messages, texts or bytes."""
    if isinstance(value, memoryview):
        for number, part in _fields(value):
            if isinstance(part, memoryview):
                yield number, part


def _fields(view: memoryview) -> Iterator[Field]:
    """(number, content) of each field of a message: bytes, or a whole number; raises ValueError or IndexError."""
    at = 0
    while at < len(view):
        tag, at = _varint(view, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(view, at)
            yield number, value
            continue
        if wire not in (1, 2, 5) or not number:
            raise ValueError(f"wire type {wire}")
        size, at = (8, at) if wire == 1 else (4, at) if wire == 5 else _varint(view, at)
        if at + size > len(view):
            raise ValueError("cut off")
        yield number, view[at : at + size]
        at += size


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
