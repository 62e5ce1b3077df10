# A thin wrapper around launch/run.py, which Windows users call with launch\run.cmd.
PYTHON ?= python3

.PHONY: setup demo fast test long docs bench fuzz soak guides

setup demo fast test docs:
	$(PYTHON) launch/run.py $@

# Combinations that take long and that other tests cover in part.
long: setup
	.venv/bin/python -m pytest -m long

bench: setup
	.venv/bin/python bench/train_speed.py
	.venv/bin/python bench/predict_speed.py
	.venv/bin/python bench/serve.py
	.venv/bin/python bench/stream.py
	.venv/bin/python bench/scale.py
	.venv/bin/python bench/many_labels.py
	.venv/bin/python bench/gpu.py
	.venv/bin/python bench/trace.py
	.venv/bin/python bench/safety.py
	@if [ -n "$$REUTERS_DIR" ]; then .venv/bin/python bench/quality.py; else echo 'bench/quality.py needs REUTERS_DIR'; fi

# Mutated recipes and tables; ends with 1 if one of them is not accepted, or refused in a short sentence and soon.
CASES ?= 5000
fuzz:
	.venv/bin/python -m tests.faults.fuzz --cases $(CASES)

# Kills and signals at random moments of trainings and predictions; ends with 1 if a result differs or a process hangs.
MINUTES ?= 60
soak:
	.venv/bin/python -m tests.faults.soak --minutes $(MINUTES)

# The commands of the guides in the documentation, in order, with a tiny model; ends with 1 if one of them fails.
guides:
	.venv/bin/python -m tests.guides
