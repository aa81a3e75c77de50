"""Whether calibration images are enough for the second moments of what enters a layer. Light.

Moments of fewer tokens than inputs are singular: what looks like a perfect fit would be one of these tokens alone. With
few tokens for each input, the fit begins to follow them instead of what they stand for.
"""

from math import ceil

from stages.vit.spec import ViTSpec
from targets.errors import InputError

TOKENS_PER_INPUT = 10
"""With fewer calibration tokens for each input, a fit is warned of."""


def refuse_few(images: int, spec: ViTSpec, inputs: int, what: str) -> None:
    """Raise InputError, before any work, where so many images have fewer tokens than the largest layer has inputs.

    what: these inputs in words, in the plural.
    """
    if images * spec.tokens < inputs:
        least, good = (ceil(factor * inputs / spec.tokens) for factor in (1, TOKENS_PER_INPUT))
        raise InputError(
            f"{images} images have {images * spec.tokens} tokens, which cannot describe {inputs} {what}; give at "
            f"least {least} images of fit, better {good}"
        )


def refuse_few_tokens(tokens: int, inputs: int, what: str) -> None:
    """Raise InputError where tokens that were seen are fewer than the inputs of a layer."""
    if tokens < inputs:
        raise InputError(
            f"{tokens} tokens of calibration images cannot describe {inputs} {what}; give more images of fit: "
            f"{TOKENS_PER_INPUT} times as many tokens are a good measure"
        )


def are_few(tokens: int, inputs: int) -> bool:
    """Whether a fit of so many inputs on so many tokens is to be warned of."""
    return tokens < TOKENS_PER_INPUT * inputs


def warning(tokens: int, inputs: int, what: str) -> str:
    """Return the warning in words."""
    return (
        f"{tokens} tokens of calibration images for {inputs} {what} are few: give {TOKENS_PER_INPUT} times as many "
        "tokens"
    )
