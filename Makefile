# make run, make test, make test-gpu, make docs: each does its own set-up. PYTHON picks the interpreter of the virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test test-slow test-gpu docs clean

run: $(VENV)/installed
	$(BIN)/kdbench run --method gkd --pair dinov2-l:resnet50

# Test processes share the processors: one thread each, which sleeps while it waits.
test test-slow: export OMP_NUM_THREADS = 1
test test-slow: export OMP_WAIT_POLICY = PASSIVE

test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow" --benchmark-skip -n auto --dist worksteal

test-slow: $(VENV)/installed-test
	$(BIN)/python -m pytest -m slow

# Minutes on one card; without one, a rehearsal on the processor.
test-gpu: $(VENV)/installed-test
	KDBENCH_GPU_REPORT=$${KDBENCH_GPU_REPORT:-gpu-report.json} $(BIN)/python -m pytest tests/perf/test_gpu.py tests/perf/test_throughput.py -s

docs: $(VENV)/installed-test
	$(BIN)/python -m mkdocs build --strict --site-dir site

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) site
