"""Small installed distributions as real directories, as pip leaves them."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path


def site(tmp_path: Path, name: str = "site-packages") -> Path:
    """An empty directory of installed packages, as deep below a prefix as a real one."""
    path = tmp_path / "lib" / "python3" / name
    path.mkdir(parents=True)
    return path


def install(
    root: Path,
    name: str,
    version: str = "1.0",
    files: Mapping[str, str | bytes] | None = None,
    *,
    requires: Sequence[str] = (),
    extras: Sequence[str] = (),
    info_files: Mapping[str, str] | None = None,
    installer: str = "pip",
    record: bool = True,
) -> Path:
    """Write files and a ``.dist-info`` with METADATA, RECORD and INSTALLER; the ``.dist-info``.

    Without ``files`` the distribution is one package of its own name.
    """
    module = name.replace("-", "_")
    contents: dict[str, str | bytes] = dict(
        files if files is not None else {f"{module}/__init__.py": ""}
    )
    info = f"{module}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Provides-Extra: {extra}" for extra in extras]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    contents[f"{info}/METADATA"] = "\n".join(lines) + "\n\nRequires-Dist: not-a-header\n"
    contents[f"{info}/INSTALLER"] = f"{installer}\n"
    contents |= {f"{info}/{file}": text for file, text in (info_files or {}).items()}
    rows = []
    for path, content in contents.items():
        data = content.encode() if isinstance(content, str) else content
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        rows.append((path, record_hash(data), str(len(data))))
    if record:
        out = io.StringIO(newline="")
        csv.writer(out, lineterminator="\n").writerows([*rows, (f"{info}/RECORD", "", "")])
        (root / info / "RECORD").write_text(out.getvalue())
    return root / info


def record_hash(data: bytes) -> str:
    """As RECORD spells it."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
