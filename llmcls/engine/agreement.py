"""Agreement between ranks: the main process looks at files and decides, and the others wait for it as long as needed.

Ranks on other machines may see another file system, or an outdated view of the same one. If each rank looked for
itself, one could start at step 0 while the others resume.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list

from llmcls.common.heartbeat import waiting
from llmcls.common.user_error import UserError

T = TypeVar("T")

# How long ranks wait while another one tokenizes or trains baselines. NCCL gives up after 10 minutes, which is right
# for a collective but not for this.
PATIENCE = timedelta(days=1)

# The process group that was opened last, and the one of the same ranks for `first_process_first`.
_groups: dict[str, Any] = {}


def from_main(accelerator: Accelerator | PartialState, value: T) -> T:
    """The value of the main process, on every rank. Collective."""
    if accelerator.num_processes == 1:
        return value
    values = [value]
    broadcast_object_list(values)
    return values[0]


def on_main(accelerator: Accelerator | PartialState, function: Callable[[], T]) -> T:
    """What a function returns on the main process, on every rank. Collective.

    Raises
    ------
    UserError
        On every rank, if the function raised it on the main process.
    """
    outcome: tuple[T | None, str | None] = (None, None)
    if accelerator.is_main_process:
        try:
            outcome = (function(), None)
        except UserError as error:
            outcome = (None, str(error))
    value, refusal = from_main(accelerator, outcome)
    if refusal is not None:
        raise UserError(refusal)
    return cast(T, value)


@contextmanager
def entered_by_main(accelerator: Accelerator | PartialState, context: AbstractContextManager[object]) -> Iterator[None]:
    """Run the body inside a context that only the main process enters. Collective.

    Raises
    ------
    UserError
        On every rank, if the main process could not enter it.
    """
    with ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(context)

        on_main(accelerator, enter)
        yield


@contextmanager
def first_process_first(accelerator: Accelerator | PartialState, is_first: bool) -> Iterator[None]:
    """Let some ranks run the body first, while the others wait, for up to `PATIENCE`. Collective.

    Parameters
    ----------
    accelerator : Accelerator or PartialState
    is_first : bool
        Whether this rank runs first: ``accelerator.is_main_process``, or ``is_local_main_process`` for one rank per
        machine.
    """
    if accelerator.num_processes == 1:
        yield
        return
    group = _waiting_group()
    if not is_first:
        # As long as the first ones take, which are watched themselves.
        with waiting():
            dist.barrier(group=group)
    yield
    if is_first:
        dist.barrier(group=group)


def _waiting_group() -> dist.ProcessGroup:
    """The group of all ranks that waits for as long as `PATIENCE`; made once. Collective.

    Over gloo, because it waits on the host: NCCL would also occupy the GPU. A new group needs the launcher, but ranks
    whose launcher is gone still have to save.
    """
    world = dist.group.WORLD
    if _groups.get("world") is not world:
        _groups["world"] = world
        _groups["waiting"] = dist.new_group(backend="gloo", timeout=PATIENCE)
    return _groups["waiting"]


def require_same(seen: object, by_main: object, path: Path) -> None:
    """Stop if this rank sees something else at a path than the main process.

    Raises
    ------
    UserError
        Naming this rank's machine.
    """
    if seen != by_main:
        raise UserError(
            f"{path}: the machine {socket.gethostname()} does not see there what the main process sees; "
            "put exp.output_root on a file system that all machines share"
        )
