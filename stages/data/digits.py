"""The embedded data set: scikit-learn's 1,797 real handwritten digits, 8x8 pixels, ten classes.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (CC BY 4.0).
"""

import hashlib

import numpy as np

from stages.data.images import ImageSet, Item
from stages.stage import Role


def open_digits(role: Role) -> ImageSet:
    """All digits as RGB images; the content hash is of the pixels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = np.rint(data.images * (255 / 16)).astype(np.uint8)  # [N, 8, 8], was 0..16
    pixels = np.repeat(grey[..., None], 3, axis=-1)  # [N, 8, 8, 3]
    return ImageSet(
        role=role,
        items=tuple(
            Item(f"digits/{index:04}", hashlib.sha256(image.tobytes()).hexdigest(), int(label))
            for index, (image, label) in enumerate(zip(pixels, data.target, strict=True))
        ),
        places=tuple(pixels),
        classes=tuple(str(digit) for digit in data.target_names),
    )
