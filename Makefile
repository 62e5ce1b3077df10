# A thin wrapper around launch/run.py, which Windows users call with launch\run.cmd.
PYTHON ?= python3

.PHONY: setup demo fast test docs bench

setup demo fast test docs:
	$(PYTHON) launch/run.py $@

bench: setup
	.venv/bin/python bench/train_speed.py
	.venv/bin/python bench/predict_speed.py
	.venv/bin/python bench/scale.py
	.venv/bin/python bench/gpu.py
	.venv/bin/python bench/trace.py
	@if [ -n "$$REUTERS_DIR" ]; then .venv/bin/python bench/quality.py; else echo 'bench/quality.py needs REUTERS_DIR'; fi
