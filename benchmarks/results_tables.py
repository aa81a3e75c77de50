"""What docs/results.md shows of each result file: a function for each, from the file's data to lines of Markdown."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Row = dict[str, Any]
Lines = list[str]

NOTHING = "-"
FIGURES = "Top-1 (agreement with the source) in percent, without training; columns: "


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, texts: int = 1) -> Lines:
    """Markdown; the first columns are text, so many of them, the others are figures."""
    lines = [" | ".join(head), " | ".join(["---"] * texts + ["---:"] * (len(head) - texts))]
    lines += [" | ".join(map(str, row)) for row in rows]
    return [f"| {line} |" for line in lines]


def percent(share: float | None) -> str:
    """74.9."""
    return NOTHING if share is None else f"{100 * share:.1f}"


def interval(edges: Sequence[float] | None, digits: int = 2) -> str:
    """[1.95, 2.01]."""
    return f"[{', '.join(f'{edge:.{digits}f}' for edge in edges)}]" if edges else ""


def grid(rows: Sequence[Row], *, down: Callable[[Row], str], across: Callable[[Row], str], head: str) -> Lines:
    """Top-1 with agreement behind it, one cell a row."""
    columns = list(dict.fromkeys(map(across, rows)))
    cells = {(down(row), across(row)): f"{percent(row['top1'])} ({percent(row['agreement'])})" for row in rows}
    names = dict.fromkeys(map(down, rows))
    return table([head, *columns], [[name, *(cells.get((name, one), NOTHING) for one in columns)] for name in names])


def variant(row: Row) -> str:
    """`ols, sequential, refined 1`."""
    words = [row["method"] + (f" {row['measure']}" if row.get("measure") else "")]
    words.append({"none": "no repair"}.get(row["repair"], row["repair"]))
    if row.get("per_image") is False:
        words.append("pooled moments")
    usual = {"rotate": 0.3}.get(row["method"], 0.7)
    if row.get("take_back") not in (None, usual):
        words.append(f"take_back {row['take_back']:g}")
    if row.get("refine"):
        words.append(f"refined {row['refine']}")
    return ", ".join(words)


def sets(data: Row) -> str:
    """Model and images."""
    model, fit, unseen = data["model"], data.get("calibration"), data["evaluation"]
    told = f"`{model}` in fp32 with torch, top-1 {percent(data['top1_source'])} on {unseen['images']:,} images"
    return told + (f", calibrated on {fit['images']:,} of {fit['set']}. " if fit else ". ")


def mlp_pruning(data: Row) -> Lines:
    """MLP widths."""
    text = sets(data) + FIGURES + "share of every MLP kept."
    lines = [text, "", *grid(data["rows"], down=variant, across=lambda row: f"{row['keep']:.0%}", head="method")]
    merged = [
        [
            variant(row),
            f"{row['threshold']:g}",
            f"{min(row['widths'])} to {max(row['widths'])}",
            percent(row["top1"]),
            percent(row["agreement"]),
        ]
        for row in data.get("thresholds", ())
    ]
    if merged:
        head = ["merged until no two are more alike", "threshold", "widths found", "top-1 %", "agreement %"]
        lines += ["", *table(head, merged)]
    return lines


def attention_pruning(data: Row) -> Lines:
    """Head shapes."""
    text = (
        sets(data)
        + "Top-1 (agreement with the source) in percent, without training; columns: what stays of every head."
    )
    return [text, "", *grid(data["rows"], down=variant, across=lambda row: str(row["shape"]), head="method")]


def width_pruning(data: Row) -> Lines:
    """Residual width."""
    text = sets(data) + FIGURES + "residual width."
    return [text, "", *grid(data["rows"], down=variant, across=lambda row: str(row["width"]), head="method")]


def attention_removal(data: Row) -> Lines:
    """Attentions removed."""
    text = (
        f"`{data['model']}`, top-1 {percent(data['top1_source'])}; columns: attentions removed of 12, chosen on "
        f"{data['select_images']} images, MLPs fitted on {data['fit_images']}. Top-1 (agreement) in percent, untrained."
    )
    rows = data["rows"]
    return [
        text,
        "",
        *grid(
            rows,
            down=lambda row: f"by {row['choice']}, {'MLPs repaired' if row['repair'] == 'mlp' else 'no repair'}",
            across=lambda row: str(row["count"]),
            head="choice",
        ),
    ]


def token_merging(data: Row) -> Lines:
    """Token merging."""
    rows = [
        [
            ", ".join(
                f"{key} {row[key]}" for key in ("r", "inflect", "metric", "proportional") if row.get(key) is not None
            ),
            row["tokens_left"],
            percent(row["macs_share"]),
            percent(row["top1"]),
            percent(row["agreement"]),
        ]
        for row in data["rows"]
    ]
    head = ["schedule", "tokens left", "MACs %", "top-1 %", "agreement %"]
    return [sets(data) + "Without training.", "", *table(head, rows)]


def published_latency(data: Row) -> Lines:
    """Shapes of papers."""
    text = f"Random weights, {data['precision']}, batch {data['batch']}; faster than the unpruned model, interleaved."
    runtimes = list(dict.fromkeys(row["runtime"] for row in data["rows"]))
    by = {(row["group"], row["shape"], row["runtime"]): row for row in data["rows"]}
    rows = []
    for group, shape in dict.fromkeys((row["group"], row["shape"]) for row in data["rows"]):
        one = by[group, shape, runtimes[0]]
        cells = [
            f"{by[key]['times_faster']:.2f} {interval(by[key]['times_faster_ci95'])}" if key in by else NOTHING
            for key in ((group, shape, runtime) for runtime in runtimes)
        ]
        rows.append(
            [
                f"{group}, {shape}",
                f"{one['params'] / 1e6:.2f} M",
                f"{one['macs'] / 1e9:.3f} G",
                f"{one['p50_ms']:.1f}",
                *cells,
            ]
        )
    head = ["shape", "parameters", "MACs", f"p50 ms, {runtimes[0]}", *(f"times faster, {name}" for name in runtimes)]
    return [text, "", *table(head, rows)]


def selection_speed(data: Row) -> Lines:
    """DGMR's selection."""
    head = ["layer, method", "median s", "times the float64 loop", "times the float32 loop", "peak MB", "same picks"]
    rows = [
        [
            f"{row['layer']}, {row['method']}",
            f"{row['median_s']:.2f}",
            f"{row['times_the_float64_loop']:.1f}",
            f"{row['times_the_float32_loop']:.1f}",
            f"{row['peak_bytes'] / 1e6:,.0f}",
            f"{row['picks_equal_to_the_float64_loop']} of {row['picks_compared']}",
        ]
        for row in data["rows"]
    ]
    text = f"Selection of one layer, {data['threads']} threads, {data['repeats']} runs in turns."
    return [text, "", *table(head, rows)]


