"""The import rules of llmcls/, read from the source. Each rule is also tested against a copy that breaks it."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.helpers import ROOT

# A package may import itself and packages of lower layers. The commands, at the root, are the highest layer.
LAYERS = {
    "common": 0, "recipe": 1, "data": 2, "model": 3, "engine": 4, "evaluation": 5, "results": 6,
    "training": 7, "prediction": 7, "serving": 7, "datasets": 7, "intake": 7, "search": 8, "rehearsal": 8,
    "diagnosis": 9,
}  # fmt: skip
COMMANDS = 10
LONGEST = 350

# Commands that only read what is written, and so answer at once: they load no library that computes.
WITHOUT_MODEL = ("runs", "report", "compare", "thresholds", "decide", "errors", "curve", "sweep", "folder", "prepare")
SLOW_LIBRARIES = {"torch", "transformers", "accelerate", "peft"}

# Files that may use private names of other libraries, and why no public name does.
PRIVATE_NAMES = {
    "common/signals.py": "a second Ctrl-C ends a process whose main thread is waiting, and only os._exit does that",
    "data/splits.py": "datasets identifies the content of a table by _fingerprint only",
    "engine/accelerator.py": "accelerate's switch for gradient exchange without its own step counting",
    "engine/full_state.py": "DeepSpeed links parameters to optimizer state once, before all groups have one",
    "model/adapter_copies.py": "torch has no public name for copying many tensors at once",
    "model/classifier.py": "FSDP's automatic wrapping reads _no_split_modules from the outermost module",
    "model/fused_ops.py": "the gradient of the softmax of torch has only a private name",
    "model/kernel_choice.py": "transformers says in a private attribute whether an architecture has SDPA attention",
    "model/kernels.py": "a module can be tried with other weights only by replacing torch's private tables of them",
    "model/packed_attention.py": "torch's public flash attention takes the host longer than the GPU",
    "model/packed_forward.py": "transformers states its attention capabilities and choice in private attributes",
    "model/stand_in.py": "torch names the attention kernels of GPUs only as private operations",
    "results/lock.py": "a process that lost its lock may write nothing more, and only os._exit ends it so",
    "training/watchdog.py": "only sys._current_frames shows where a thread is, and only os._exit ends a stuck one",
    "rehearsal/cpu_stand_in.py": "accelerate decides in _prepare_backend whether launched processes have GPUs",
}


def modules(package: Path) -> dict[str, Path]:
    """Dotted name to file, of every module in a copy of llmcls/."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = ["llmcls", *path.relative_to(package).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(node: ast.AST, known: frozenset[str]) -> list[str]:
    """The modules of llmcls that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name.split(".")[0] == "llmcls"]
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "llmcls":
        members = [f"{node.module}.{alias.name}" for alias in node.names]
        return [member if member in known else str(node.module) for member in members]
    return []


def layer(module: str) -> int:
    """The layer of a module; llmcls/__init__.py is below all, and __main__ above all."""
    parts = module.split(".")
    if len(parts) == 1:
        return -1
    return COMMANDS + 1 if parts[1] == "__main__" else LAYERS.get(parts[1], COMMANDS)


def private_names_of_others(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of private names that the module uses but does not define."""

    def private(name: str) -> bool:
        return name.startswith("_") and not name.startswith("__") and name != "_"

    def of_self(node: ast.Attribute) -> bool:
        return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")

    own = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    own |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    attributes = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    stored = {n.attr for n in attributes if of_self(n) and isinstance(n.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            if node.attr not in (own | stored if of_self(node) else own):
                yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, alias.name) for alias in node.names if private(alias.name))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and "attr" in node.func.id:
            texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            yield from ((node.lineno, text) for text in texts if private(text) and text not in own)


def libraries(tree: ast.Module) -> set[str]:
    """The libraries that are loaded with a module."""
    found = set()
    for node in tree.body:
        for part in ast.walk(node) if isinstance(node, ast.Try | ast.With) else [node]:
            if isinstance(part, ast.Import):
                found |= {alias.name.split(".")[0] for alias in part.names}
            elif isinstance(part, ast.ImportFrom):
                found.add((part.module or "").split(".")[0])
    return found


