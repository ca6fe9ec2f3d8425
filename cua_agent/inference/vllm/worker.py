"""What a vLLM server on a CPU lacks, added to its workers by `--worker-extension-cls`.

vLLM packs the output embeddings for its CPU kernels when it loads a model. Where they are tied to the input embeddings
a reload renews only the latter, so that the server would go on with the old head. This module runs inside the server.
"""

from __future__ import annotations

from typing import Any

EXTENSION = f"{__name__}.PackedHeadWorker"


class PackedHeadWorker:
    """Mixed into vLLM's worker; `model_runner` is the worker's own."""

    model_runner: Any

    def reload_policy(self, weights_path: str) -> None:
        """`reload_weights`, and the head packed again."""
        self.model_runner.reload_weights(weights_path=weights_path)
        for module in self.model_runner.get_model().modules():
            if type(module).__name__ == "ParallelLMHead":
                module.quant_method.process_weights_after_loading(module)
