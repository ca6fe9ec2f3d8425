"""Lets torchvision's CUDA build be imported beside a torch without CUDA.

Its compiled operators do not load there, and its import fails because it describes two of them further. This module is
put into an environment's site-packages and imported at start-up by a .pth file; it declares the two operators when
torchvision is first imported. Transforms and image processors work; the operators themselves are not needed.
"""

import sys


class _Finder:
    def find_spec(self, name, path=None, target=None):  # noqa: ARG002 (the import system's interface)
        if name == "torchvision":
            sys.meta_path.remove(self)
            _declare()


def _declare():
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch._torchvision_schemas = library  # the declarations live as long as this object


sys.meta_path.insert(0, _Finder())