def streaming_prune(data: Row) -> Lines:
    """Models larger than memory."""
    source, pruned = data["source"], data["pruned"]
    rows = [
        ["parameters", f"{source['parameters'] / 1e6:,.0f} M → {pruned['parameters'] / 1e6:,.0f} M"],
        ["file", f"{source['bytes'] / 1e9:.1f} GB → {pruned['bytes'] / 1e9:.1f} GB"],
        ["peak resident memory", f"{data['peak_resident_gib']:.2f} GiB"],
        ["time", f"{data['seconds'] / 60:.1f} min with {data['torch_threads']} threads"],
    ]
    text = f"`{data['model']}`, {data['weights']} weights, DGMR at r = 1 on weights alone, tensor by tensor."
    return [text, "", *table(["figure", "value"], rows)]


def prune_time(data: Row) -> Lines:
    """Passes."""
    head = ["model, method", "images", "seconds of a forward pass", "seconds of the pruning", "passes"]
    rows = [
        [
            f"{row['model']}, {row['method']} {row['repair']}, keep {row['keep']:g}"
            + (f", refined {row['refine']}" if row["refine"] else ""),
            row["images"],
            f"{sorted(row['forward_s'])[len(row['forward_s']) // 2]:.1f}",
            f"{sorted(row['prune_s'])[len(row['prune_s']) // 2]:.1f}",
            f"{row['passes_median']:.2f}",
        ]
        for row in data["rows"]
    ]
    return ["Prune and repair, in units of a forward pass over the same images.", "", *table(head, rows)]


