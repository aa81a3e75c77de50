"""Features: likeness, neighbours, texts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from pipeline.features import feature_cosine, knn_answers, load_text_embeddings, shared_neighbours, zero_shot_logits
from pipeline.statistics import top_k_right
from targets.errors import InputError


def random_features(seed, images=40, width=8):
    return np.random.default_rng(seed).normal(size=(images, width))


@given(st.integers(0, 1000), st.floats(1e-150, 1e150))
def test_likeness_and_neighbours_do_not_depend_on_scale(seed, scale):
    features, others = random_features(seed), random_features(seed + 1)

    assert feature_cosine(features * scale, others) == pytest.approx(feature_cosine(features, others))
    assert np.array_equal(shared_neighbours(features * scale, others), shared_neighbours(features, others))


def test_cosine_is_of_the_same_image():
    assert feature_cosine(np.array([[1.0, 0], [1, 1]]), np.array([[0.0, 2], [3, 3]])) == pytest.approx([0, 1])


def test_a_broken_feature_is_like_nothing():
    features = random_features(0)
    broken = features.copy()
    broken[3], broken[4, 2] = 0, np.nan

    assert feature_cosine(features, broken)[[3, 4]].tolist() == [0, 0]
    assert shared_neighbours(broken, broken)[[3, 4]].tolist() == [0, 0]
    assert knn_answers(broken, np.zeros(40, dtype=int))[[3, 4, 5]].tolist() == [-1, -1, 0]
    assert top_k_right(zero_shot_logits(broken, features[:5]), np.arange(40) % 5).tolist()[3:5] == [False, False]


@given(st.integers(0, 1000), st.integers(1, 12))
def test_neighbours_are_those_that_sorting_finds(seed, count):
    features, others = random_features(seed, images=25), random_features(seed + 1, images=25, width=5)

    def nearest(rows):
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return [set(sorted(set(range(25)) - {i}, key=lambda j: -unit[i] @ unit[j])[:count]) for i in range(25)]

    expected = [len(a & b) / count for a, b in zip(nearest(features), nearest(others), strict=True)]
    assert shared_neighbours(features, others, neighbours=count) == pytest.approx(expected)


def test_an_image_is_not_its_own_neighbour():
    features = np.array([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]])

    assert knn_answers(features, np.array([0, 1, 2, 3]), neighbours=1).tolist() == [1, 0, 3, 2]


def test_more_than_one_chunk_of_images_gives_the_same_neighbours():
    features = random_features(2, images=1500, width=4)
    order = np.random.default_rng(3).permutation(1500)

    assert np.array_equal(
        shared_neighbours(features, features @ np.diag([1, 1, 1, 0]))[order],
        shared_neighbours(features[order], features[order] @ np.diag([1, 1, 1, 0])),
    )


def test_one_image_has_no_neighbours():
    with pytest.raises(InputError, match="at least 2 images"):
        shared_neighbours(np.ones((1, 3)), np.ones((1, 3)))


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_zero_shot_answers_with_the_nearest_text(tmp_path, suffix):
    texts = random_features(1, images=7, width=16).astype(np.float16)
    path = tmp_path / f"texts{suffix}"
    np.save(path, texts) if suffix == ".npy" else save_file({"texts": texts}, path)
    labels = np.array([3, 0, 6, 6, 1])
    images = texts[labels] * np.array([[5], [0.1], [1], [2], [3]])

    logits = zero_shot_logits(images, load_text_embeddings(path))

    assert logits.shape == (5, 7)
    assert np.abs(logits).max() <= 1 + 1e-6
    assert top_k_right(logits, labels).all()


def test_text_embeddings_of_another_width_are_refused():
    with pytest.raises(InputError, match="image features are 8 wide, text embeddings 4"):
        zero_shot_logits(random_features(0), np.ones((2, 4)))


def bad_files(folder):
    """Files that are no text embeddings, with what the refusal says."""
    yield folder / "missing.npy", None, "No such file"
    yield folder / "text.csv", b"1,2", "must be a .npy or .safetensors"
    yield folder / "short.npy", b"\x93NUMPY", "cannot be read"
    yield folder / "zip.npy", b"PK\x03\x04" + b"\0" * 40, "cannot be read"
    yield folder / "broken.safetensors", b"\xff" * 20, "cannot be read"
    arrays = {
        "vector": (np.ones(4), "expected floats"),
        "integers": (np.ones((2, 3), dtype=np.int64), "expected floats"),
        "empty": (np.ones((0, 3)), "expected floats"),
        "object": (np.array([[1, "a"]], dtype=object), "cannot be read"),
        "nan": (np.array([[1.0, 2], [np.nan, 1]]), "not finite for class 1"),
        "zero": (np.array([[0.0, 0], [1, 1]]), "zero or not finite for class 0"),
    }
    for name, (array, says) in arrays.items():
        path = folder / f"{name}.npy"
        np.save(path, array, allow_pickle=True)
        yield path, path.read_bytes(), says
    two = folder / "two.safetensors"
    save_file({"a": np.ones((2, 2)), "b": np.ones((2, 2))}, two)
    yield two, two.read_bytes(), "holds 2 tensors"


def test_what_is_no_text_embedding_is_refused_in_one_line(tmp_path):
    for path, content, says in bad_files(tmp_path):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=says) as refusal:
            load_text_embeddings(path)
        assert "\n" not in str(refusal.value)
