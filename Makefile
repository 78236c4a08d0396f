# `make demo` and `make test` do all the set-up that they need, in .venv.
PYTHON ?= python3
BIN := .venv/bin
# Two runs at once set up one after the other, where flock is there to see to it.
LOCK := $(shell command -v flock > /dev/null && echo flock .venv.lock)

.PHONY: demo app test docs parity bench check clean

demo: .venv/demo.stamp
	$(BIN)/jax-excite demo --out out

app: .venv/app.stamp
	$(BIN)/jax-excite app

test: .venv/test.stamp .venv/browser.stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 15

docs: .venv/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

parity: .venv/test.stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow or not slow" tests/parity

bench: .venv/test.stamp
	$(BIN)/python -m benchmarks

check: .venv/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf .venv .venv.lock out site

.venv/demo.stamp .venv/app.stamp .venv/docs.stamp: .venv/%.stamp: pyproject.toml
	$(LOCK) sh -ec '$(PYTHON) -m venv .venv; $(BIN)/pip install --quiet --editable ".[$*]"; touch $@'

# torchvision wants a PyTorch with CUDA libraries on some systems; its Python code does without.
# Quantus wants OpenCV with its windows, and old versions of much else; it does with the headless one.
# zennit asks for torchvision. Of rapidocr-onnxruntime only the ONNX files are used, and of timm one
# network.
.venv/test.stamp: pyproject.toml
	$(LOCK) sh -ec '$(PYTHON) -m venv .venv; $(BIN)/pip install --quiet --editable ".[test]"; \
		$(BIN)/pip install --quiet --no-deps torchvision==0.28.0 quantus==0.6.0 \
			timm==1.0.31 zennit==0.5.1 rapidocr-onnxruntime==1.4.4; touch $@'

# The tests of the page use Chromium. It is installed where that is possible (Debian, as root);
# where there is none, the tests are skipped by name.
.venv/browser.stamp: .venv/test.stamp
	@command -v chromium > /dev/null || command -v google-chrome > /dev/null || \
		{ [ "$$(id -u)" = 0 ] && apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -qq -y --no-install-recommends chromium; } > /dev/null 2>&1 || \
		echo "There is no Chromium: the tests of the page will be skipped."
	@touch $@
