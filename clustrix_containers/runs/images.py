"""The image of a function without a call: built, pushed, explained. What an image carries names only this."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from clustrix_containers.api.options import Options
from clustrix_containers.clusters import staging
from clustrix_containers.oci.model import Image
from clustrix_containers.remote.progress import shown

from . import plan as planning
from .explain import Explanation, explanation
from .plan import ImagePlan


def build(function: Callable[..., Any], options: Options) -> Image:
    """The image; also in the layout if all of its bytes are on this machine."""
    image = _build(function, options)[1]
    staging.to_layout_if_complete(image)
    return image


def push(image: Image, repository: str) -> str:
    """Push an image to ``repository``; gives ``repository@sha256:…``."""
    with shown() as progress:
        return staging.to_registry(image, repository, progress=progress)


def explain(function: Callable[..., Any], options: Options, name: str) -> Explanation:
    """What goes into the image of the function called ``name``, and why."""
    plan, image = _build(function, options)
    return explanation(name, plan, image, staging.layout().has)


def directory() -> Path:
    """The image layout directory of this user."""
    return staging.layout().directory


def _build(function: Callable[..., Any], options: Options) -> tuple[ImagePlan, Image]:
    with shown() as progress:
        plan = planning.plan(function, options, progress=progress)
        return plan, planning.build(plan, progress=progress)
