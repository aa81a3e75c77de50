"""Options of the runtimes on GPUs: checked strictly, written down, and told to the providers in full."""

from pathlib import Path
from typing import Any

import pytest

from targets.errors import InputError
from targets.runtimes.nvidia.options import ORT_CUDA, ORT_TENSORRT
from targets.runtimes.options import BUILD, LOAD
from targets.runtimes.ort.options import OPTIONS, kept_options, read_options
from targets.runtimes.ort.providers import cuda_provider, profile_shapes, tensorrt_builder, tensorrt_loader
from targets.runtimes.runtime import TensorFacts

RUNTIMES = (ORT_CUDA, ORT_TENSORRT)

CUDA_KNOWS = {
    *("device_id", "gpu_mem_limit", "arena_extend_strategy", "cudnn_conv_algo_search", "do_copy_in_default_stream"),
    *("use_tf32", "enable_cuda_graph"),
}
TENSORRT_KNOWS = {
    *("device_id", "trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable", "trt_int8_use_native_calibration_table"),
    *("trt_builder_optimization_level", "trt_cuda_graph_enable", "trt_engine_cache_enable", "trt_engine_hw_compatible"),
    *("trt_dump_ep_context_model", "trt_ep_context_file_path", "trt_ep_context_embed_mode", "trt_max_workspace_size"),
    *("trt_timing_cache_enable", "trt_timing_cache_path", "trt_force_timing_cache"),
    *("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes"),
}
"""names that were found in the files of onnxruntime-gpu 1.31.1; the library refuses others"""


def built(precision: str = "fp32", cache: Path | None = None, **more: Any) -> dict[str, str]:
    options = read_options(ORT_TENSORRT, BUILD, {"precision": precision, **more})
    return tensorrt_builder(options, folder=Path("engine"), shapes={}, timing_cache=cache)[1]


