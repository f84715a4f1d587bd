"""Distributions that tests make up."""

from __future__ import annotations

from pathlib import Path


def install(place: Path, name: str, files: dict[str, str]) -> None:
    """A distribution `name` 1.0 is installed in `place`, over whatever is there."""
    for path, text in files.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(text)
    folder = place / f"{name}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (folder / "RECORD").write_text("".join(f"{path},,\n" for path in [*files, f"{folder.name}/RECORD"]))
