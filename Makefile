# Thin: the work is in launch/run.py, which Windows users call through launch\run.cmd.
PYTHON ?= python3

.PHONY: setup demo test bench

setup demo test:
	$(PYTHON) launch/run.py $@

bench: setup
	.venv/bin/python bench/train_speed.py
	.venv/bin/python bench/predict_speed.py
	.venv/bin/python bench/scale.py
	.venv/bin/python bench/gpu.py
	@if [ -n "$$REUTERS_DIR" ]; then .venv/bin/python bench/quality.py; else echo 'bench/quality.py needs REUTERS_DIR'; fi
