"""What ONNX Runtime's providers for GPUs are told: every option that changes answers, speed or memory, as texts.

Names and forms: onnxruntime.ai/docs/execution-providers; the parsers of onnxruntime-gpu 1.31.1 take them. The CUDA
provider takes 0 and 1, TensorRT's `True` and `False` only.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from targets.runtimes.nvidia.options import MOST_IMAGES
from targets.runtimes.ort.library import CUDA, TENSORRT, Provider
from targets.runtimes.ort.options import ARENA
from targets.runtimes.runtime import TensorFacts, query_shape

CONTEXT = "model_ctx.onnx"
"""graph of one node that stands for TensorRT's engine, which lies beside it"""


def cuda_provider(options: Mapping[str, Any], *, cuda_graph: bool) -> Provider:
    """Name and options of the CUDA provider. options: of `read_options`."""
    limit = {"gpu_mem_limit": str(options["memory_mib"] << 20)} if options["memory_mib"] else {}
    return CUDA, {
        "device_id": str(options["device"]),
        "arena_extend_strategy": ARENA[options["arena"]],
        "cudnn_conv_algo_search": options["convolution_search"].upper(),
        "do_copy_in_default_stream": "1",
        "use_tf32": "1" if options["tf32"] else "0",  # the library's default is 1
        "enable_cuda_graph": "1" if cuda_graph else "0",
        **limit,
    }


def tensorrt_builder(
    options: Mapping[str, Any],
    *,
    folder: Path,
    shapes: Mapping[str, str],
    timing_cache: Path | None,
    halves: bool = False,
) -> Provider:
    """Name and options of TensorRT's provider that builds an engine and leaves it in a folder.

    shapes: of `profile_shapes`. halves: the graph holds float16 between its quantized products. What the graph holds
    alone says which types TensorRT may use.
    """
    precision = options["precision"]
    told = {
        "device_id": str(options["device"]),
        "trt_fp16_enable": _told(precision == "fp16" or halves),
        "trt_bf16_enable": _told(False),
        "trt_int8_enable": _told(precision == "int8"),  # without a table of ranges: between Q/DQ only
        "trt_int8_use_native_calibration_table": _told(False),
        "trt_builder_optimization_level": str(options["optimization_level"]),
        "trt_cuda_graph_enable": _told(False),
        "trt_engine_cache_enable": _told(True),
        "trt_engine_hw_compatible": _told(False),
        "trt_dump_ep_context_model": _told(True),
        "trt_ep_context_file_path": str(folder / CONTEXT),
        "trt_ep_context_embed_mode": "0",  # the engine lies beside the graph: a protobuf ends at 2 GiB
        "trt_timing_cache_enable": _told(timing_cache is not None),
        "trt_force_timing_cache": _told(False),  # times of another GPU choose slow kernels
        **shapes,
    }
    if timing_cache is not None:
        told["trt_timing_cache_path"] = str(timing_cache)
    if options["workspace_mib"]:
        told["trt_max_workspace_size"] = str(options["workspace_mib"] << 20)
    return TENSORRT, told


def tensorrt_loader(options: Mapping[str, Any], *, cuda_graph: bool) -> Provider:
    """Name and options of TensorRT's provider that runs an engine as it was built."""
    return TENSORRT, {
        "device_id": str(options["device"]),
        "trt_cuda_graph_enable": _told(cuda_graph),
        "trt_engine_cache_enable": _told(False),
        "trt_dump_ep_context_model": _told(False),
    }


def profile_shapes(inputs: Sequence[TensorFacts]) -> dict[str, str]:
    """Shapes that TensorRT builds for where the batch is left open: 1 to MOST_IMAGES images; else it reads the graph.

    Without them it would build an engine anew for every batch that it has not seen. Raises InputError where more than
    the batch is open.
    """
    if all(None not in one.shape for one in inputs):
        return {}
    sizes = {"min": 1, "opt": 1, "max": MOST_IMAGES}
    return {
        f"trt_profile_{which}_shapes": ",".join(
            f"{one.name}:{'x'.join(map(str, query_shape(one.shape, batch=one.shape[0] or images, name=one.name)))}"
            for one in inputs
        )
        for which, images in sizes.items()
    }


def _told(value: bool) -> str:
    return "True" if value else "False"
