"""What this machine has, what a model needs, and which profile follows from the two. Standard library."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from llmcls.memory import model_billions


@dataclass
class Hardware:
    """GPUs of one machine by memory in GiB, and the number of machines."""

    gpus: list[float] = field(default_factory=list)
    machines: int = 1


@dataclass
class Needs:
    """billions: parameters of the model, None when unknown. four_bit: stored in 4 bits. trains_all: no adapter."""

    billions: float | None
    four_bit: bool
    trains_all: bool

    @property
    def gib(self) -> float:
        """Rough memory in GiB for one whole copy in training.

        Weights: 0.6 bytes a parameter in 4-bit, 2 in bf16, or 16 when all are trained (weight, gradient and two
        moments in float32); a quarter more and 2 GiB for activations and the adapter.
        """
        per_parameter = 16.0 if self.trains_all else 0.6 if self.four_bit else 2.0
        return (self.billions or 1.0) * per_parameter * 1.25 / 1.0737 + 2.0


def look() -> Hardware:
    """NVIDIA GPUs by nvidia-smi; none where it is missing or fails."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return Hardware()
    query = [command, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True)
    if done.returncode:
        return Hardware()
    return Hardware([float(line) / 1024 for line in done.stdout.split("\n") if line.strip()])


def described(path: str) -> Hardware:
    """Hardware from a JSON file: {"gpus": [{"memory_gib": 80}, ...], "machines": 2}."""
    raw = json.loads(Path(path).read_text(encoding="utf-8"))
    return Hardware([float(gpu["memory_gib"]) for gpu in raw.get("gpus", [])], int(raw.get("machines", 1)))


def choose_profile(hardware: Hardware, needs: Needs) -> tuple[str, str]:
    """The profile's name and the reason, in words.

    Sharding costs communication at every layer, so it is chosen only where a whole copy does not fit on a GPU.
    """
    if not hardware.gpus:
        return "cpu", "no NVIDIA GPU was found"
    size = "an unknown size" if needs.billions is None else f"about {needs.billions:g} billion parameters"
    room = min(hardware.gpus)
    fits = needs.gib <= room
    verdict = f"{size} need about {needs.gib:.0f} GiB a copy, a GPU has {room:.0f}"
    if len(hardware.gpus) == 1 and hardware.machines == 1:
        if not fits:
            verdict += "; it may not fit: a smaller model, model.use_4bit=true or a smaller data.max_length help"
        return "laptop_4bit", f"one GPU; {verdict}"
    if fits:
        return "ddp", f"several GPUs, each holds a copy; {verdict}"
    if needs.four_bit:
        return "fsdp_qlora", f"a copy does not fit on one GPU, so the 4-bit weights are sharded; {verdict}"
    return "fsdp", f"a copy does not fit on one GPU, so the weights are sharded; {verdict}"


def read_needs(recipe: Path, overrides: list[str], size: str | None) -> Needs:
    """Model size and storage from a recipe, read as plain ``key: value`` lines.

    This runs before anything is installed, so without a YAML library; the trainer reads the recipe strictly.
    """
    text = recipe.read_text(encoding="utf-8") + "\n" + "\n".join(_as_line(o) for o in overrides)

    def value(key: str, default: str) -> str:
        found = re.findall(rf"(?:^|[\s{{,.]){key}\s*:\s*([^,}}#\n]+)", text)
        return found[-1].strip().strip("'\"") if found else default

    four_bit = value("use_4bit", "false").lower() == "true"
    return Needs(model_billions(size or value("model_name", "")), four_bit, value("lora_r", "8") == "0")


def _as_line(override: str) -> str:
    key, _, value = override.partition("=")
    return f" {key.rpartition('.')[2]}: {value}"