def builds(data: Row) -> Lines:
    """Rows that are whole builds."""
    head = ["shapes", "asked", "MACs %", "latency / unpruned", "top-1 %", "drop, points", "agreement %"]
    rows = [
        [
            row["name"],
            row.get("asked_of") or (f"{row['asked']:g}" if row["asked"] else "50 % of MLPs"),
            percent(row["macs_share"]),
            f"{row['ratio']:.3f} {interval(row['ratio_ci95'], 3)}",
            percent(row["top1"]),
            f"{row['drop_points']:.1f} {interval(row['drop_ci95'], 1)}",
            percent(row["agreement"]),
        ]
        for row in data["rows"]
    ]
    seen = f", {data['images_seen']:,} images seen by each student" if "images_seen" in data else ", without training"
    return [f"ViT-Tiny on {data['runtime']}, {data['precision']}{seen}.", "", *table(head, rows)]


def end_to_end(data: Row) -> Lines:
    """The real job, and what a search decided in it."""
    recipe = data.get("recipe", "vit_tiny_imagenet.yaml")
    lines = [f"`vitrim build recipes/{recipe}`: {data['verdict']['sentence']}."]
    search = data.get("search")
    if search is None:
        return lines
    before, after = (data["size"]["macs"][when] for when in ("before", "after"))
    size = f", pictures of {search['size'][0]} x {search['size'][1]}" if search["size"] else ""
    changed = sum(one["before"] != one["after"] for one in search["sublayers"])
    how = "exactly" if search["exact"] else "with several limits at once"
    timed = ", ".join(f"{one['measured']:.3f}" for one in search["rounds"])
    lines += [
        "",
        f"Chosen for {search['precision']} {search['runtime']}{size}: {changed} of {len(search['sublayers'])} "
        f"sublayers changed, {percent(after / before)} % of the multiply-accumulates are left; solved {how} in "
        f"{search['solve_ms']:.0f} ms; whole models in rounds, over the unpruned one's time: {timed or 'none'}.",
    ]
    return lines


def cpu_peers(data: Row) -> Lines:
    """Before any pruning."""
    head = ["model, engine", "precision", "p50 ms", "times faster", "top-1 %", "drop, points", "agreement %"]
    rows = []
    for row in data["rows"]:
        what = f"{row['group']}, {row['name']}"
        if "failed" in row:
            rows.append([what, "failed", *[NOTHING] * 5])
            continue
        drop = f"{row['drop_points']:.1f} {interval(row['drop_ci95'], 1)}" if "drop_points" in row else NOTHING
        what += f" ({row['runtime']})" if row["name"] == "vitrim" else ""
        times = f"{row['times_faster']:.2f} {interval(row['times_faster_ci95'])}"
        seen = [percent(row.get("top1")), drop, percent(row.get("agreement"))]
        rows.append([what, row["precision"], f"{row['p50_ms']:.1f}", times, *seen])
    text = (
        f"Nothing pruned, batch {data['batch']}, {data['calibration_images']} calibration images for everybody; times "
        "faster than fp32 in ONNX Runtime, interleaved. ViT-S and ViT-B have random weights."
    )
    return [text, "", *table(head, rows)]


def nightly_simulation(data: Row) -> Lines:
    """Rules of the nights."""
    head = ["case", "noise", "decides", "false alarms in 100 nights", "found in 2 nights", "in 10", "re-runs in 100"]
    rows = [
        [
            row["case"],
            f"{100 * row['noise']:g} %",
            row["decides"],
            f"{row['false_alarms_per_100_nights']:.2f}",
            f"{percent(row['found_in_2_nights'])}",
            f"{percent(row['found_in_10_nights'])}",
            f"{row['reruns_per_100_nights']:.1f}",
        ]
        for row in data["rows"]
    ]
    text = (
        f"{data['series']} simulated series of {data['nights']} nights; 5 % of the nights are outliers of 5 to 20 %. "
        "Noise: relative standard deviation from night to night. Found: percent of the series."
    )
    if "answers" not in data:
        return [text, "", *table(head, rows)]
    told = [
        [
            row["case"],
            f"{row['images']:,}",
            f"{100 * row['noise']:g} %",
            f"{row['false_alarms_per_100_nights']:.2f}",
            percent(row["found_same_night"]),
            percent(row["found_in_10_nights"]),
        ]
        for row in data["answers"]
    ]
    answers = (
        "Answers, image by image, of engines whose builds differ by chance in so many percent of the images; 10 "
        "classes, 80 % right, a margin of 1 point."
    )
    heads = ["case", "images", "differing", "false alarms in 100 nights", "found the same night", "in 10"]
    return [text, "", *table(head, rows), "", answers, "", *table(heads, told)]


