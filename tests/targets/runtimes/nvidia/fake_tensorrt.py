"""A stand-in for the Python packages `tensorrt` (10 and 11) and `tensorrt_rtx`, made after their documented API.

Parsing reads the ONNX file, building keeps it, running computes it with ONNX's reference evaluator on the addresses
that were set, when the fake CUDA stream is waited for. Only what vitrim calls is there; what differs between 10 and 11
differs here: names of flags, the inspector's dialect, hardware compatibility levels (10.9 on).
"""

import ctypes
import enum
import json
import types
from typing import Any

import numpy as np
import onnx
from fake_cuda import FakeCudart
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

_KINDS = {1: "FLOAT", 10: "HALF", 16: "BF16", 3: "INT8", 17: "FP8", 7: "INT64", 6: "INT32", 9: "BOOL", 2: "UINT8"}
_LAYERS = {"MatMul": "MATRIX_MULTIPLY", "Gemm": "MATRIX_MULTIPLY", "Conv": "CONVOLUTION", "Reshape": "SHUFFLE"}
_LAYERS |= {"QuantizeLinear": "QUANTIZE", "DequantizeLinear": "DEQUANTIZE", "Cast": "CAST", "Identity": "IDENTITY"}
_WORDS = {"FLOAT": "FP32", "HALF": "FP16", "INT8": "Int8", "FP8": "FP8", "BF16": "BFloat16"}


