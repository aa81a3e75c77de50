"""What layers prove, and what a profile may demand of them."""

import pytest

from pipeline.report.proof import broken, proof_here, proof_of_layers, told_layers, told_noise, undecided
from pipeline.report.record import LayerRow, Proof, Report
from targets.profile import Demands


def layer(name: str, *, operator: str = "MatMul", precision: str = "int8", share: float = 0.25, macs: int | None = 100):
    return LayerRow(
        name=name, operator=operator, kernel="gemm", precision=precision, provider="CPU", share=share, macs=macs
    )


LAYERS = (
    layer("fc1", share=0.4, macs=300),
    layer("scores", precision="fp32", share=0.3, macs=100),
    layer("softmax", operator="Softmax", precision="fp32", share=0.2, macs=None),
    layer("quantize", operator="QuantizeLinear", precision="fp32", share=0.1, macs=None),
)


def proof(layers=LAYERS, *, attention: bool = True) -> Proof:
    return Proof(engine="measured", **proof_of_layers(layers, attention=attention))


def test_what_a_runtime_does_not_tell_is_not_called_proven(example: Report):
    assert example.latency_ms is not None
    assert example.parity is not None
    compiled = {"runtime": "onnxruntime_tensorrt", "matrix_products": {"unknown": 12}}
    found = proof_here(
        parity=example.parity,
        accuracy=example.accuracy,
        latency=example.latency_ms,
        compiled=compiled,
        conditions="an L4",
    )

    assert "in which precision 12 matrix products ran: ONNX Runtime TensorRT does not tell" in found.unproven
    assert not any("unknown" in line for line in (*found.proven, *found.unproven))


def test_time_and_macs_are_shared_out_by_precision():
    found = proof()

    assert found.time_by_precision == pytest.approx({"fp32": 0.6, "int8": 0.4})
    assert list(found.time_by_precision) == ["fp32", "int8"]
    assert found.macs_by_precision == pytest.approx({"int8": 0.75, "fp32": 0.25})
    assert list(told_layers(found)) == [
        "multiply-accumulates: 75.0 % int8, 25.0 % fp32",
        "time of layers, by what goes in: 60.0 % fp32, 40.0 % int8",
        "attention runs as separate kernels",
        "all 4 layers ran on CPU",
    ]


@pytest.mark.parametrize("operator", ["ScaledDotProductAttention", "MultiHeadAttention", "kgen_fmha_v2"])
def test_attention_that_runs_as_one_kernel_is_seen(operator: str):
    apart = tuple(one for one in LAYERS if one.operator != "Softmax")
    assert proof((*apart, layer("attention", operator=operator))).fused_attention is True
    assert proof().fused_attention is False
    mixed = proof((*LAYERS, layer("attention", operator=operator)))
    assert mixed.fused_attention is False
    assert "attention runs as one kernel in 1 layers, as separate kernels in 1" in list(told_layers(mixed))
    assert proof(attention=False).fused_attention is None


@pytest.mark.parametrize(
    ("demands", "precision", "said"),
    [
        (Demands(), "int8", []),
        (Demands(fused_attention=True), "int8", ["attention is not fused, which the target demands"]),
        (Demands(least_macs_share=0.75), "int8", []),
        (
            Demands(least_macs_share=0.9),
            "int8",
            ["75.0 % of the multiply-accumulates run in int8, the target demands 90.0 %"],
        ),
        (Demands(least_macs_share=0.9), "int8_dynamic", ["75.0 % of the multiply-accumulates run in int8"]),
        (Demands(providers=("CPU",)), "int8", []),
        (Demands(providers=("CUDA", "TensorRT")), "int8", ["ran on 'CPU', the target allows CUDA, TensorRT"]),
    ],
    ids=str,
)
def test_what_is_demanded_is_held_against_the_layers(demands: Demands, precision: str, said: list[str]):
    found = broken(demands, proof(), precision)

    assert len(found) == len(said)
    assert all(words in line for words, line in zip(said, found, strict=True))


def test_the_noise_of_the_graph_is_one_line():
    (line,) = told_noise({"patch_embed": 40.0, "blocks.0": 12.5, "head": 18.0})

    assert line == "signal to noise of the graph against fp32: 18.0 dB at the end (head), least 12.5 dB in blocks.0"
    assert list(told_noise({})) == []


def test_nothing_is_demanded_of_an_engine_that_never_ran():
    assert broken(Demands(fused_attention=True, least_macs_share=1), Proof(engine="not built"), "int8") == ()


HIDDEN = (layer("engine", operator="TRTKernel", precision="unknown", share=1.0, macs=None),)


def test_a_runtime_that_tells_nothing_neither_proves_nor_breaks_what_is_demanded():
    found = proof(HIDDEN)
    demands = Demands(fused_attention=True, least_macs_share=0.9)

    assert found.fused_attention is None
    assert not any("attention runs as" in line for line in told_layers(found))
    assert broken(demands, found, "int8") == ()
    assert list(undecided(demands, found, "int8", attention=True)) == [
        "that attention is fused, which the target demands: the runtime does not tell",
        "that 90.0 % of the multiply-accumulates run in int8, which the target demands: the runtime does not tell",
    ]


def test_macs_of_which_no_precision_is_told_are_none_of_another_precision():
    found = proof((layer("engine", precision="unknown", share=1.0, macs=500),))

    assert broken(Demands(least_macs_share=0.5), found, "int8") == ()


def test_a_fused_kernel_is_seen_beside_layers_of_which_nothing_is_told():
    assert proof((*HIDDEN, layer("attention", operator="fmha"))).fused_attention is True


def test_what_is_shown_or_never_was_there_is_not_undecided():
    demands = Demands(fused_attention=True, least_macs_share=0.5, providers=("CPU",))

    assert list(undecided(demands, proof(), "int8", attention=True)) == []
    assert list(undecided(Demands(fused_attention=True), proof(attention=False), "int8", attention=False)) == []
    assert [
        line.rpartition(": ")[2] for line in undecided(demands, Proof(engine="not built"), "int8", attention=True)
    ] == ["nothing ran"] * 3
