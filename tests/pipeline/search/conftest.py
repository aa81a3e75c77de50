"""A spec, prices and a table to search with."""

import pytest

from stages.offers.record import Offer, Offers, Sublayer
from stages.vit.spec import BlockSpec, ViTSpec
from targets.preprocess import Preprocess


@pytest.fixture(scope="session")
def plain_spec() -> ViTSpec:
    block = BlockSpec(heads=2, d_qk=8, d_v=8, scale=8**-0.5, mlp_width=64, norm1_eps=1e-6, norm2_eps=1e-6)
    return ViTSpec(
        architecture="tiny",
        preprocess=Preprocess(height=32, width=32),
        patch_size=(8, 8),
        width=16,
        classes=10,
        blocks=(block,) * 3,
    )


@pytest.fixture(scope="session")
def offers(plain_spec: ViTSpec) -> Offers:
    """Later blocks lose less; every price falls with the size of the shape."""
    sublayers = []
    for index in range(len(plain_spec.blocks)):
        worth = 3 - index
        attention = [
            Offer(shape=(heads, d_qk, d_v), loss=worth * (1 - heads * (d_qk + d_v) / 32) ** 2)
            for heads in (1, 2)
            for d_qk in (4, 8)
            for d_v in (4, 8)
        ]
        sublayers.append(
            Sublayer(block=index, part="attention", offers=(Offer(shape=(0, 0, 0), loss=2.0 * worth), *attention))
        )
        mlp = [Offer(shape=(width,), loss=worth * (1 - width / 64) ** 2) for width in range(0, 65, 16)]
        sublayers.append(Sublayer(block=index, part="mlp", offers=tuple(mlp)))
    return Offers(unit="kl_nats", sublayers=tuple(sublayers), images=16)
