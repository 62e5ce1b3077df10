"""The competitor of bench/serve.py: FastAPI around a pipeline of transformers, one request at a time.

    python bench/plain_server.py EXPORTED_FOLDER PORT

It answers `POST /classify {"texts": ["..."]}` as `llmcls serve` does, without thresholds and calibration.
"""

from __future__ import annotations

import argparse
import threading
from typing import Any


def main() -> None:
    """Serve until a signal stops the process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("port", type=int)
    a = parser.parse_args()
    import torch
    import uvicorn
    from fastapi import FastAPI
    from transformers import pipeline

    device = 0 if torch.cuda.is_available() else -1
    classify = pipeline("text-classification", model=a.folder, top_k=None, device=device)
    app, lock = FastAPI(), threading.Lock()

    @app.post("/classify")
    def answer(question: dict[str, Any]) -> dict[str, Any]:
        # One request at a time: neither tokenizers nor models may be used by two threads at once.
        with lock:
            found = classify(question["texts"], truncation=True)
        return {"results": [{"probabilities": {x["label"]: x["score"] for x in row}} for row in found]}

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ready"}

    uvicorn.run(app, port=a.port, log_level="error")


if __name__ == "__main__":
    main()