def slow_commands(graph: dict[str, set[str]], loaded: dict[str, set[str]]) -> Iterator[str]:
    """How each command of `WITHOUT_MODEL` comes to load a slow library."""
    for command in WITHOUT_MODEL:
        trails = [[f"llmcls.{command}"]]
        seen = {f"llmcls.{command}"}
        for trail in trails:
            for library in sorted(loaded[trail[-1]] & SLOW_LIBRARIES):
                yield f"{command} loads {library}: {' -> '.join(trail)}"
            following = sorted(graph[trail[-1]] - seen)
            seen |= set(following)
            trails += [[*trail, other] for other in following]


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import themselves over others."""
    found, done = [], set()

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append(" -> ".join([*trail[trail.index(module) :], module]))
        elif module not in done:
            for other in graph[module]:
                visit(other, [*trail, module])
            done.add(module)

    for module in graph:
        visit(module, [])
    return found


@dataclass(frozen=True)
class Facts:
    """What a file says: modules of llmcls that it imports, those inside functions, private names, and libraries."""

    lines: int
    imports: frozenset[str]
    late: tuple[tuple[str, str], ...]
    private: tuple[tuple[int, str], ...]
    libraries: frozenset[str]


@cache
def facts(text: str, known: frozenset[str]) -> Facts:
    """`Facts` of a file. Copies of the package differ in one file, so most are read once."""
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return Facts(
        text.count("\n"),
        frozenset(other for node in ast.walk(tree) for other in imported(node, known)),
        tuple((f.name, name) for f in functions for node in ast.walk(f) for name in imported(node, known)),
        tuple(private_names_of_others(tree)),
        frozenset(libraries(tree)),
    )


def violations(package: Path) -> list[str]:
    """Every breach of a rule, as a sentence."""
    found, known = [], modules(package)
    read = {name: facts(path.read_text(encoding="utf-8"), frozenset(known)) for name, path in known.items()}
    graph = {module: read[module].imports - {module} for module in known}
    for module, path in known.items():
        where, has = path.relative_to(package).as_posix(), read[module]
        if has.lines > LONGEST:
            found.append(f"{where} has {has.lines} lines; the limit is {LONGEST}")
        for other in sorted(graph[module]):
            if other not in known:
                found.append(f"{where} imports {other}, which does not exist")
            elif layer(module) == layer(other) == COMMANDS:
                found.append(f"{where} imports the command {other}")
            elif layer(other) >= layer(module) and module.split(".")[1:2] != other.split(".")[1:2]:
                found.append(f"{where} imports {other}, which is not in a lower layer")
        found += [f"{where} imports {name} inside the function {function}" for function, name in has.late]
        if where not in PRIVATE_NAMES:
            found += [f"{where}, line {line}: private name {name} of another library" for line, name in has.private]
        elif not has.private:
            found.append(f"{where} is listed for private names but uses none")
    inner = {module: {other for other in others if other in graph} for module, others in graph.items()}
    slow = slow_commands(inner, {module: set(has.libraries) for module, has in read.items()})
    return [*found, *(f"circle: {circle}" for circle in circles(inner)), *slow]


def test_the_package_keeps_the_rules() -> None:
    assert violations(ROOT / "llmcls") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "file, line, sentence",
    [
        ("data/labels.py", "from llmcls.model.losses import focal", "is not in a lower layer"),
        ("training/inputs.py", "from llmcls.datasets.products import TOPICS", "is not in a lower layer"),
        ("check.py", "from llmcls.train import train_seeds", "imports the command llmcls.train"),
        ("data/labels.py", "def late():\n    from llmcls.common.logit import logit", "inside the function late"),
        (
            "data/labels.py",
            "async def later():\n    from llmcls.common.logit import logit",
            "inside the function later",
        ),
        ("data/labels.py", "import torch\ntorch._C", "private name _C of another library"),
        ("data/labels.py", "from torch import _dynamo", "private name _dynamo of another library"),
        ("data/labels.py", "getattr(np, '_core')", "private name _core of another library"),
        ("data/tables.py", "\n" * LONGEST, f"the limit is {LONGEST}"),
        ("recipe/schema.py", "from llmcls.recipe.load import load_recipe", "circle: llmcls.recipe"),
        ("data/labels.py", "from llmcls.nowhere import anything", "which does not exist"),
        ("runs.py", "try:\n    import torch\nexcept ModuleNotFoundError:\n    pass", "runs loads torch: llmcls.runs"),
        ("results/finished_runs.py", "from llmcls.evaluation.scoring import Scorer", "report loads accelerate: "),
    ],
)
def test_a_breach_is_found(tmp_path: Path, file: str, line: str, sentence: str) -> None:
    package = tmp_path / "llmcls"
    shutil.copytree(ROOT / "llmcls", package, ignore=shutil.ignore_patterns("__pycache__"))
    with (package / file).open("a", encoding="utf-8") as out:
        out.write(f"\n{line}\n")
    assert [found for found in violations(package) if sentence in found]


def test_every_module_has_its_test() -> None:
    modules_ = [path.relative_to(ROOT / "llmcls") for path in (ROOT / "llmcls").rglob("*.py")]
    missing = [
        module.as_posix()
        for module in modules_
        if module.name not in ("__init__.py", "__main__.py")
        and not (ROOT / "tests" / module.parent / f"test_{module.name}").is_file()
    ]
    assert missing == []
