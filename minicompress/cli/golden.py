"""`golden`: inputs and right answers for whoever ports this to another language."""

from pathlib import Path
from typing import Annotated

import typer

from minicompress.cli.common import Json, app, show
from minicompress.verification.golden.folder import check_golden, write_golden


@app.command()
def golden(
    out: Annotated[Path | None, typer.Option(help="folder to write the set to: new, or an older set")] = None,
    check: Annotated[Path | None, typer.Option(help="folder of a set to compute anew and compare")] = None,
    as_json: Json = False,
) -> None:
    """Write the golden vectors, or compute those of a folder anew and say what differs."""
    if (out is None) == (check is None):
        raise ValueError("golden takes either --out DIR, to write, or --check DIR, to compare")
    if out:
        files = write_golden(out)["files"]
        size = sum(one["bytes"] for one in files.values())
        result = {"out": str(out), "files": len(files), "bytes": size}
        show(result, as_json, f"{len(files)} golden files, {size / 1e6:.2f} MB, written to {out}")
        return
    found = check_golden(check)
    result = {"check": str(check), "files": found.files, "nearest": found.nearest, "differences": found.lines}
    words = f"{found.files} files as computed here; the largest error is {found.nearest:.0%} of its tolerance"
    show(result, as_json, "\n".join(found.lines) or words)
    if found.lines:
        raise typer.Exit(1)
