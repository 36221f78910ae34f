# Builds, tests and installs mod_slotmem_shm outside an httpd source tree;
# inside one, config.m4 and Makefile.in do.
#
#   make            build it with $(APXS)
#   make install    install it with apxs; it is not activated
#   make demo       the main job on live traffic, told as it runs
#   make check      every test
#   make help       the rest
#
# `demo` and `check` install what they need first, as root, and say so.

APXS       ?= apxs
CC         ?= cc
CLANG      ?= clang
CLANG_TIDY ?= clang-tidy
PYTHON     ?= /usr/bin/python3
# Tests wait more than they work.
JOBS       ?= 6
PYTEST      = $(PYTHON) -B -m pytest -p no:cacheprovider -q
PYTEST_ARGS ?=

MODULE      = .libs/mod_slotmem_shm.so
SOURCES     = mod_slotmem_shm.c $(wildcard include/*.h)
WARNINGS    = -Wall -Wextra -Wshadow -Wconversion
# What apxs would pass, for compilers that are called without it.
APR_CONFIG  = $$($(APXS) -q APR_CONFIG)
APU_CONFIG  = $$($(APXS) -q APU_CONFIG)
FLAGS       = -Iinclude -I$$($(APXS) -q INCLUDEDIR) \
              $$($(APR_CONFIG) --cppflags --includes) \
              $$($(APU_CONFIG) --includes)

export APXS PYTHON

all: $(MODULE) slotmem-file

$(MODULE): $(SOURCES)
	$(APXS) -c -Iinclude -Wc,-std=gnu11 mod_slotmem_shm.c

# Tells what a stored file holds; not installed.  An httpd that was built from
# source may have APR where the loader does not look by itself.
slotmem-file: slotmem-file.c include/slotmem_image.h include/mod_slotmem_shm.h
	$(CC) -std=gnu11 -O2 $(WARNINGS) $(FLAGS) -o $@ slotmem-file.c \
	    $$({ $(APU_CONFIG) --link-ld; $(APR_CONFIG) --link-ld; } | \
	        sed 's/-L\([^ ]*\)/& -Wl,-rpath,\1/g')

install: $(MODULE)
	$(APXS) -i -n slotmem_shm mod_slotmem_shm.la

help:
	@sed -n 's/^#   //p' Makefile
	@echo 'make lint       warnings and analyzers of gcc and clang, clang-tidy, cppcheck, clang-format'
	@echo 'make slotmem-file   the program that tells what a stored file holds (README)'
	@echo 'make unit       table, locks and layout outside httpd, sanitizers, valgrind'
	@echo 'make model      the spin models, and their mutations'
	@echo 'make relacy     the core headers under Relacy (RELACY_SCHEDULES)'
	@echo 'make weak       each memory order of the core weakened, each to be caught'
	@echo 'make fuzz       libFuzzer over restore, headers and what is carried over (FUZZ_SECONDS)'
	@echo 'make test       the tests in a live httpd alone (PYTEST_ARGS)'
	@echo 'make test-under-load    two runs of test side by side, busy loops beside them (LOAD_ROUNDS)'
	@echo 'make coverage   lines and branches that the tests run, by section'
	@echo 'make mutants    faults put into the module, each to be caught (MUTANTS, MUTANT_JOBS)'
	@echo 'make soak       processes that are killed, as long as one wants (SOAK_SECONDS)'
	@echo 'make hostile    children that overwrite everything (HOSTILE_SECONDS)'
	@echo 'make members    random edits of a balancer, restarts and kills (SEEDS, FIRST)'
	@echo 'make torture    balancer under ab: restarts and kills, lost of how many'
	@echo 'make bench      ours and stock side by side; bench-plot, bench-scale'
	@echo 'make callgrind  instructions of the hot calls against the kept table'
	@echo 'make screenshot the status page for the README'
	@echo 'make check-intree   build and test inside an httpd source tree'
	@echo 'make portability    compilers, standards, word sizes, other APR builds'
	@echo 'make platforms  the tests on other systems and processors (SYSTEMS)'
	@echo 'make deb        a Debian package in build/deb'
	@echo 'make check-deb  install, upgrade, remove, purge it in a root of its own'
	@echo "make manual     the page for httpd's manual against httpd's DTD"
	@echo 'make rpm        an RPM for Fedora and RHEL in build/rpm'
	@echo 'make format     clang-format the C sources'
	@echo 'make clean'

# -- what a bare machine lacks --

deps-%:
	@sh test/install-deps.sh $*

# -- the two commands --

demo: deps-demo
	@$(MAKE) --no-print-directory all
	@bash test/demo/demo.sh

check: deps-check
	@$(MAKE) --no-print-directory all
	$(MAKE) --no-print-directory -j2 -Otarget lint unit model relacy fuzz
	$(MAKE) --no-print-directory test

# -- the parts of check --

C_SOURCES = $$(find mod_slotmem_shm.c slotmem-file.c include test -name '*.[ch]')

# Each compiles alone.
HEADERS = $(notdir $(wildcard include/*.h))

lint: lint-forms $(addprefix analyse-,gcc clang-tidy program)

lint-forms: $(MODULE)
	$(PYTHON) -B test/portability/symbols.py $(MODULE)
	$(CC) -std=gnu11 -O2 $(WARNINGS) -Werror $(FLAGS) -fsyntax-only mod_slotmem_shm.c
	$(CLANG) -std=gnu11 -O2 $(WARNINGS) -Werror $(FLAGS) -fsyntax-only mod_slotmem_shm.c
	cppcheck --quiet --std=c11 --enable=warning,performance,portability \
	    --inline-suppr --error-exitcode=1 --suppress=missingIncludeSystem \
	    -D__linux__ -D__x86_64__ -D__GNUC__=12 '-DAPLOGNO(n)=' \
	    '-DAPR_PID_T_FMT="d"' '-DAPR_SIZE_T_FMT="lu"' \
	    '-DAPR_UINT64_T_FMT="lu"' '-DAPR_TIME_T_FMT="ld"' -DATOMIC_LLONG_LOCK_FREE=2 \
	    -DAPR_HAS_FORK=1 -DAPR_HAS_SHARED_MEMORY=1 -DAPR_HAS_THREADS=1 \
	    -Iinclude mod_slotmem_shm.c
	for header in $(HEADERS); do for cc in $(CC) $(CLANG); do for std in c11 c17; do \
	    echo "#include \"$$header\"" | $$cc -std=$$std -O1 $(WARNINGS) -Werror \
	        -D_DEFAULT_SOURCE $(FLAGS) -fsyntax-only -x c - || exit 1; \
	done; done; done
	clang-format --dry-run -Werror $(C_SOURCES)
	sh test/manual/check.sh --if-it-can-be-had
	for script in .ci/run $$(find test packaging -name '*.sh'); do bash -n $$script || exit 1; done

# Half a minute each on a core.
analyse-gcc:
	$(CC) -std=gnu11 -O2 -fanalyzer -Werror $(FLAGS) -S -o /dev/null mod_slotmem_shm.c
analyse-clang-tidy:
	$(CLANG_TIDY) --quiet mod_slotmem_shm.c -- -x c -std=gnu11 $(FLAGS)
analyse-program:
	$(CC) -std=gnu11 -O2 -fanalyzer -Werror $(FLAGS) -S -o /dev/null slotmem-file.c
	$(CLANG_TIDY) --quiet slotmem-file.c -- -x c -std=gnu11 $(FLAGS)

unit:
	bash test/unit/run.sh

unit-platform:
	bash test/unit/run-platform.sh

model:
	$(PYTHON) -B test/model/drift.py
	bash test/model/run.sh

# The core headers themselves under every order that C11 allows.
RELACY_SCHEDULES ?= 10000
RELACY = build/relacy/core
$(RELACY): $(wildcard test/relacy/*.h) test/relacy/core.cc $(wildcard include/*.h)
	mkdir -p build/relacy
	$(CXX) -std=gnu++17 -O1 -w -Iinclude -Itest/relacy -o $@ test/relacy/core.cc

relacy: $(RELACY)
	$(RELACY) -n $(RELACY_SCHEDULES)

WEAK ?=
weak:
	$(PYTHON) -B test/relacy/weak.py $(WEAK)

fuzz:
	for name in restore header carry; do bash test/fuzz/run.sh $$name || exit 1; done

test: $(MODULE)
	$(PYTEST) -n $(JOBS) --dist loadfile test $(PYTEST_ARGS)

# -- longer runs --

test-under-load: $(MODULE)
	$(PYTHON) -B test/under_load.py

mutants:
	$(PYTHON) -B test/mutants/run.py

coverage: $(MODULE)
	JOBS=$(JOBS) $(PYTHON) -B test/coverage/coverage.py

soak: $(MODULE)
	$(PYTHON) -B test/soak.py

hostile: $(MODULE)
	$(PYTHON) -B test/hostile.py

SEEDS ?= 1000
FIRST ?= 0
members: $(MODULE)
	MEMBERS_SEEDS=$(SEEDS) MEMBERS_FIRST=$(FIRST) \
	    $(PYTHON) -B test/members_random.py
	MEMBERS_SEEDS=$(SEEDS) MEMBERS_FIRST=$(FIRST) \
	    $(PYTHON) -B test/members_random.py --stock

torture: $(MODULE)
	$(PYTHON) -B test/torture.py

bench: deps-bench $(MODULE)
	$(PYTHON) -B test/bench/bench.py

bench-plot: deps-bench $(MODULE)
	$(PYTHON) -B test/bench/bench.py --only race --plot build/bench/processes.svg

bench-scale: deps-bench $(MODULE)
	$(PYTHON) -B test/bench/scale.py

callgrind: deps-bench $(MODULE)
	$(PYTHON) -B test/bench/callgrind.py --check

screenshot: deps-screenshot $(MODULE)
	$(PYTHON) -B test/screenshot/screenshot.py

check-intree:
	bash test/intree/run.sh

portability:
	bash test/portability/run.sh

platforms:
	$(PYTHON) -B test/platforms/run.py $(SYSTEMS)

manual: deps-manual
	sh test/manual/check.sh

deb: deps-deb
	@sh packaging/make-deb.sh build/deb

check-deb: deps-check-deb
	bash test/packaging/run.sh

rpm: deps-rpm
	@bash packaging/make-rpm.sh build/rpm

format:
	clang-format -i $(C_SOURCES)

clean:
	rm -rf .libs build slotmem-file mod_slotmem_shm.la mod_slotmem_shm.lo \
	    mod_slotmem_shm.slo mod_slotmem_shm.o

.PHONY: relacy weak
.PHONY: all install help demo check lint lint-forms analyse-gcc analyse-clang-tidy analyse-program unit unit-platform model fuzz test test-under-load \
        coverage mutants soak hostile members torture bench bench-plot \
        bench-scale callgrind screenshot check-intree portability platforms \
        manual deb check-deb rpm format clean
