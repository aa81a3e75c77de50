"""The page holds everything, loads nothing, runs nothing, and no name gets out of its place."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.report import figures, html, tables
from pipeline.report.html import to_html
from pipeline.report.record import OperatorTime
from stages.prune.options import BlockShape, PruneOptions
from stages.prune.prune import prune
from stages.prune_mlp.options import PruneMlpOptions
from stages.prune_mlp.prune import prune as prune_mlp
from stages.vit.model import ViT
from stages.vit.spec import BlockSpec, ViTSpec
from targets.preprocess import Preprocess

VOID = {"meta", "br"}
APART = {"td", "th", "dt", "dd", "p", "li", "span"}
"""elements whose text stands apart from what comes before"""
LOADING = {"src", "srcset", "poster", "data", "action", "background", "formaction", "ping", "manifest", "xlink:href"}
ACTIVE = {
    "script",
    "iframe",
    "object",
    "embed",
    "link",
    "base",
    "img",
    "form",
    "audio",
    "video",
    "foreignobject",
    "use",
}


class Page(HTMLParser):
    """Elements, attributes and text of a page, and whether every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.attributes, self.words, self._open = [], [], [], []
        self.style = ""
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.words += [" "] if tag in APART else []
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "style":
            self.style += data
        else:
            self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())

    def values(self, name):
        return [value for _, found, value in self.attributes if found == name]


def test_every_section_and_every_headline_is_there(any_report):
    page = Page(to_html(any_report))

    shown = {name for name, _ in html.SECTIONS if name not in ("search", "proof") or getattr(any_report, name)}
    assert shown <= set(page.values("id"))
    assert all(target.removeprefix("#") in page.values("id") for target in page.values("href"))
    for row in tables.headlines(any_report):
        assert (row.after or figures.NOT_MEASURED) in page.text


def test_ids_are_unique_and_labels_lead_to_them(any_report):
    page = Page(to_html(any_report))
    ids = page.values("id")

    assert len(ids) == len(set(ids))
    assert set(page.values("aria-labelledby")) <= set(ids)


def test_nothing_is_loaded_from_anywhere_and_nothing_runs(any_report):
    page = Page(to_html(any_report))

    assert not ACTIVE & set(page.elements)
    assert not LOADING & {name for _, name, _ in page.attributes}
    assert all(value.startswith("#") for value in page.values("href"))
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "style"]
    assert not re.search(r"url\(|@import|@font-face|image-set|src\(", page.style)


def test_the_policy_allows_the_one_style_sheet_and_nothing_else(any_report):
    page = Page(to_html(any_report))
    (policy,) = [value for value in page.values("content") if "default-src" in value]
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()

    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert page.elements.count("style") == 1


def test_the_same_report_gives_the_same_bytes(any_report):
    assert to_html(any_report) == to_html(any_report.model_copy(deep=True))


def test_hostile_names_are_shown_as_they_are(hostile):
    text = to_html(hostile)
    page = Page(text)

    assert figures.visible(hostile.name) in page.text
    assert "{{7*7}}" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


@given(st.text(min_size=1, max_size=80) | st.text("<>&\"'{}%#/-! scriptyle\\=", min_size=1, max_size=40))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_name_adds_an_element_or_an_attribute(example, name):
    def named(name):
        return example.replace(
            name=name,
            target=example.target.replace(name=name, board=name, runtime=name, precision=name),
            accuracy=example.accuracy.replace(metric=name),
            stages=(example.stages[1].replace(name=name, summary=name, key=name, facts={name: name}),),
            candidates=(example.candidates[0].replace(reason=name, runtime=name),),
            operators={"engine": (OperatorTime(operator=name, share=1, calls=1),)},
            conditions={name: name, "before": {name: 1}, "after": {name: 2}},
            reproduce={"command": name, "recipe": name, f"x{name}": name},
        )

    page, plain = Page(to_html(named(name))), Page(to_html(named("x")))

    assert page.elements == plain.elements
    assert [where[:2] for where in page.attributes] == [where[:2] for where in plain.attributes]


def test_long_names_are_cut_and_what_decides_is_not(example):
    sentence = "within budget: " + "y" * 1000
    report = example.replace(name="n" * 5000, verdict=example.verdict.replace(sentence=sentence))
    page = Page(to_html(report))

    assert max(len(word) for word in re.findall("n+", page.text)) == figures.LONGEST_NAME
    assert "Y" + "y" * 999 in page.text


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("example", "Within budget"),
        ("over", "Over budget"),
        ("undecided", "Undecided"),
        ("failed", "Failed"),
        ("bare", "No budget was set"),
    ],
)
def test_the_verdict_is_told_in_words_and_not_by_colour_alone(reports, name, wanted):
    report = reports[name]
    text = to_html(report)

    assert f'<h2 id="verdict">{wanted}</h2>' in text
    assert f'<div class="verdict {report.verdict.status}"' in text


def test_a_failed_parity_stands_among_what_was_judged(reports):
    judged = to_html(reports["failed"]).split('id="judged"')[1].split('id="accuracy"')[0]

    assert "parity failed" in judged
    assert "parity failed" not in to_html(reports["over"])


def test_a_model_without_classes_shows_cosine_and_neighbours(reports):
    page = Page(to_html(reports["headless"]))

    assert "kNN agreement 100.0 % → 93.1 %" in page.text
    assert "cosine of the features 0.9871" in page.text
    assert "Who answers right" not in page.text
    assert "McNemar" not in page.text


