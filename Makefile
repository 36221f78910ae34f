# Builds, tests and installs mod_slotmem_shm outside an httpd source tree.
# Inside one, config.m4 and Makefile.in do.

APXS   ?= apxs
PYTHON ?= /usr/bin/python3

MODULE    = .libs/mod_slotmem_shm.so
SOURCES   = mod_slotmem_shm.c include/mod_slotmem_shm.h

all: $(MODULE)

$(MODULE): $(SOURCES)
	$(APXS) -c -Iinclude -Wc,-std=gnu11 mod_slotmem_shm.c

install: $(MODULE)
	$(APXS) -i -n slotmem_shm mod_slotmem_shm.la

clean:
	rm -rf .libs build mod_slotmem_shm.la mod_slotmem_shm.lo mod_slotmem_shm.slo mod_slotmem_shm.o

.PHONY: all install clean
