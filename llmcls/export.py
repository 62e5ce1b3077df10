"""Export a run for other programs: ``python -m llmcls.export --run outputs/.../run_0 --out exported``.

Writes one folder that `transformers` loads: the adapter merged into the model, tokenizer, label names, thresholds and
calibration, and the script `classify.py`. With ``--onnx``, a graph for ONNX Runtime takes the place of the weights. The
folder is compared with the stored predictions of the run first.
"""

from __future__ import annotations

from pathlib import Path

from llmcls.common.command import begin_imports, command_parser, run_command

if __name__ == "__main__":
    # The imports below take seconds.
    begin_imports()

from llmcls.common.logs import configure_logging
from llmcls.model.pretrained import DTYPES
from llmcls.results.finished_runs import open_run
from llmcls.results.run_folder import RunFolder
from llmcls.serving.export import ExportOptions, export_run


def main(argv: list[str] | None = None) -> None:
    """Export a run, and print what the comparison with its predictions found."""
    parser = command_parser("export", "Export a run as a folder that transformers loads.")
    parser.add_argument("--run", required=True, help="a run folder, outputs/.../run_0")
    parser.add_argument("--out", required=True, help="the folder to write; it must not exist")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="precision of the weights")
    parser.add_argument(
        "--remote-code", action="store_true", help="write a modelling file for mean or attention pooling"
    )
    parser.add_argument(
        "--full-precision-base", action="store_true", help="merge a 4-bit run into the weights before quantization"
    )
    parser.add_argument("--onnx", action="store_true", help="write a graph for ONNX Runtime instead of weights")
    parser.add_argument("--int8", action="store_true", help="with --onnx: round its matrices to 8 bits")
    parser.add_argument("--tolerance", type=float, help="largest difference of a probability that is accepted")
    parser.add_argument("--base-model", help="where the pretrained model is now, if it moved since training")
    arguments = parser.parse_args(argv)
    configure_logging(main_process=True)
    run = open_run(RunFolder(Path(arguments.run)), arguments.base_model)
    options = ExportOptions(
        arguments.dtype, arguments.remote_code, arguments.full_precision_base, arguments.tolerance, arguments.onnx,
        arguments.int8,
    )  # fmt: skip
    proof = export_run(run, Path(arguments.out), options)
    print(f"{arguments.out}: {proof}")


if __name__ == "__main__":
    run_command(main)
