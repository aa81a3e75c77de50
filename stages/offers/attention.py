"""Offers of an attention: heads, d_qk and d_v, by rotation, with the closed-form error of each.

Three things are cut: heads, queries with keys, values. Each alone is measured at a few widths and interpolated over its
closed-form error (stages/prune_attention/offers.py). A joint shape loses the sum; of fewer
heads q, k and v lose their share of the heads. What heads and whole attentions are worth is measured with the block's
MLP fitted again, as pruning does it: it takes back much of what it costs to leave them out.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy

from torch import Tensor

from stages.offers.answers import Judge
from stages.offers.curves import between, spread
from stages.offers.mlp import RIDGE, without
from stages.offers.options import OffersOptions
from stages.offers.record import Offer
from stages.prune_attention.offers import offers as closed_form
from stages.prune_attention.options import AttentionShape, PruneAttentionOptions, fixed
from stages.prune_attention.prune import prune_block
from stages.prune_attention.weights import attention_of
from stages.vit.last_layer import give_bias
from stages.vit.refit import TOKENS_PER_NEURON, refit_mlp
from stages.vit.spec import ViTSpec
from stages.vit.sweep import Part, Visit, look, weigh_tokens

Shape = tuple[int, int, int]
HEAD_SHARES = (0.25, 0.5, 0.75)
"""of the number of heads"""


def attention_offers(visits: Iterator[Visit], judge: Judge, spec: ViTSpec, options: OffersOptions) -> tuple[Offer, ...]:
    """Price every legal shape of one attention. visits: fresh ones to it, each with a block to change."""
    visit = next(visits)
    index, attention = visit.index, attention_of(visit.block)
    heads, d_qk, d_v = attention.heads, attention.d_qk, attention.d_v
    kept, inner_norm = fixed(spec), spec.attention_norm_eps is not None
    queries = _legal(options, d_qk, "d_qk" in kept)
    values = _legal(options, d_v, "d_v" in kept)
    plan = PruneAttentionOptions(
        repair="none" if inner_norm else "parallel", ridge=RIDGE, per_image=False, shapes=(), method="rotate"
    )

    stream, source = list(next(visits).inputs()), visit.source
    behind_source = [source.after_attention(chunk) for chunk in stream]

    def judged(attention: Callable[[Tensor], Tensor], *, refit: bool) -> float:
        """Lose what the answers lose with this from the stream before the attention to that before the MLP."""
        if not (refit and options.refit and source.mlp is not None and not source.post_norm):
            return judge.loss(index, Part.ATTENTION, attention)
        block, changed = deepcopy(source), [attention(chunk) for chunk in stream]
        mlp = look(index, Part.MLP, source, block, behind_source, weigh_tokens(spec), changed=changed)
        refit_mlp(mlp, take_back=options.take_back, least=TOKENS_PER_NEURON)
        return judge.loss(index, Part.MLP, lambda x: block.after_mlp(attention(x)))

    def loss(shape: Shape) -> float:
        block = (tried := next(visits)).block
        give_bias(block, Part.ATTENTION)
        prune_block(block, AttentionShape(heads=shape[0], d_qk=shape[1], d_v=shape[2]), plan, tried)
        return judged(block.after_attention, refit=shape[0] < heads)

    priced = closed_form(visit)
    of_queries, of_values = priced.qk_error.sum(dim=0).tolist(), priced.v_error.sum(dim=0).tolist()
    of_heads = priced.head_error.tolist()
    moments, _ = next(visits).moments()

    measured: dict[Shape, float] = {}

    def curve(of: Sequence[float], tried: Sequence[int], shape: Callable[[int], Shape]) -> dict[int, float]:
        measured.update({shape(width): loss(shape(width)) for width in tried})
        losses = [measured[shape(width)] for width in tried]
        every = range(1, len(of))
        prices = between([of[width] for width in tried], losses, [of[width] for width in every])
        return {width: measured.get(shape(width), float(price)) for width, price in zip(every, prices, strict=True)}

    off = judged(without(spec, moments.mean_out), refit=True)
    fewer = spread(HEAD_SHARES, range(1, heads + 1), heads)
    by_heads = curve(of_heads, fewer, lambda count: (count, d_qk, d_v))
    by_queries = curve(of_queries, spread(options.measured_head_shares, queries, d_qk), lambda r: (heads, r, d_v))
    by_values = curve(of_values, spread(options.measured_head_shares, values, d_v), lambda r: (heads, d_qk, r))

    found = [Offer(shape=(0, 0, 0), loss=off, measured=True)] if options.off else []
    for count in range(1, heads + 1):
        for narrow in queries:
            for r in values:
                shape = (count, narrow, r)
                if options.equal_head_widths and d_qk == d_v and narrow != r:
                    continue
                price = by_heads.get(count, 0.0) if count < heads else 0.0
                part = (by_queries[narrow] if narrow < d_qk else 0.0) + (by_values[r] if r < d_v else 0.0)
                price += part * count / heads
                found.append(Offer(shape=shape, loss=measured.get(shape, price), measured=shape in measured))
    found[-1] = Offer(shape=(heads, d_qk, d_v), loss=0.0, measured=True)
    return tuple(found)


def _legal(options: OffersOptions, most: int, fixed_width: bool) -> tuple[int, ...]:
    if fixed_width:
        return (most,)
    multiples = range(options.head_multiple, most, options.head_multiple)
    widths = multiples if options.head_widths is None else sorted(set(options.head_widths))
    return (*(width for width in widths if options.head_least <= width < most), most)
