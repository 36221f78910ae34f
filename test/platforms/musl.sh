#!/bin/bash
# Licensed to the Apache Software Foundation (ASF) under one or more
# contributor license agreements.  See the NOTICE file distributed with
# this work for additional information regarding copyright ownership.
# The ASF licenses this file to You under the Apache License, Version 2.0
# (the "License"); you may not use this file except in compliance with
# the License.  You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

# A whole httpd on musl, built once: httpd, APR, apr-util, PCRE2 and expat,
# each from the archive of Debian's source package as its authors published it.
#
#     musl.sh ARCHIVES DIR
#
# ARCHIVES: where NAME_VERSION.orig.tar.* of expat, pcre2, apr, apr-util,
# apache2 and cmocka are.  Afterwards DIR/bin/apxs is there.  JOBS: compilers at
# once.
#
# musl-gcc sees neither headers nor libraries of the GNU C library, and here
# none of the machine's other libraries is to be found, either.  What only
# httpd or the unit tests need is static.

set -eu
archives=$(cd "$1" && pwd)
mkdir -p "$2"
dir=$(cd "$2" && pwd)
source=$dir/source
jobs=${JOBS:-2}
export CC=musl-gcc CFLAGS="-O2 -g"
# Nothing of the machine's is found by pkg-config either.
export PKG_CONFIG=false
export LDFLAGS=-L$dir/lib

# What the tests load.
modules="alias auth_basic authn_core authz_core authz_host authz_user cgi cgid
         dir env headers heartbeat heartmonitor info lbmethod_bybusyness
         lbmethod_byrequests lbmethod_bytraffic lbmethod_heartbeat log_config
         mime proxy proxy_balancer proxy_hcheck proxy_http rewrite setenvif
         slotmem_plain slotmem_shm status unixd watchdog"

command -v musl-gcc > /dev/null || {
    echo "no musl-gcc (Debian: musl-tools)" >&2
    exit 1
}

unpack() {
    local archive
    archive=$(echo "$archives/$1"_*.orig.tar.*)
    echo "musl: $(basename "$archive")"
    rm -rf "${source:?}/$1"
    mkdir -p "$source/$1"
    tar -xf "$archive" -C "$source/$1" --strip-components=1
}

# configured PACKAGE options...: configures, makes and installs it.
configured() {
    local package=$1
    shift
    unpack "$package"
    (cd "$source/$package" && ./configure -q --prefix="$dir" "$@" &&
        make -s -j"$jobs" && make -s install)
}

# Three files, and no configure in its archive.
expat() {
    local lib=$source/expat/expat/lib name
    unpack expat
    cat > "$lib/expat_config.h" << 'CONFIG'
#include <endian.h>
#define BYTEORDER __BYTE_ORDER
#define HAVE_GETRANDOM 1
#define XML_CONTEXT_BYTES 1024
#define XML_DEV_URANDOM 1
#define XML_DTD 1
#define XML_NS 1
CONFIG
    mkdir -p "$dir/include" "$dir/lib"
    for name in xmlparse xmltok xmlrole; do
        (cd "$lib" && $CC $CFLAGS -fPIC -D_GNU_SOURCE -I. \
            -c "$name.c")
    done
    rm -f "$dir/lib/libexpat.a"
    ar rcs "$dir/lib/libexpat.a" "$lib"/*.o
    cp "$lib/expat.h" "$lib/expat_external.h" "$dir/include"
}

# Debian's musl has no crypt(); nothing here asks for a password, and POSIX has
# an answer for a system that does not do it.
no_crypt() {
    cat > "$source/crypt.c" << 'CRYPT'
#include <errno.h>
#include <unistd.h>

char *crypt(const char *key, const char *salt)
{
    (void)key;
    (void)salt;
    errno = ENOSYS;
    return NULL;
}
CRYPT
    $CC $CFLAGS -fPIC -D_GNU_SOURCE -c -o "$source/crypt.o" "$source/crypt.c"
    rm -f "$dir/lib/libcrypt.a"
    ar rcs "$dir/lib/libcrypt.a" "$source/crypt.o"
}

# For the unit tests.
cmocka() {
    local from=$source/cmocka
    unpack cmocka
    $CC $CFLAGS -w -D_GNU_SOURCE -DHAVE_INTTYPES_H -DHAVE_SIGNAL_H \
        -DHAVE_STRINGS_H -DHAVE_UNISTD_H -I"$from/include" -c \
        -o "$from/cmocka.o" "$from/src/cmocka.c"
    rm -f "$dir/lib/libcmocka.a"
    ar rcs "$dir/lib/libcmocka.a" "$from/cmocka.o"
    cp "$from"/include/cmocka*.h "$dir/include"
}

expat
no_crypt
configured pcre2 --disable-shared --enable-static --with-pic
configured apr
configured apr-util --with-apr="$dir" --with-expat="$dir" --without-iconv \
    --disable-util-dso --without-crypto --without-ldap --without-gdbm \
    --without-ndbm --without-berkeley-db --without-pgsql --without-mysql \
    --without-sqlite2 --without-sqlite3 --without-oracle --without-odbc
options=(--enable-mpms-shared="event worker prefork" --enable-modules=none)
for module in $modules; do
    options+=("--enable-${module//_/-}=shared")
done
configured apache2 --with-apr="$dir" --with-apr-util="$dir" \
    --with-pcre="$dir/bin/pcre2-config" "${options[@]}"
if readelf -d "$dir"/bin/httpd "$dir"/lib/*.so "$dir"/modules/*.so |
    grep NEEDED | grep -F -e libc.so.6 -e ld-linux; then
    echo "something is linked with the GNU C library" >&2
    exit 1
fi
"$dir/bin/httpd" -v
cmocka
rm -rf "$source"
