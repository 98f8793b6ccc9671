# make demo   boot a stock Linux guest on the virtual GPU, and save its screen as vgpud-demo.png
# make test   install what the tests need, and run them all: linters, types, tests, real guests
# make lint   the linters and the type checker alone
# make venv   the virtual environment with everything for development
# make clean  remove what these made here (downloads stay in the cache folder)
#
# Each does the set-up that it needs, once. Root or sudo is used where a system package is missing, never otherwise.

VENV := .venv
BIN := $(VENV)/bin
OUTPUT := vgpud-demo.png
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DELETE_ON_ERROR:
.PHONY: demo test lint venv clean system-packages libvfio-user

demo: $(VENV)/installed
	$(BIN)/python -m server demo --output $(OUTPUT)

test: lint system-packages libvfio-user
	$(BIN)/python -m pytest

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

venv: $(VENV)/installed-for-development

$(VENV)/created:
	scripts/make-venv.sh $(VENV)
	touch $@

$(VENV)/installed: pyproject.toml | $(VENV)/created
	@echo "installing vgpud into $(VENV)"
	$(PIP_INSTALL) --editable .
	touch $@

$(VENV)/installed-for-development: pyproject.toml | $(VENV)/created
	@echo "installing vgpud and its development tools into $(VENV)"
	$(PIP_INSTALL) --editable .[dev]
	touch $@ $(VENV)/installed

system-packages:
	@scripts/install-missing.sh pkg-config
	@scripts/install-missing.sh gcc /usr/include/stdio.h=libc6-dev meson ninja=ninja-build \
		json-c.pc=libjson-c-dev xz=xz-utils edid-decode \
		buildah mmdebstrap setpriv=util-linux unshare=util-linux tshark systemd-analyze=systemd \
		virt-xml-validate=libvirt-clients xmllint=libxml2-utils

libvfio-user: venv system-packages
	@PYTHON=$(BIN)/python scripts/build-libvfio-user.sh

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -f vgpud-demo*.png
	find . -name __pycache__ -prune -exec rm -rf {} +
