"""Which images a step sees."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from stages.training.sampler import batch_at, held_out, steps_for

counts = st.integers(1, 60)
sizes = st.integers(1, 40)
seeds = st.integers(0, 2**32)


@given(count=counts, batch_size=sizes, seed=seeds)
def test_an_epoch_shows_every_image_once(count: int, batch_size: int, seed: int) -> None:
    steps = steps_for(3 * count, batch_size=batch_size)
    drawn = [place for step in range(steps) for place in batch_at(step, count=count, batch_size=batch_size, seed=seed)]

    assert Counter(drawn[: 3 * count]) == Counter((image, epoch) for image in range(count) for epoch in range(3))


@given(count=counts, batch_size=sizes, seed=seeds, step=st.integers(0, 500))
def test_a_batch_depends_on_seed_and_step_alone(count: int, batch_size: int, seed: int, step: int) -> None:
    first = batch_at(step, count=count, batch_size=batch_size, seed=seed)
    batch_at(step + 7, count=count, batch_size=batch_size, seed=seed + 1)

    assert batch_at(step, count=count, batch_size=batch_size, seed=seed) == first
    assert len(first) == batch_size


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(image for image, _ in batch_at(step, count=50, batch_size=50, seed=seed))
        for step in range(4)
        for seed in range(4)
    }

    assert len(orders) == 16


@given(count=st.integers(2, 300), share=st.floats(0.001, 0.999), seed=seeds)
def test_held_out_images_are_not_trained_on(count: int, share: float, seed: int) -> None:
    kept, held = held_out(count, share=share, seed=seed)

    assert kept
    assert held
    assert sorted([*kept, *held]) == list(range(count))


@given(images=st.integers(1, 10_000), batch_size=sizes)
def test_steps_show_at_least_the_images_asked_for_and_less_than_a_batch_more(images: int, batch_size: int) -> None:
    seen = steps_for(images, batch_size=batch_size) * batch_size

    assert images <= seen < images + batch_size
