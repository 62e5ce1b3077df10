"""The checks of the doctor, in order, and how one is run.

Nothing heavy is imported here: a check is named by its module, which is imported when the check runs. So a broken
library is a fault of the checks that need it.
"""

from __future__ import annotations

import importlib
import traceback
from dataclasses import dataclass

from llmcls.common.user_error import UserError
from llmcls.diagnosis.findings import Finding, NotApplicable, Subject, fault, skipped

REPORT_IT = "if the other lines do not explain it, report it with doctor.json"


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes
    ----------
    name : str
    function : str
        "module:function"; the function takes a `Subject` and returns a `Finding`.
    seconds : int
        How long it may take.
    """

    name: str
    function: str
    seconds: int = 60


CHECKS = (
    Check("system", "llmcls.diagnosis.machine:system"),
    Check("driver", "llmcls.diagnosis.graphics:driver"),
    Check("torch", "llmcls.diagnosis.graphics:torch_build"),
    Check("libraries", "llmcls.diagnosis.versions:libraries"),
    Check("compiler", "llmcls.diagnosis.software:compiler", 300),
    Check("bitsandbytes", "llmcls.diagnosis.software:four_bit_kernels", 120),
    Check("memory", "llmcls.diagnosis.machine:memory"),
    Check("disk", "llmcls.diagnosis.machine:disk"),
    Check("files", "llmcls.diagnosis.machine:file_system"),
    Check("processes", "llmcls.diagnosis.processes:all_reduce", 150),
    Check("slurm", "llmcls.diagnosis.processes:slurm"),
    Check("recipe", "llmcls.diagnosis.subject:usable", 120),
    Check("attention", "llmcls.diagnosis.choices:attention", 120),
    Check("kernels", "llmcls.diagnosis.choices:kernels", 300),
    Check("fit", "llmcls.diagnosis.memory_fit:fit", 300),
    Check("packing", "llmcls.diagnosis.exactness:packing", 300),
    Check("fused", "llmcls.diagnosis.exactness:fused", 300),
    Check("last-token", "llmcls.diagnosis.exactness:last_token"),
    Check("4bit", "llmcls.diagnosis.short_training:four_bit", 300),
    Check("resume", "llmcls.diagnosis.short_training:resume", 300),
    Check("peak", "llmcls.diagnosis.step:peak", 300),
    Check("speed", "llmcls.diagnosis.step:speed", 300),
)


def run_check(check: Check, subject: Subject) -> tuple[Finding, bool]:
    """Run one check; an exception becomes a fault.

    Returns
    -------
    finding : Finding
    raised : bool
        Whether the check raised an exception, after which the state of a GPU is not trusted any more.
    """
    module, _, function = check.function.partition(":")
    try:
        finding: Finding = getattr(importlib.import_module(module), function)(subject)
        return finding, False
    except NotApplicable as reason:
        return skipped(str(reason)), False
    except UserError as error:
        # Its sentence says what is wrong and, after the last semicolon, what to do.
        found, semicolon, advice = first_line(error).rpartition("; ")
        return fault(found if semicolon else advice, advice if semicolon else REPORT_IT), False
    # Whatever a library raises is a finding about it.
    except Exception as error:
        trace = traceback.format_exc()
        return fault(f"{type(error).__name__}: {first_line(error)}", REPORT_IT, traceback=trace), True


def first_line(error: BaseException) -> str:
    """The first line of an error that is not empty, at most 300 characters; its class if there is none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]
