"""model.py alone: it reloads a folder without vitrim, and takes nothing damaged for a model."""

import ast
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from stages.vit.files import load_model, save_model, standalone_code
from stages.vit.model import ViT, load
from stages.vit.spec import ViTSpec
from stages.vit.tensor_file import HEADER_LIMIT, read_safetensors

MakeSpec = Callable[..., ViTSpec]
MakeModel = Callable[..., ViT]

ALONE = """
import sys
for name in ("stages", "targets", "pipeline", "timm", "safetensors", "pydantic"):
    sys.modules[name] = None  # importing it fails
sys.path.insert(0, sys.argv[1])
import torch
from model import load
images = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    torch.save(load(sys.argv[1])(images), sys.argv[3])
"""


@pytest.fixture
def folder(tmp_path: Path, make_spec: MakeSpec, make_model: MakeModel) -> Path:
    """A small saved model."""
    spec = make_spec(block={"d_qk": 4, "d_v": 6}, mlp_kind="glu", register_tokens=1)
    save_model(tmp_path / "saved", spec, make_model(spec).state_dict())
    return tmp_path / "saved"


def test_a_folder_reloads_alone_and_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    images = torch.randn(2, 3, 16, 16)
    torch.save(images, tmp_path / "images.pt")
    files = [str(folder), str(tmp_path / "images.pt"), str(tmp_path / "logits.pt")]
    subprocess.run([sys.executable, "-I", "-c", ALONE, *files], check=True, cwd=tmp_path, timeout=120)

    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), load_model(folder)(images))


def test_a_folder_that_merges_tokens_reloads_alone(tmp_path: Path, make_spec: MakeSpec, make_model: MakeModel) -> None:
    spec = make_spec(merge=(1, 1))
    save_model(tmp_path / "saved", spec, make_model(spec).state_dict())
    images = torch.randn(2, 3, 16, 16)
    torch.save(images, tmp_path / "images.pt")
    files = [str(tmp_path / "saved"), str(tmp_path / "images.pt"), str(tmp_path / "logits.pt")]
    subprocess.run([sys.executable, "-I", "-c", ALONE, *files], check=True, cwd=tmp_path, timeout=120)

    with torch.no_grad():  # the products of merging are not bit for bit the same in every process
        found = torch.load(tmp_path / "logits.pt", weights_only=True)
        torch.testing.assert_close(found, load_model(tmp_path / "saved")(images))


def test_it_needs_torch_and_python_3_10_only() -> None:
    tree = ast.parse(standalone_code(), feature_version=(3, 10))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {name.partition(".")[0] for name in imported}

    assert roots - set(sys.stdlib_module_names) == {"torch"}


def test_the_saved_copy_is_the_module_with_its_imports_written_out(folder: Path) -> None:
    code = (folder / "model.py").read_text()

    assert code == standalone_code()
    assert [code.count(f"\n{name}") for name in ("class ViT(", "class MergeTokens(", "def read_safetensors(")] == [
        1
    ] * 3


def test_every_way_of_loading_gives_the_same_model(folder: Path) -> None:
    one, other = load(folder), load_model(folder)

    assert not one.training
    assert not other.training
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8]
)
def test_it_reads_what_the_safetensors_library_writes(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {"b": torch.arange(6).reshape(2, 3).to(dtype), "a": torch.ones((), dtype=dtype), "z": torch.empty(0, 4)}
    save_file(state, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = read_safetensors(tmp_path / "x.safetensors")

    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_file_cut_anywhere_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    cuts = [*range(0, 40), *random.Random(0).sample(range(40, len(whole)), 200), len(whole) - 1]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(
            ValueError, match=r"no whole safetensors|not JSON|truncated|do not hold|does not fit|no JSON"
        ):
            load(folder)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="truncated or too long"):
        load(folder)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused_but_never_crashes(tmp_path: Path, position: int, byte: int) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.ones(3, 4), "bias": torch.ones(3)}, path)
    content = bytearray(path.read_bytes())
    content[position % len(content)] = byte
    path.write_bytes(content)
    try:
        state = read_safetensors(path)
    except ValueError:
        return
    assert sum(tensor.nbytes for tensor in state.values()) == 60


def container(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, *, shape: list[Any] | None = None, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [1] if shape is None else shape, "data_offsets": [begin, end]}


DAMAGED: dict[str, tuple[bytes, str]] = {
    "overlap": (
        container({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6)),
        "starts at byte 2, not 4: an overlap or a gap",
    ),
    "same_bytes_twice": (container({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)), "an overlap"),
    "gap": (container({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "starts at byte 8, not 4"),
    "beyond_the_end": (container({"a": entry(0, 4)}, bytes(3)), "truncated or too long"),
    "negative": (container({"a": entry(-4, 0)}), "do not hold"),
    "backwards": (container({"a": entry(4, 0)}, bytes(4)), "do not hold"),
    "wrong_size": (container({"a": entry(0, 8)}, bytes(8)), "bytes 0 to 8 do not hold F32 .1."),
    "huge_shape": (container({"a": entry(0, 0, shape=[0, 2**60])}), "do not hold"),
    "shape_of_words": (container({"a": entry(0, 4, shape=["1"])}, bytes(4)), "do not hold"),
    "shape_of_truth": (container({"a": entry(0, 4, shape=[True])}, bytes(4)), "do not hold"),
    "unknown_dtype": (container({"a": entry(0, 4, dtype="F4")}, bytes(4)), "entry of tensor 'a' is not valid"),
    "dtype_of_lists": (container({"a": entry(0, 4, dtype=[])}, bytes(4)), "is not valid"),
    "no_shape": (container({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)), "is not valid"),
    "no_entry": (container({"a": 3}), "is not valid"),
    "three_offsets": (container({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2, 4]}}), "is not valid"),
    "a_list": (container([1]), "no JSON object"),
    "no_json": (container(b"{"), "header is not JSON"),
    "no_unicode": (container(b"\xff\xfe"), "header is not JSON"),
    "too_deep": (container(b"[" * 200_000), "header is not JSON"),
    "huge_header": ((HEADER_LIMIT + 1).to_bytes(8, "little") + b"{}", "no whole safetensors file"),
    "empty": (b"", "no whole safetensors file: 0 bytes"),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_container_is_refused(how: str, tmp_path: Path) -> None:
    content, reason = DAMAGED[how]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_safetensors(path)


def test_weights_of_another_model_are_refused(folder: Path) -> None:
    save_file({"head.weight": torch.ones(2, 2)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"does not fit vit.json: \d+ tensors differ, first 'blocks.0.attn.proj.bias'"):
        load(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "vitrim.vit/2"}', '"text"'])
def test_a_spec_of_another_format_is_refused(content: str, folder: Path) -> None:
    (folder / "vit.json").write_text(content)
    with pytest.raises(ValueError, match=r"vit.json"):
        load(folder)
