"""Put a run on the hub: ``python -m llmcls.push --run outputs/.../run_0 --repo user/name``.

Uploads the adapter (or the whole model) with thresholds, calibration and a filled-in model card; with ``--exported``, a
folder that `llmcls.export` wrote. ``--dry-run DIR`` writes the same files locally.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from llmcls.common.command import command_parser, run_command
from llmcls.common.logs import configure_logging
from llmcls.common.user_error import UserError
from llmcls.results.finished_runs import open_run
from llmcls.results.run_folder import RunFolder
from llmcls.serving.push import require_repository, upload, write_exported, write_run


def main(argv: list[str] | None = None) -> None:
    """Write the files, upload them unless it is a dry run, and print where they are."""
    parser = command_parser("push", "Put a run with its model card on the hub.")
    parser.add_argument("--run", required=True, help="a run folder, outputs/.../run_0")
    parser.add_argument("--repo", required=True, help="USER/NAME on the hub")
    parser.add_argument("--exported", help="push this folder, which llmcls.export wrote from the run")
    parser.add_argument("--base-model", help="the name of the pretrained model on the hub, if it was a folder")
    parser.add_argument("--public", action="store_true", help="a new repository is public; default: private")
    parser.add_argument("--dry-run", metavar="DIR", help="write the files to a new folder, and upload nothing")
    arguments = parser.parse_args(argv)
    configure_logging(main_process=True)
    require_repository(arguments.repo)
    run = open_run(RunFolder(Path(arguments.run)), arguments.base_model)

    def write(folder: Path, link: bool) -> None:
        if arguments.exported:
            write_exported(run, Path(arguments.exported), arguments.repo, folder, link)
        else:
            write_run(run, arguments.repo, folder, link)

    if arguments.dry_run:
        target = Path(arguments.dry_run)
        if target.exists():
            raise UserError(f"--dry-run: {target} exists; name a folder that does not exist")
        write(target, link=False)
        print(f"{target}: {len(list(target.iterdir()))} files for {arguments.repo}, nothing uploaded")
        return
    # Beside the run, so that files can be linked instead of copied.
    with tempfile.TemporaryDirectory(dir=run.folder.path.parent, prefix=".push-") as scratch:
        write(Path(scratch) / "model", link=True)
        print(upload(Path(scratch) / "model", arguments.repo, arguments.public))


if __name__ == "__main__":
    run_command(main)
