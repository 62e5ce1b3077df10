"""A run on the hub: the files that others need, with a card, and without the folders of this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import HfApi

from llmcls.common.files import read_json, replacing_folder, write_json, write_text
from llmcls.common.user_error import UserError
from llmcls.recipe.load import recipe_to_yaml
from llmcls.recipe.shareable import hub_name, without_paths
from llmcls.results.card_usage import Home
from llmcls.results.finished_runs import FinishedRun
from llmcls.results.model_card import model_card
from llmcls.serving.classify import GRAPH
from llmcls.serving.proof import read_proof

ADAPTER_CONFIG = "adapter_config.json"
# Files that are not taken over from a run, because they name folders of this machine, but written again.
WRITTEN = ("README.md", "recipe.yaml")


def require_repository(repo: str) -> None:
    """Refuse what is not the name of a repository.

    Raises
    ------
    UserError
        Saying what a name looks like.
    """
    if repo.count("/") != 1 or hub_name(repo) is None:
        raise UserError(f"--repo is {repo[:80]!r}; it must be USER/NAME, of letters, digits, dots, dashes, underscores")


def write_run(run: FinishedRun, repo: str, target: Path, link: bool = False) -> None:
    """Write what a run needs to be used elsewhere into a folder that does not exist.

    The files of ``model/``, with thresholds, calibration, metrics and versions beside them: a folder that is used as
    that of the run is. The recipe and the adapter name the base model on the hub.

    Parameters
    ----------
    run : FinishedRun
    repo : str
        Named by the card.
    target : Path
    link : bool
        Whether the folder may share its files with the run, because nobody will change them.

    Raises
    ------
    UserError
        If the base model is a folder of this machine.
    """
    base = hub_name(run.recipe.model.model_name)
    if base is None:
        raise UserError(
            f"the pretrained model of this run is the folder {run.recipe.model.model_name}, which others do not have; "
            "name it on the hub with --base-model, or push an exported folder with --exported"
        )
    folder = run.folder
    with replacing_folder(target) as temporary:
        _place(sorted(folder.model.iterdir()), temporary, link)
        _place((folder.thresholds, folder.calibration, folder.metrics, folder.environment), temporary, link)
        if (temporary / ADAPTER_CONFIG).exists():
            config = read_json(temporary / ADAPTER_CONFIG)
            write_json(temporary / ADAPTER_CONFIG, config | {"base_model_name_or_path": base})
        write_text(temporary / "recipe.yaml", recipe_to_yaml(without_paths(run.recipe)))
        write_text(temporary / "README.md", model_card(run, Home(repo, on_hub=True)))


def write_exported(run: FinishedRun, exported: Path, repo: str, target: Path, link: bool = False) -> None:
    """Write an exported folder with a card that names the repository into a folder that does not exist.

    Parameters
    ----------
    run : FinishedRun
        From which the folder was exported.
    exported : Path
    repo, target, link
        See `write_run`.

    Raises
    ------
    UserError
        If `llmcls.export` did not write the folder, or wrote it from a run with other labels.
    """
    try:
        found = read_json(exported / "export.json")
        proof = read_proof(found)
        names = list(read_json(exported / "config.json")["id2label"].values())
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"--exported: {exported} is no folder that llmcls.export wrote") from None
    if names != run.labels.names:
        raise UserError(f"--exported: {exported} has other labels than {run.folder.path}; export that run")
    with replacing_folder(target) as temporary:
        _place(sorted(exported.iterdir()), temporary, link)
        home = Home(repo, on_hub=True, exported=True, onnx=(exported / GRAPH).exists(), proof=str(proof))
        write_text(temporary / "README.md", model_card(run, home))


def upload(folder: Path, repo: str, public: bool) -> str:
    """Upload a folder to the hub, into a repository that is made if it does not exist.

    Parameters
    ----------
    folder : Path
    repo : str
        USER/NAME.
    public : bool
        Whether a new repository is public.

    Returns
    -------
    str
        Its address.

    Raises
    ------
    UserError
        If the hub refuses it or cannot be reached. The message shows no token.
    """
    # Without a token given, the hub's library takes HF_TOKEN or that of `hf auth login`.
    api = HfApi()
    try:
        url = api.create_repo(repo, private=not public, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repo, commit_message="Upload a classifier trained with llmcls")
    # The libraries below raise errors of many classes: of HTTP, of the network, of validation.
    except Exception as error:
        raise UserError(f"the hub did not take {repo}: {_reason(error)}") from error
    return str(url)


def _reason(error: Exception) -> str:
    """What an error of the hub means, and what to do."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or "token" in type(error).__name__.lower():
        return "log in with `hf auth login`, or set HF_TOKEN to a token that may write to this account"
    first = " ".join((str(error).strip().splitlines() or [type(error).__name__])[0].split())
    return f"{first[:160]}; check the name and the network"


def _place(paths: Iterable[Path], folder: Path, link: bool) -> None:
    """Copy or link files into a folder, except temporary ones and those that are written again."""
    for path in paths:
        target = folder / path.name
        if not path.is_file() or path.suffix == ".partial" or path.name in WRITTEN or target.exists():
            continue
        linked = False
        if link:
            # Not every file system has links.
            with contextlib.suppress(OSError):
                os.link(path.resolve(), target)
                linked = True
        if not linked:
            shutil.copyfile(path, target)
