# SPDX-License-Identifier: Apache-2.0
"""Model of Triton's Python back end: encoded image files become the pixels that the model beside it reads.

It needs numpy and Pillow in the Python of Triton's back end, and the files pixels.py and settings.json beside it.
"""

from __future__ import annotations

import importlib.util
import json
import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found,unused-ignore]  # Triton brings it


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load what lies beside this file."""
        folder = os.path.join(args["model_repository"], args["model_version"])
        spec = importlib.util.spec_from_file_location("vitrim_bundle_pixels", os.path.join(folder, "pixels.py"))
        if spec is None or spec.loader is None:
            raise pb_utils.TritonModelException(f"there is no pixels.py in {folder}")
        self.pixels: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.pixels)
        with open(os.path.join(folder, "settings.json"), encoding="utf-8") as file:
            settings = json.load(file)
        self.preprocess = SimpleNamespace(**settings["preprocess"])
        self.output, self.dtype = settings["output"], settings["dtype"]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request: bytes [N] or [N, 1] to [N, 3, H, W]; a bad image fails its own request alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        given = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
        cropped = []
        for index, data in enumerate(given):
            try:
                cropped.append(self.pixels.resize_and_crop(self.pixels.decode(bytes(data)), self.preprocess))
            except self.pixels.UnreadableImageError as error:
                told = pb_utils.TritonError(f"image {index} cannot be read: {error}")
                return pb_utils.InferenceResponse(output_tensors=[], error=told)
        answer = self.pixels.normalise(np.stack(cropped), self.preprocess).astype(self.dtype)
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(self.output, answer)])