def test_what_level_quick_does_not_back_is_missing_with_its_reason(reports):
    page = Page(to_html(reports["quick"]))

    assert "too few queries for p99" in page.text
    assert "level quick: 128 queries back no p99" in page.text
    assert "baseline fp32 ONNX Runtime p50 8.70 ms, p90 9.38 ms" in page.text


def test_one_number_without_an_interval_is_not_called_image_by_image(reports):
    page = Page(to_html(reports["quick"]))

    assert "image by image" not in page.text
    assert "my metric 79.0 % → 78.4 % drop 0.6 points images 1,100" in page.text


def test_rare_operators_are_put_together_and_no_time_is_lost(example):
    rare = tuple(OperatorTime(operator=f"Op{index}", share=0.004, calls=2) for index in range(5))
    rows = (OperatorTime(operator="MatMul", share=0.98, calls=7), *rare)
    report = example.replace(operators={"baseline": rows, "engine": rows[:2]})
    page = Page(to_html(report))

    assert "5 kinds under 1 %" in page.text
    assert "Op0" not in page.text
    assert "2.0 %, 10x" in page.text  # five times 0.4 % and two calls
    assert "0.40 %, 2x" in page.text  # the engine has one of them


def test_short_times_keep_their_digits(example):
    one = example.latency_ms.engine.replace(p50=0.0447, p90=0.05, ci95=(0.044, 0.045), histogram=())
    latency = example.latency_ms.replace(baseline=one, unpruned=one, engine=one)
    operators = {"engine": (OperatorTime(operator="Gemm", share=0.25, calls=1),)}
    page = Page(to_html(example.replace(latency_ms=latency, operators=operators)))

    assert "0.0112 ms 25.0 %, 1x" in page.text


def test_what_was_sampled_is_shown_and_what_was_not_told_only_named(example):
    during = {
        "sources": {"nvml": "", "rapl": "may be read by root only"},
        "facts": {"power_mode": "2 MODE_15W"},
        "samples": 200,
        "figures": {"gpu_mhz": {"min": 900, "median": 1500, "max": 1530}, "cpu_mhz": None},
        "reasons": {"software power cap": 7},
        "void_runs": ["process 1: software power cap"],
        "idle_power_w": {},
    }
    conditions = {"before": {}, "after": {}, "device": {"gpus": []}, "during": during}
    text = re.sub(r"<[^>]+>", " ", to_html(example.replace(conditions=conditions)))

    for part in ("900 to 1,530, median 1,500", "2 MODE_15W", "process 1: software power cap", "source rapl"):
        assert part in text
    assert "during.cpu_mhz" not in text
    assert "source nvml" not in text


def test_conditions_that_changed_are_marked_and_unread_ones_only_named(example):
    before = {"governor": "performance", "load": [0.31, 0.2], "memory_bytes": 25_276_510_208, "turbo": None}
    after = {**before, "load": [1.92, 0.2]}
    text = to_html(example.replace(conditions={"before": before, "after": after, "device": {"gpus": []}}))
    page = Page(text)

    assert text.count('<tr class="changed">') == 1
    assert "load 0.31, 0.2 1.92, 0.2" in page.text
    assert "memory_bytes 25.3 GB 25.3 GB" in page.text
    assert "Not readable on this machine: turbo." in page.text
    assert "gpus none" in page.text


def test_every_kind_of_attention_change_is_drawn(example):
    off = example.blocks[0].replace(heads={"before": 3, "after": 0}, d_qk={"before": 64, "after": 0})
    page = Page(to_html(example.replace(blocks=(off, *example.blocks[1:]))))

    assert "block 0: 3 → 0" in page.text


@pytest.mark.parametrize("stage", ["prune", "prune_mlp"])
def test_redundancy_is_drawn_where_a_stage_counted_it(example, stage):
    facts = pruned_facts(stage)
    alike = [row["alike"] for row in facts["blocks"]]
    page = to_html(example.replace(stages=(example.stages[1].replace(name=stage, facts=facts),)))

    assert f"{sum(alike)} of 32 neurons are more than 0.98 alike" in page
    assert f"block 1: {alike[1]} of 16" in page
    assert "redundancy" not in to_html(example)


def pruned_facts(stage):
    """What a real stage says of a model of two blocks, whose attentions it leaves alone."""
    block = BlockSpec(heads=1, d_qk=8, d_v=8, scale=8**-0.5, mlp_width=16, norm1_eps=1e-6, norm2_eps=1e-6)
    size = Preprocess(height=16, width=16)
    spec = ViTSpec(architecture="small", preprocess=size, patch_size=(8, 8), width=8, classes=3, blocks=(block,) * 2)
    pictures = [torch.randn(60, 3, 16, 16, generator=torch.Generator().manual_seed(0))]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViT(spec.model_dump(mode="json")).eval()
    if stage == "prune":
        shapes = tuple(BlockShape.of(one).replace(mlp_width=8) for one in spec.blocks)
        return prune(model, spec, PruneOptions(blocks=shapes), pictures)[2]
    return prune_mlp(model, spec, PruneMlpOptions(keep=0.5), pictures)[2]


@pytest.mark.parametrize("rows", ["<b>", [1], [{"block": 0}], [{"block": 0, "width_before": "9", "alike": 1}], {}])
def test_facts_of_another_form_draw_nothing(example, rows):
    assert "redundancy" not in to_html(
        example.replace(stages=(example.stages[1].replace(name="prune_mlp", facts={"blocks": rows}),))
    )