def command_times(data: Row) -> Lines:
    """Commands."""
    rows = [[f"`{name}`", f"{row['median_s']:.2f}", row["runs"]] for name, row in data["rows"].items()]
    return table(["command", "median s", "runs"], rows)


def openvino_hints(data: Row) -> Lines:
    """Latency and throughput hints."""
    text = f"{data['model']}, batch {data['batch']}; all requests at work, blocks of {data['block']} queries in turns."
    rows = [
        [
            row["precision"],
            str(row["in_force"]["throughput"]["num_streams"]),
            *(f"{row['images_per_second'][hint]:.1f}" for hint in ("latency", "throughput")),
            f"{row['ratio']:.2f} [{row['ratio_quartiles'][0]:.2f}, {row['ratio_quartiles'][1]:.2f}]",
            f"{row['one_query_ms']['throughput'] / row['one_query_ms']['latency']:.2f}",
        ]
        for row in data["rows"]
    ]
    head = [
        "precision",
        "streams",
        "images/s, latency",
        "images/s, throughput",
        "ratio (quartiles)",
        "one query, ratio",
    ]
    return [text, "", *table(head, rows)]


def _cell(text: str) -> str:
    """Words that stay in one cell."""
    return " ".join(text.split()).replace("|", "\\|") or NOTHING


def accidents(data: Row) -> Lines:
    """Accidents, and what was said."""
    head = ["what was done", "caught", "exit", "what vitrim said", "figures"]
    rows = [
        [row["accident"], f"not staged: {row['skipped']}", *[NOTHING] * 3] for row in data["rows"] if "skipped" in row
    ]
    staged = [row for row in data["rows"] if "skipped" not in row]
    rows += [
        [
            f"**{row['accident']}**: {row['done']}",
            f"by {row['noticed_by']}" if row["caught"] else f"**not caught**: {row['hole'] or 'it should be'}",
            NOTHING if row["exit_code"] is None else row["exit_code"],
            _cell(row["said"]),
            _cell(row["found"]),
        ]
        for row in staged
    ]
    caught = sum(row["caught"] for row in staged)
    text = (
        f"{caught} of {len(staged)} caught. Every row runs vitrim's own code on a small ViT; words are verbatim, `...` "
        "stands for a folder. Exit: of the command line, where a command was run."
    )
    return [text, "", *table(head, rows, texts=len(head))]


def rtx_builds(data: Row) -> Lines:
    """Seconds and megabytes of engines."""
    columns = list(dict.fromkeys(row["capability"] for row in data["rows"]))
    names = dict.fromkeys((row["model"], row["shape"], row["precision"]) for row in data["rows"])
    by = {(row["model"], row["shape"], row["precision"], row["capability"]): row for row in data["rows"]}

    def cell(key: tuple[str, ...]) -> str:
        if key not in by:
            return NOTHING
        row = by[key]
        return "failed" if "failed" in row else f"{row['build_s_median']:.1f} s, {row['engine_bytes'] / 1e6:.1f} MB"

    rows = [[", ".join(name), *(cell((*name, one)) for one in columns)] for name in names]
    text = (
        f"TensorRT-RTX {data['conditions']['versions'].get('tensorrt-rtx', '')}, batch {data['batch']}, "
        f"{data['threads']} threads, random weights: median seconds of a build without a GPU and size of the engine, "
        "by compute capability. Pruned: half of every MLP and of every query and key. The engines never ran."
    )
    left = [f"No graphs: {', '.join(data['left_out'])}.", ""] if data["left_out"] else []
    return [text, "", *left, *table(["model, shape, precision", *columns], rows)]
