"""What `export` does with its options: choose members, write them, perhaps push them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from ensemble_sae.errors import UserError
from ensemble_sae.interop.exporting import export, slug
from ensemble_sae.interop.folders import FORMATS
from ensemble_sae.run import Run, load
from ensemble_sae.terminal import Ended

PLAIN: Any = {"highlight": False, "markup": False, "soft_wrap": True}  # paths as they are


def execute(
    folder: Path,
    member: int | None,
    pareto: bool,
    to: str,
    out: Path,
    push: str | None,
    overwrite: bool,
) -> int:
    """Export and say where; returns the exit code.

    Raises:
        UserError: see `export`; or the hub does not take it.
    """
    run, console = load(folder), Console()
    refused: list[UserError] = []
    if pareto and member is None:
        written, refused = _frontier(run, to, out, overwrite, console)
    elif member is not None and not pareto:
        written = export(run, [member], to, out, overwrite=overwrite)
    else:
        raise UserError("Which members?", next_step="--member ID, or --pareto for the frontier")
    for path in written:
        console.print(str(path), **PLAIN)
    form: Any = FORMATS[to]
    console.print("Load it with:", **PLAIN)
    console.print(
        form.LOAD.format(folder=str(written[0])), highlight=False, markup=False, soft_wrap=True
    )
    pushed = None if push is None else _push(out, written, push)
    if pushed is not None:
        console.print(f"Pushed to {pushed}", **PLAIN)
    return Ended(
        0,
        run=run.path,
        format=to,
        written=written,
        left_out=[{"where": e.where, "why": e.found or e.what} for e in refused],
        pushed=pushed,
    )


def _frontier(
    run: Run, to: str, out: Path, overwrite: bool, console: Console
) -> tuple[list[Path], list[UserError]]:
    """Each Pareto-best member into a folder of its own; says which the format cannot express."""
    table, written, refused = run.members, [], []
    found = [int(m) for m in table.index[table["pareto"]]] if "pareto" in table else []
    if not found:
        raise UserError(
            "Nobody knows which members are Pareto-best before the run is finished.",
            where=str(run.path),
            next_step="--member ID",
        )
    for member in found:
        try:
            written += export(run, [member], to, out / slug(run, member), overwrite=overwrite)
        except UserError as error:
            refused.append(error)
            console.print(
                f"left out: {error.where}: {error.found or error.what}",
                highlight=False,
                markup=False,
            )
    if not written:
        raise refused[-1]
    return written, refused


def _push(folder: Path, written: list[Path], repository: str) -> str:
    """Upload what was written below the folder to a repository on the Hugging Face hub, and nothing
    else that is there; returns its address.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi()
    only = [f"{path.relative_to(folder)}/**" for path in written if path != folder] or None
    try:
        api.create_repo(repository, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=only))
    except (
        HfHubHTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        OSError,
        ValueError,
    ) as e:
        raise UserError(
            "The Hugging Face hub did not take the export; the files are here.",
            where=f"{folder} -> {repository}",
            found=(str(e).strip() or type(e).__name__).splitlines()[0],
            next_step="log in with `hf auth login`, or upload the folder with `hf upload`",
        ) from None