def fake_tensorrt(version: str, cuda: FakeCudart, *, name: str = "tensorrt") -> Any:
    """Make a module. `said`: what the builder was told; `plans_loaded`: how many plans were deserialised."""
    release = tuple(int(one) for one in version.split(".")[:2])
    module: Any = types.ModuleType(name)
    module.__version__ = version
    module.said = said = types.SimpleNamespace(flags=set(), pools={}, profiles=[], level=None, cache=None, compute=[])
    module.plans_loaded = 0
    module.trouble = trouble = {}

    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    class ILogger:
        pass

    ILogger.Severity = Severity  # type: ignore[attr-defined]
    module.ILogger = ILogger
    module.DataType = enum.Enum("DataType", [*dict.fromkeys(_KINDS.values()), "OTHER"])
    module.LayerType = enum.Enum("LayerType", [*sorted(set(_LAYERS.values())), "OTHER"])
    module.TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
    module.LayerInformationFormat = enum.Enum("LayerInformationFormat", "ONELINE JSON")
    module.ProfilingVerbosity = enum.Enum("ProfilingVerbosity", "LAYER_NAMES_ONLY DETAILED NONE")
    module.MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")
    module.CudaGraphStrategy = enum.Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
    module.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", "STRONGLY_TYPED", start=0)
    module.HardwareCompatibilityLevel = enum.Enum(
        "HardwareCompatibilityLevel", "NONE AMPERE_PLUS" + (" SAME_COMPUTE_CAPABILITY" if release >= (10, 9) else "")
    )
    old = "FP16 INT8 BF16 FP8 " if release[0] == 10 else ""
    module.BuilderFlag = enum.Enum(
        "BuilderFlag", old + "TF32 REFIT REFIT_IDENTICAL STRIP_PLAN VERSION_COMPATIBLE EXCLUDE_LEAN_RUNTIME"
    )
    module.ComputeCapability = enum.Enum("ComputeCapability", "NONE CURRENT SM75 SM80 SM86 SM89 SM120 SM121")

    class Tensor:
        def __init__(self, name: str, kind: int, shape: tuple[int, ...]) -> None:
            self.name, self.shape = name, shape
            self.dtype = module.DataType[_KINDS.get(kind, "OTHER")]

    class Layer:
        def __init__(self, node: onnx.NodeProto, tensors: dict[str, Tensor]) -> None:
            self.name = node.name or node.output[0]
            self.type = module.LayerType[_LAYERS.get(node.op_type, "OTHER")]
            self._inputs = [tensors.get(one) for one in node.input]
            self._outputs = [tensors[one] for one in node.output if one in tensors]
            self.num_inputs, self.num_outputs = len(self._inputs), len(self._outputs)
            self._node, self._weights = node, tensors.get(node.input[1]) if len(node.input) > 1 else None

        def get_input(self, index: int) -> Tensor | None:
            return self._inputs[index]

        def get_output(self, index: int) -> Tensor:
            return self._outputs[index]

    class ConvolutionLayer(Layer):
        """What a layer is made into by whoever asks for its window."""

        @property
        def kernel_size_nd(self) -> tuple[int, ...]:
            assert self._weights is not None
            return tuple(self._weights.shape[2:])

        @property
        def num_groups(self) -> int:
            return next((one.i for one in self._node.attribute if one.name == "group"), 1)

    module.IConvolutionLayer = ConvolutionLayer

    class Network:
        num_inputs = num_outputs = num_layers = 0

        def read(self, model: onnx.ModelProto) -> None:
            self.model = onnx.shape_inference.infer_shapes(model)
            graph = self.model.graph
            infos = {one.name: one.type.tensor_type for one in [*graph.value_info, *graph.input, *graph.output]}
            tensors = {
                name: Tensor(name, one.elem_type, tuple(size.dim_value or -1 for size in one.shape.dim))
                for name, one in infos.items()
            }
            tensors |= {one.name: Tensor(one.name, one.data_type, tuple(one.dims)) for one in graph.initializer}
            self._inputs = [tensors[one.name] for one in graph.input]
            self._outputs = [tensors[one.name] for one in graph.output]
            self._layers = [Layer(node, tensors) for node in graph.node]
            self.num_inputs, self.num_outputs = len(self._inputs), len(self._outputs)
            self.num_layers = len(self._layers)

        def get_input(self, index: int) -> Tensor:
            return self._inputs[index]

        def get_output(self, index: int) -> Tensor:
            tensor = self._outputs[index]
            tensor.shape = (self._inputs[0].shape[0], *tensor.shape[1:])  # a batch that was settled spreads
            return tensor

        def get_layer(self, index: int) -> Layer:
            return self._layers[index]

    class ParserError:
        def node_name(self) -> str:
            return "odd"

        def node_operator(self) -> str:
            return "Frobnicate"

        def node(self) -> int:
            return 2

        def desc(self) -> str:
            return "Assertion failed: it is not\n supported"

    class OnnxParser:
        def __init__(self, network: Network, logger: Any) -> None:
            self._network, self.num_errors = network, 0

        def parse_from_file(self, path: str) -> bool:
            model = onnx.load(path)
            if any(node.op_type == "Frobnicate" for node in model.graph.node):
                self.num_errors = 1
                return False
            self._network.read(model)
            return True

        def get_error(self, index: int) -> ParserError:
            return ParserError()

    class TimingCache:
        def __init__(self, content: bytes) -> None:
            self.content = content

        def serialize(self) -> bytes:
            return self.content + b"+"

    class Config:
        def __init__(self) -> None:
            self.__dict__.update(num_compute_capabilities=0, _flags={"TF32"})

        def set_flag(self, flag: Any) -> None:
            self._flags.add(flag.name)

        def clear_flag(self, flag: Any) -> None:
            self._flags.discard(flag.name)

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            said.pools[pool.name] = size

        def set_compute_capability(self, one: Any, index: int) -> bool:
            assert index < self.num_compute_capabilities
            said.compute.append(one.name)
            return True

        def add_optimization_profile(self, profile: Any) -> int:
            said.profiles.append(profile.shapes)
            return 0

        def create_timing_cache(self, content: bytes) -> TimingCache:
            said.cache = content
            return TimingCache(content)

        def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            self._cache = cache
            return not (cache.content and trouble.get("foreign cache"))

        def get_timing_cache(self) -> TimingCache:
            return self._cache

    class Profile:
        def __init__(self) -> None:
            self.shapes: dict[str, Any] = {}

        def set_shape(self, name: str, least: Any, usual: Any, most: Any) -> None:
            self.shapes[name] = (least, usual, most)

    class Builder:
        def __init__(self, logger: Any) -> None:
            self._logger, self.max_threads = logger, 1

        def create_network(self, flags: int = 0) -> Network:
            assert flags == 1 or release[0] > 10, "TensorRT 10 builds weakly typed networks unless it is told"
            return Network()

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
            if "build" in trouble:
                self._logger.log(Severity.ERROR, trouble["build"])
                return None
            said.flags, said.level = set(config._flags), config.builder_optimization_level  # type: ignore[attr-defined]
            said.hardware = getattr(config, "hardware_compatibility_level", None)
            said.verbosity = config.profiling_verbosity  # type: ignore[attr-defined]
            shapes = {one.name: list(one.shape) for one in network._inputs}
            ranges = {name: [list(one) for one in given] for name, given in (said.profiles or [{}])[-1].items()}
            head = json.dumps(
                {"version": version, "shapes": shapes, "ranges": ranges, "stripped": "STRIP_PLAN" in said.flags}
            )
            return head.encode() + b"\n" + network.model.SerializeToString()

    class Context:
        def __init__(self, engine: "Engine") -> None:
            self._engine, self._shapes, self._addresses = engine, dict[str, Any](), dict[str, int]()
            self.profiler: Any = None

        def set_input_shape(self, name: str, shape: Any) -> bool:
            least, most = self._engine.limits(name)
            self._shapes[name] = tuple(shape)
            return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            batch = next(iter(self._shapes.values()))[0]
            return tuple(batch if size < 0 else size for size in self._engine.get_tensor_shape(name))

        def set_tensor_address(self, name: str, address: int) -> bool:
            self._addresses[name] = address
            return True

        def execute_async_v3(self, stream: int) -> bool:
            assert stream in cuda.live["stream"]
            cuda.calls.append("execute")
            if cuda.recording() and "record" in trouble:
                self._engine.logger.log(Severity.ERROR, trouble["record"])
                return False
            if "execute" in trouble:
                self._engine.logger.log(Severity.ERROR, trouble["execute"])
                return False
            cuda.enqueue(self._compute)
            return True

        def _compute(self) -> None:
            feeds = {name: self._view(name, shape).copy() for name, shape in self._shapes.items()}
            names = [one.name for one in self._engine.model.graph.output]
            for name, answer in zip(names, ReferenceEvaluator(self._engine.model).run(names, feeds), strict=True):
                np.copyto(self._view(name, answer.shape), answer)
            if self.profiler is not None:
                for index, node in enumerate(self._engine.model.graph.node):
                    self.profiler.report_layer_time(f"fused_{node.name or node.output[0]}", 1.0 + index)

        def _view(self, name: str, shape: Any) -> Any:
            dtype = helper.tensor_dtype_to_np_dtype(self._engine.kind(name))
            memory = (ctypes.c_char * (dtype.itemsize * int(np.prod(shape)))).from_address(self._addresses[name])
            return np.frombuffer(memoryview(memory), dtype).reshape(shape)

    class Inspector:
        def __init__(self, engine: "Engine") -> None:
            self._engine = engine

        def get_engine_information(self, form: Any) -> str:
            assert form is module.LayerInformationFormat.JSON
            network = Network()
            network.read(self._engine.model)
            layers = [self._layer(network, one) for one in network._layers]
            if release[0] == 10:
                return json.dumps({"Layers": layers, "Bindings": [one.name for one in network._inputs]})
            return json.dumps({"Layers": layers, "I/O Tensors": [{"Name": one.name} for one in network._inputs]})

        def _layer(self, network: Network, layer: Layer) -> dict[str, Any]:
            """A product whose inputs come dequantised is one layer with them, as the real builder fuses it."""
            made = {tensor.name: one for one in network._layers for tensor in one._outputs}
            inputs = [one for one in layer._inputs if one is not None]
            through = [made.get(one.name) for one in inputs]
            kinds = [
                (before._inputs[0] if before and before.type is module.LayerType.DEQUANTIZE else one).dtype.name
                for before, one in zip(through, inputs, strict=True)
            ]
            if release[0] == 10:
                told = [{"Format/Datatype": f"Row major linear {_WORDS.get(one, one)} format"} for one in kinds]
            else:
                told = [{"Format": "Row major linear", "DataType": _WORDS.get(one, one)} for one in kinds]
            return {"Name": f"fused_{layer.name}", "Inputs": told, "Metadata": f"[ONNX Layer: {layer.name}]"}

    class Engine:
        def __init__(self, plan: bytes, logger: Any) -> None:
            head, _, body = plan.partition(b"\n")
            self._facts, self.logger = json.loads(head), logger
            self.model = onnx.load_from_string(body)
            self._names = [one.name for one in [*self.model.graph.input, *self.model.graph.output]]
            self.num_io_tensors, self.refitted = len(self._names), False

        def get_tensor_name(self, index: int) -> str:
            return self._names[index]

        def get_tensor_mode(self, name: str) -> Any:
            return module.TensorIOMode.INPUT if name in self._facts["shapes"] else module.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            return module.DataType[_KINDS[self.kind(name)]]

        def kind(self, name: str) -> int:
            """ONNX's number of the type of an input or output."""
            ends = [*self.model.graph.input, *self.model.graph.output]
            return next(one.type.tensor_type.elem_type for one in ends if one.name == name)

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            if name in self._facts["shapes"]:
                return tuple(self._facts["shapes"][name])
            batch = next(iter(self._facts["shapes"].values()))[0]
            sizes = next(one for one in self.model.graph.output if one.name == name).type.tensor_type.shape.dim
            return (batch, *(size.dim_value for size in sizes[1:]))

        def get_tensor_profile_shape(self, name: str, index: int) -> list[Any]:
            return list(self._facts["ranges"][name])

        def limits(self, name: str) -> tuple[Any, Any]:
            fixed = self._facts["shapes"][name]
            least, _, most = self._facts["ranges"].get(name, (fixed, fixed, fixed))
            return least, most

        def create_execution_context(self, config: Any = None) -> Context | None:
            if self._facts["stripped"] and not self.refitted:
                raise AssertionError("the engine has no weights")
            module.last_config = config
            return None if "context" in trouble else Context(self)

        def create_engine_inspector(self) -> Inspector:
            return Inspector(self)

        def create_runtime_config(self) -> Any:
            return RuntimeConfig()

    class RuntimeCache:
        def __init__(self) -> None:
            self.content = b"compiled"

        def deserialize(self, content: bytes) -> bool:
            self.content = content
            return True

        def serialize(self) -> bytes:
            return self.content

    class RuntimeConfig:
        cuda_graph_strategy: Any = None

        def create_runtime_cache(self) -> RuntimeCache:
            return RuntimeCache()

        def set_runtime_cache(self, cache: RuntimeCache) -> bool:
            self.cache = cache
            return True

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            module.plans_loaded += 1
            module.host_code_allowed = self.engine_host_code_allowed
            if "deserialize" in trouble:
                self._logger.log(Severity.ERROR, trouble["deserialize"])
                return None
            return Engine(bytes(plan), self._logger)

    class Refitter:
        def __init__(self, engine: Engine, logger: Any) -> None:
            self.engine = engine

        def refit_cuda_engine(self) -> bool:
            self.engine.refitted = True
            return True

    class OnnxParserRefitter:
        def __init__(self, refitter: Refitter, logger: Any) -> None:
            self._refitter = refitter

        def refit_from_file(self, path: str) -> bool:
            return onnx.load(path).graph.node[0] == self._refitter.engine.model.graph.node[0]

    class IProfiler:
        pass

    for one in (Builder, OnnxParser, Runtime, Refitter, OnnxParserRefitter, IProfiler):
        setattr(module, one.__name__, one)
    return module


def save_int8(path: Any) -> Any:
    """A symmetric int8 product: Reshape, Q/DQ, MatMul with a dequantised weight, batch dynamic."""
    weight = np.random.default_rng(0).integers(-100, 100, (192, 10)).astype(np.int8)
    tensors = [
        numpy_helper.from_array(weight, "w_q"),
        numpy_helper.from_array(np.float32(0.01), "scale"),
        numpy_helper.from_array(np.int8(0), "zero"),
        numpy_helper.from_array(np.array([-1, 192]), "shape"),
    ]
    nodes = [
        helper.make_node("Reshape", ["image", "shape"], ["flat"], name="reshape"),
        helper.make_node("QuantizeLinear", ["flat", "scale", "zero"], ["x_q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["x_q", "scale", "zero"], ["x"], name="dequantize"),
        helper.make_node("DequantizeLinear", ["w_q", "scale", "zero"], ["w"], name="weight"),
        helper.make_node("MatMul", ["x", "w"], ["logits"], name="product"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, "int8", [image], [output], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path
