"""What goes into an image and why, as text and as JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from clustrix_containers.oci.model import Image
from clustrix_containers.worker.contract import LAYER_KIND, LAYER_TITLE

if TYPE_CHECKING:
    from .plan import ImagePlan


@dataclass(frozen=True, slots=True)
class LayerLine:
    """One layer: kind, title, digest, stored size in bytes; ``reused`` if an image here has it already."""

    kind: str
    title: str
    digest: str
    size: int
    reused: bool = False


@dataclass(frozen=True, slots=True)
class PackageLine:
    """One distribution; ``reasons`` best first; ``source`` is ``wheel`` or ``installed files``.

    ``packed`` is the reason why it is packed from its installed files.
    """

    name: str
    version: str
    source: str
    reasons: tuple[str, ...]
    packed: str = ""


@dataclass(frozen=True, slots=True)
class FileLine:
    """One file of the code layer, and why it is in it."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """What goes into an image and why, what was left out, what analysis cannot see. Print it."""

    function: str
    digest: str
    layers: tuple[LayerLine, ...]
    packages: tuple[PackageLine, ...]
    files: tuple[FileLine, ...]
    notes: tuple[str, ...]
    left_out: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [self.function, f"image {self.digest}", ""]
        width = max((len(decimal(line.size)) for line in self.layers), default=0)
        lines += [
            f"  {decimal(line.size):>{width}}  {'reused' if line.reused else 'new':6}"
            f"  {line.kind:9} {line.title}"
            for line in self.layers
        ]
        new = [line for line in self.layers if not line.reused]
        lines += [
            "",
            f"  {len(self.layers) - len(new)} of {len(self.layers)} layers are reused;"
            f" {decimal(sum(line.size for line in new))} are new",
        ]
        if self.packages:
            lines += ["", "Packages, and why:"]
            for item in self.packages:
                source = f"{item.source}: {item.packed}" if item.packed else item.source
                lines.append(f"  {item.name} {item.version} ({source})")
                lines += [f"      {reason}" for reason in item.reasons[:1]]
        for title, items in (
            ("Your files, and why:", [f"{item.path}: {item.reason}" for item in self.files]),
            ("Installed here and left out:", self.left_out),
            ("Cannot be determined statically:", self.notes),
        ):
            if items:
                lines += ["", title, *(f"  {item}" for item in items)]
        return "\n".join(lines)


def explanation(
    name: str, plan: ImagePlan, image: Image, has: Callable[[str], bool]
) -> Explanation:
    """The Explanation of a plan and the image that was built from it.

    ``has``: whether the blob with a digest existed before.
    """
    notes = (*plan.bundle.notes, *plan.resolution.notes)
    locked = {package.name: package for package in plan.lock.packages}
    return Explanation(
        name,
        image.digest,
        tuple(replace(line, reused=has(line.digest)) for line in layer_lines(image)),
        tuple(
            PackageLine(
                item.name,
                item.version,
                "wheel" if locked[item.name].wheel else "installed files",
                item.reasons,
                plan.packed.get(item.name, ""),
            )
            for item in plan.resolution.distributions
        ),
        tuple(FileLine(item.path, item.reason) for item in plan.bundle.files),
        tuple(f"{note.where}: {note.message}. {note.hint}" for note in notes),
        tuple(item.message for item in plan.resolution.left_out),
    )


def layer_lines(image: Image) -> tuple[LayerLine, ...]:
    """The image's layers, lowest first."""
    return tuple(
        LayerLine(
            layer.descriptor.annotations.get(LAYER_KIND, "layer"),
            layer.descriptor.annotations.get(LAYER_TITLE, layer.created_by[:60]),
            layer.digest,
            layer.size,
        )
        for layer in image.layers
    )