@pytest.mark.parametrize(
    ("runtime", "when", "given", "words"),
    [
        (ORT_CUDA, BUILD, {"precison": "fp32"}, "'onnxruntime_cuda' has no option 'precison' at build; did you mean"),
        (ORT_CUDA, BUILD, {"workspace_mib": 1}, "one of runtime 'onnxruntime_tensorrt', not of 'onnxruntime_cuda'"),
        (ORT_TENSORRT, LOAD, {"arena": "same_as_requested"}, "one of runtime 'onnxruntime_cuda'"),
        (ORT_TENSORRT, LOAD, {"timing_cache": "x"}, "'timing_cache' counts at build, not at load"),
        (ORT_CUDA, BUILD, {"cuda_graph": True}, "'cuda_graph' counts at load, not at build"),
        (ORT_CUDA, LOAD, {"tf32": "yes"}, "'tf32' is true or false, got 'yes'"),
        (ORT_CUDA, LOAD, {"convolution_search": "best"}, "one of exhaustive, heuristic, default, got 'best'"),
        (ORT_CUDA, LOAD, {"memory_mib": 0}, "a whole number from 1 to .*, got 0"),
        (ORT_TENSORRT, BUILD, {"optimization_level": 6}, "a whole number from 0 to 5, got 6"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(runtime: str, when: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read_options(runtime, when, given)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_an_engine_was_built_with_holds_at_loading(runtime: str) -> None:
    asked = {"tf32": True, "device": 1, "precision": "fp16", "batch": 2, "threads": 3}
    kept = kept_options(runtime, read_options(runtime, BUILD, asked))

    assert read_options(runtime, LOAD, kept)["tf32"] is True
    assert (kept["device"], kept["threads"]) == (1, 3)
    assert not {"precision", "batch", "workspace_mib", "timing_cache"} & set(kept)


def test_nothing_is_left_to_the_default_of_cuda() -> None:
    plain = cuda_provider(read_options(ORT_CUDA, LOAD, {}), cuda_graph=False)

    assert plain == (
        "CUDAExecutionProvider",
        {
            "device_id": "0",
            "arena_extend_strategy": "kNextPowerOfTwo",
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "do_copy_in_default_stream": "1",
            "use_tf32": "0",
            "enable_cuda_graph": "0",
        },
    )
    asked = {
        "device": 3,
        "arena": "same_as_requested",
        "convolution_search": "heuristic",
        "tf32": True,
        "memory_mib": 512,
    }
    changed = cuda_provider(read_options(ORT_CUDA, LOAD, asked), cuda_graph=True)[1]
    assert changed == {
        "device_id": "3",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "do_copy_in_default_stream": "1",
        "use_tf32": "1",
        "enable_cuda_graph": "1",
        "gpu_mem_limit": str(512 * 2**20),
    }


@pytest.mark.parametrize(
    ("precision", "allowed"), [("fp32", set()), ("fp16", {"trt_fp16_enable"}), ("int8", {"trt_int8_enable"})]
)
def test_tensorrt_may_use_the_types_of_the_graph_only(precision: str, allowed: set[str]) -> None:
    told = built(precision)
    flags = {"trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable"}

    assert {name for name in flags if told[name] == "True"} == allowed
    assert "trt_int8_calibration_table_name" not in told, "ranges are in Q/DQ"


def test_tensorrt_may_use_halves_between_quantized_products_where_the_graph_holds_some() -> None:
    options = read_options(ORT_TENSORRT, BUILD, {"precision": "int8"})

    told = tensorrt_builder(options, folder=Path("engine"), shapes={}, timing_cache=None, halves=True)[1]

    assert (told["trt_fp16_enable"], told["trt_int8_enable"]) == ("True", "True")


def test_the_engine_that_is_built_is_the_one_that_is_loaded() -> None:
    told = built(workspace_mib=256, optimization_level=5)

    assert (told["trt_dump_ep_context_model"], told["trt_engine_cache_enable"]) == ("True", "True")
    assert (told["trt_ep_context_file_path"], told["trt_ep_context_embed_mode"]) == ("engine/model_ctx.onnx", "0")
    assert (told["trt_max_workspace_size"], told["trt_builder_optimization_level"]) == (str(2**28), "5")
    loaded = tensorrt_loader(read_options(ORT_TENSORRT, LOAD, {}), cuda_graph=False)[1]
    assert {loaded[name] for name in ("trt_dump_ep_context_model", "trt_engine_cache_enable")} == {"False"}


def test_times_of_kernels_are_kept_only_where_asked() -> None:
    assert built()["trt_timing_cache_enable"] == "False"
    kept = built(cache=Path("times"))
    assert (kept["trt_timing_cache_enable"], kept["trt_timing_cache_path"]) == ("True", "times")
    assert kept["trt_force_timing_cache"] == "False"


def test_an_open_batch_has_a_range_and_a_fixed_one_none() -> None:
    image = TensorFacts("image", (None, 3, 8, 8), "float32")

    assert profile_shapes([image]) == {
        "trt_profile_min_shapes": "image:1x3x8x8",
        "trt_profile_opt_shapes": "image:1x3x8x8",
        "trt_profile_max_shapes": "image:16x3x8x8",
    }
    assert profile_shapes([TensorFacts("image", (4, 3, 8, 8), "float32")]) == {}
    with pytest.raises(InputError, match=r"'image' has shape \[None, 3, None, 8\]: only its first dimension"):
        profile_shapes([TensorFacts("image", (None, 3, None, 8), "float32")])


def test_only_names_and_forms_that_the_library_knows_are_told() -> None:
    options = {"workspace_mib": 1, "precision": "fp32"}
    image = TensorFacts("image", (None, 3, 8, 8), "float32")
    builder = tensorrt_builder(
        read_options(ORT_TENSORRT, BUILD, options),
        folder=Path(),
        shapes=profile_shapes([image]),
        timing_cache=Path("times"),
    )[1]
    loader = tensorrt_loader(read_options(ORT_TENSORRT, LOAD, {}), cuda_graph=True)[1]
    cuda = cuda_provider(read_options(ORT_CUDA, LOAD, {"memory_mib": 1}), cuda_graph=True)[1]

    assert set(builder) == TENSORRT_KNOWS
    assert set(loader) <= TENSORRT_KNOWS
    assert set(cuda) == CUDA_KNOWS
    assert all(isinstance(value, str) for told in (builder, loader, cuda) for value in told.values())
    switches = {name: one for told in (builder, loader) for name, one in told.items() if name.endswith("_enable")}
    assert set(switches.values()) <= {"True", "False"}, "TensorRT's provider refuses 0 and 1"


def test_every_option_is_on_the_page(root: Path) -> None:
    page = (root / "docs" / "runtimes" / "onnxruntime.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]

    for name, option in OPTIONS.items():
        default = "" if option.default is None else f" `{str(option.default).lower()}`"
        of = "both" if option.runtimes == RUNTIMES else f"`{option.runtimes[0]}`"
        assert f"| `{name}` | {of} | {' '.join(option.when)} |{default} | {option.meaning} |" in rows
