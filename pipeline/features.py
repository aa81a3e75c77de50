"""Judging models by their features: how alike they are, what lies near what, and which text is nearest.

Letters: N images, C classes, D width of a feature, K neighbours. A feature that is zero or not finite is called broken:
it is like nothing.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from pipeline.statistics import Floats, Integers


def feature_cosine(baseline: "Floats", engine: "Floats") -> "Floats":
    """Cosine between the two features of each image. Both [N, D]; returns [N], 0 for a broken feature."""
    if baseline.shape != engine.shape:
        raise ValueError(f"both must give features of one shape, got {baseline.shape} and {engine.shape}")
    cosine: Floats = (_unit(baseline) * _unit(engine)).sum(axis=1)
    return cosine


def shared_neighbours(baseline: "Floats", engine: "Floats", *, neighbours: int = 10) -> "Floats":
    """Share of each image's nearest other images, by cosine, that both models name.

    baseline [N, D], engine [N, E]; returns [N] in 0..1, 0 where the engine's feature is broken.
    """
    import numpy as np

    if len(baseline) != len(engine):
        raise ValueError(f"both must see the same images, got {len(baseline)} and {len(engine)}")
    theirs, ours = _nearest(baseline, neighbours), _nearest(engine, neighbours)  # [N, K]
    shared = (theirs[:, :, None] == ours[:, None, :]).any(axis=2).mean(axis=1)  # [N]
    return np.where(_unit(engine).any(axis=1), shared, 0.0)


def knn_answers(
    features: "Floats", labels: "Integers", *, neighbours: int = 20, temperature: float = 0.07
) -> "Integers":
    """Classify each image by its nearest others. features [N, D], labels [N]; returns [N], -1 for a broken feature.

    Votes weigh exp(cosine / temperature), with the values of Wu et al. (arXiv 1805.01978) that DINO made customary.
    """
    import numpy as np

    if len(labels) != len(features):
        raise InputError(f"{len(labels)} labels for {len(features)} images")
    unit = _unit(features)
    nearest = _nearest(features, neighbours)  # [N, K]
    weights = np.exp(np.einsum("nd,nkd->nk", unit, unit[nearest]) / temperature)  # [N, K]
    classes, places = np.unique(labels, return_inverse=True)
    votes = np.zeros((len(labels), len(classes)))
    np.add.at(votes, (np.arange(len(labels))[:, None], places[nearest]), weights)
    return np.where(unit.any(axis=1), classes[votes.argmax(axis=1)], -1)


def zero_shot_logits(features: "Floats", texts: "Floats") -> "Floats":
    """Cosine of each image's feature with each class's text. features [N, D], texts [C, D]; returns [N, C].

    The row of a broken feature is NaN, which counts as a wrong answer.
    """
    import numpy as np

    if features.shape[1] != texts.shape[1]:
        raise InputError(
            f"image features are {features.shape[1]} wide, text embeddings {texts.shape[1]}; "
            "both must come from the same model"
        )
    unit = _unit(features)
    return np.where(unit.any(axis=1, keepdims=True), unit @ _unit(texts).T, np.nan)


def load_text_embeddings(path: Path) -> "Floats":
    """Read one text embedding per class from `.npy`, or from `.safetensors` with one tensor.

    Returns [C, D] in the order of the labels; raises InputError for anything else.
    """
    import numpy as np
    from safetensors import SafetensorError

    readers = {".npy": _npy, ".safetensors": _only_tensor}
    if path.suffix not in readers:
        raise InputError(f"text embeddings must be a .npy or .safetensors file, not {str(path)!r}")
    try:
        texts = readers[path.suffix](path)
    except (OSError, EOFError, ValueError, SafetensorError) as error:
        raise InputError(f"text embeddings {str(path)!r} cannot be read: {error}") from error
    if texts.ndim != 2 or not texts.size or texts.dtype.kind != "f":
        raise InputError(
            f"text embeddings {str(path)!r} are {texts.dtype} {texts.shape}; expected floats [classes, width]"
        )
    broken = np.flatnonzero(~_unit(texts).any(axis=1))
    if len(broken):
        raise InputError(f"text embeddings {str(path)!r} are zero or not finite for class {broken[0]}")
    return texts.astype(np.float32)


def _npy(path: Path) -> "Floats":
    import numpy as np

    with path.open("rb") as file:
        array: Floats = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _only_tensor(path: Path) -> "Floats":
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        names = sorted(file.keys())
        if len(names) != 1:
            raise ValueError(f"it holds {len(names)} tensors ({', '.join(names[:5])}), expected one")
        if file.get_slice(names[0]).get_dtype() not in ("F16", "F32", "F64"):
            raise ValueError(f"it holds {file.get_slice(names[0]).get_dtype()}, expected F16, F32 or F64")
        tensor: Floats = file.get_tensor(names[0])
    return tensor


def _nearest(features: "Floats", neighbours: int) -> "Integers":
    """Indices [N, K] of the nearest other rows by cosine, in no particular order; K is at most N - 1."""
    import numpy as np

    unit = _unit(features)
    count = len(unit)
    if count < 2:
        raise InputError(f"neighbours need at least 2 images, got {count}")
    neighbours = min(neighbours, count - 1)
    found = np.empty((count, neighbours), dtype=np.int64)
    for start in range(0, count, 1024):  # 1,024 rows of an N x N matrix at a time
        similar = unit[start : start + 1024] @ unit.T
        rows = np.arange(len(similar))
        similar[rows, start + rows] = -np.inf
        found[start : start + 1024] = np.argpartition(-similar, neighbours - 1, axis=1)[:, :neighbours]
    return found


def _unit(rows: "Floats") -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Scale each row to length 1; a broken row becomes zero. [N, D] to [N, D]."""
    import numpy as np

    finite = np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0).astype(np.float64)
    largest = np.abs(finite).max(axis=1, keepdims=True, initial=0)  # first, so that squares cannot overflow
    scaled = np.divide(finite, largest, out=np.zeros_like(finite), where=largest > 0)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    unit: np.ndarray[Any, np.dtype[np.float64]] = np.divide(scaled, length, out=np.zeros_like(scaled), where=length > 0)
    return unit
