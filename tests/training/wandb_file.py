"""What an offline run of wandb wrote, read from its file as `wandb sync` reads it."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32768


@dataclass
class OfflineRun:
    """The content of one ``run-ID.wandb``."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: list[Any] = field(default_factory=list)
    artifacts: list[Any] = field(default_factory=list)

    def series(self, name: str) -> list[tuple[int, Any]]:
        """Step and value of a name."""
        return [(row["step"], row[name]) for row in self.history if name in row]


def read_offline_run(path: Path) -> OfflineRun:
    """Read a file of records in the log format of LevelDB, with a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2 as pb

    found = OfflineRun()
    for data in _records(path.read_bytes()):
        record = pb.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            found.config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            found.history.append(_values(record.history.item))
        elif kind == "summary":
            found.summary |= _values(record.summary.update)
        elif kind == "metric":
            found.metrics.append(record.metric)
        elif kind == "artifact":
            found.artifacts.append(record.artifact)
        elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            found.artifacts.append(record.request.log_artifact.artifact)
    return found


def _values(items: Any) -> dict[str, Any]:
    """Values by name; those of a table or a picture are a dictionary."""
    found: dict[str, Any] = {}
    for item in items:
        name, *inner = item.nested_key or [item.key]
        value = json.loads(item.value_json)
        if inner:
            found.setdefault(name, {})[inner[0]] = value
        else:
            found[name] = value
    return found


def _records(data: bytes) -> list[bytes]:
    found, parts, at = [], b"", 7
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        # 1: whole, 2: first, 3: middle, 4: last part.
        if kind in (1, 4):
            found.append(parts)
            parts = b""
    return found
