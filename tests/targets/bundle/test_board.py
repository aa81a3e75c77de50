"""The command with which a board builds its engine has the options of the target's runtime."""

import os
import subprocess

from targets.bundle.board import build_script
from targets.bundle.manifest import Tensor


def test_the_command_that_builds_has_the_runtime_s_own_options(tmp_path):
    """A stand-in for trtexec prints what it was asked for; like trtexec it knows --noTF32."""
    inputs = [Tensor(name="pixels", shape=(None, 3, 8, 8), dtype="float32")]
    own = {"workspace_mib": 512, "optimization_level": 5, "strip_weights": True, "version_compatible": True}
    own |= {"hardware_compatibility": "ampere_plus", "batch_max": 8, "timing_cache": "/kept times"}
    script = tmp_path / "build.sh"
    script.write_text(str(build_script("tensorrt", inputs=inputs, batch=4, versions=">=10", options=own)))
    fake = tmp_path / "trtexec"
    fake.write_text('#!/bin/sh\nfor one in "$@"; do echo "$one"; done\n[ "$1" = --help ] && echo --noTF32\nexit 0\n')
    fake.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", script, tmp_path / "out"], capture_output=True, text=True, env=path, check=True)

    words = done.stdout.splitlines()
    assert {
        *("--memPoolSize=workspace:512M", "--builderOptimizationLevel=5", "--stripWeights", "--versionCompatible"),
        *("--hardwareCompatibilityLevel=ampere+", "--timingCacheFile=/kept times/times.cache", "--noTF32"),
        *("--minShapes=pixels:4x3x8x8", "--optShapes=pixels:4x3x8x8", "--maxShapes=pixels:8x3x8x8"),
    } <= set(words)
    assert "--refit" not in words, "it would allow other weights, too"


def test_the_command_that_builds_lets_tf32_be_where_it_is_asked_for():
    inputs = [Tensor(name="pixels", shape=(4, 3, 8, 8), dtype="float32")]
    asked = {"inputs": inputs, "batch": 4, "versions": ">=10"}

    assert "--noTF32" in str(build_script("tensorrt", **asked))
    assert "--noTF32" not in str(build_script("tensorrt", **asked, options={"tf32": True}))


def test_the_command_of_onnx_runtime_has_its_options(tmp_path):
    asked = {"batch": 4, "versions": ">=1.24", "inputs": [Tensor(name="image", shape=(4, 3, 8, 8), dtype="float32")]}
    cuda = str(build_script("onnxruntime_cuda", **asked, options={"memory_mib": 64}))
    tensorrt = str(build_script("onnxruntime_tensorrt", **asked, options={"timing_cache": "times"}))

    assert f"'gpu_mem_limit': '{64 << 20}'" in cuda
    assert "'trt_timing_cache_path': 'times'" in tensorrt
