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

# What else the module is built with and runs on: compilers and standards,
# the branches for systems other than Linux, a 32-bit httpd, other builds of
# APR (its shared memory by POSIX, by a file, by System V), big pages, musl.
# Ends with a table of what was tried and what could not be.
#
#     test/portability/run.sh [compilers|musl|fallbacks|apr|word|pages] ...
#
# Everything stays under build/portability; nothing is installed, and dpkg's
# architectures are not touched.  It fetches Debian's source of APR and i386
# packages (to unpack), and needs no more than is there: what lacks a tool is
# "not tried", and says which.  PORTABILITY_TESTS has the tests to run in each
# httpd (words for pytest).

set -u
cd "$(dirname "$0")/../.." || exit 1
top=$PWD
work=$top/build/portability
python=${PYTHON:-/usr/bin/python3}
apxs=${APXS:-apxs}
jobs=${JOBS:-2}
tests=${PORTABILITY_TESTS:-test/test_contract.py}
warnings="-Wall -Wextra -Wshadow -Wconversion -Werror"
rows=()
as_nobody=()        # words that run a command as an unprivileged user
failed=no

row() {
    rows+=("$(printf '%-9s %-56s %s' "$1" "$2" "${3-}")")
    printf 'portability: %s\n' "${rows[-1]}"
    [ "$1" = FAILED ] && failed=yes
}

have() {
    command -v "$1" > /dev/null
}

# quietly LOG command...: what it said is shown when it fails.
quietly() {
    local log=$1
    shift
    ("$@") > "$log" 2>&1 && return 0
    tail -n 40 "$log"
    return 1
}

headers() {
    "$("$apxs" -q APR_CONFIG)" --cppflags --includes
    "$("$apxs" -q APU_CONFIG)" --includes
    printf -- '-I%s -Iinclude\n' "$("$apxs" -q INCLUDEDIR)"
}

# compile WHAT compiler and flags...: with every warning an error.
compile() {
    local what=$1
    shift
    # shellcheck disable=SC2086 # words
    if quietly "$work/compile.log" "$@" $warnings -fPIC -c \
        -o "$work/compile.o" mod_slotmem_shm.c; then
        row passed "$what"
    else
        row FAILED "$what"
    fi
}

# run_tests WHAT NAME words-for-pytest...: in the httpd that APXS names, with
# SLOTMEM_MODULE; NAME is the directory for what the tests build.
run_tests() {
    local what=$1 name=$2 parallel=
    shift 2
    "$python" -c 'import xdist' 2> /dev/null &&
        parallel="-n $jobs --dist loadfile"
    # shellcheck disable=SC2086 # words
    if SLOTMEM_TEST_BUILD=$work/$name/test "${as_nobody[@]}" "$python" -B -m pytest \
        -p no:cacheprovider -q -rs --tb=short --module ours $parallel "$@"; then
        row passed "$what"
    else
        row FAILED "$what"
    fi
}

# -- compilers and standards --

check_compilers() {
    local cc std level
    for cc in gcc clang; do
        if ! have "$cc"; then
            row 'not tried' "$cc" 'not installed'
            continue
        fi
        for std in gnu11 gnu17 c11 c17; do
            for level in -O0 -O2; do
                # shellcheck disable=SC2046 # words
                compile "$("$cc" -dumpversion | sed "s/^/$cc /") -std=$std $level" \
                    "$cc" "-std=$std" "$level" $(headers)
            done
        done
    done
    have clang || return
    if quietly "$work/clang.log" clang_module; then
        SLOTMEM_MODULE=$work/clang/mod_slotmem_shm.so \
            run_tests 'contract, module built by clang -O3' clang \
            --mpm event $tests
    else
        row FAILED 'module built by clang -O3'
    fi
}

clang_module() {
    mkdir -p "$work/clang"
    # shellcheck disable=SC2046
    clang -std=gnu11 -O3 -fPIC -shared $(headers) \
        -o "$work/clang/mod_slotmem_shm.so" mod_slotmem_shm.c
}

# -- musl: every function it calls must be there; a live httpd on it is one of
# the systems of test/platforms --

check_musl() {
    local missing libc
    if ! have musl-gcc; then
        row 'not tried' 'musl' 'no musl-gcc (Debian: musl-tools)'
        return
    fi
    # Not with the other C library's headers, where apu-config may point.
    # shellcheck disable=SC2046
    compile 'musl-gcc -std=gnu11 -O2' musl-gcc -std=gnu11 -O2 \
        $(headers | sed 's,-I/usr/include *$,,')
    [ "$failed" = no ] || return
    libc=$(readlink -f "/lib/ld-musl-$(uname -m).so.1")
    missing=$(comm -23 \
        <(nm -u "$work/compile.o" | awk '{ print $2 }' |
            grep -Ev '^(ap|apr|aplog|unixd)_|^_GLOBAL_OFFSET_TABLE_$|^__tls_get_addr$' | sort -u) \
        <(nm -D --defined-only "$libc" | awk 'NF == 3 { print $3 }' | sort -u))
    if [ -z "$missing" ]; then
        row passed 'musl has every C library function that is called'
    else
        row FAILED 'functions that musl lacks' "$(echo "$missing" | tr '\n' ' ')"
    fi
    musl_unit
}

# The unit tests, on an APR and a cmocka that musl-gcc has built; of apr-util
# only the three files that the module calls.
musl_unit() {
    local package archive name
    for package in apr apr-util cmocka; do
        archive=$(test/intree/source.sh "$package" build/source) || {
            row 'not tried' 'unit tests on musl' "no source of $package"
            return
        }
        rm -rf "$work/musl/$package"
        mkdir -p "$work/musl/$package"
        tar -xf "$archive" -C "$work/musl/$package" --strip-components=1
    done
    if ! quietly "$work/musl/build.log" musl_build; then
        row FAILED 'unit tests, built by musl-gcc'
        return
    fi
    for name in platform unit; do
        if quietly "$work/musl/$name.log" env UNIT_KILLS=40 "$work/musl/$name"
        then
            row passed "unit tests on musl: $name" \
                "$(sed -n 's/^\[  PASSED  \] //p' "$work/musl/$name.log")"
        else
            row FAILED "unit tests on musl: $name"
        fi
    done
}

musl_build() {
    local dir=$work/musl
    (cd "$dir/apr" &&
        CC=musl-gcc ./configure -q --disable-shared --enable-static &&
        make -s -j"$jobs") || return 1
    mkdir -p "$dir/include"
    printf '#define HAVE_ICONV_H 1\n#define ICONV_INBUF_TYPE char **\n' \
        > "$dir/include/apu_config.h"
    musl-gcc -w -O2 -I"$dir/include" -I"$dir/apr/include" \
        -I"$dir/apr-util/include" -I"$dir/apr-util/include/private" \
        -I"$dir/cmocka/include" -DHAVE_INTTYPES_H -DHAVE_SIGNAL_H \
        -DHAVE_STRINGS_H -DHAVE_UNISTD_H -D_GNU_SOURCE \
        -idirafter "$("$apxs" -q INCLUDEDIR)" \
        -idirafter "$(apr-1-config --includedir)" -c \
        "$dir/apr-util/crypto/apr_md5.c" "$dir/apr-util/xlate/xlate.c" \
        "$dir/apr-util/hooks/apr_hooks.c" "$dir/cmocka/src/cmocka.c" &&
        mv apr_md5.o xlate.o apr_hooks.o cmocka.o "$dir" || return 1
    musl_link platform test/unit/platform_tests.c &&
        musl_link unit test/unit/unit.c
}

# Debian's headers come last: its apr.h is for another C library.
musl_link() {
    local dir=$work/musl
    # shellcheck disable=SC2086 # words
    musl-gcc -std=gnu11 -O2 -g -Wall -Wextra -Werror -Wno-unused-function \
        -D_GNU_SOURCE -DLINUX -D_REENTRANT -I"$dir/cmocka/include" \
        -I"$dir/apr/include" -I"$dir/apr-util/include" -Iinclude -I. \
        -idirafter "$("$apxs" -q INCLUDEDIR)" \
        -idirafter "$(apr-1-config --includedir)" -o "$dir/$1" "$2" \
        "$dir"/*.o "$dir/apr/.libs/libapr-1.a" -pthread
}

# -- the branches for systems other than Linux --

check_fallbacks() {
    mkdir -p "$work/fallbacks"
    # shellcheck disable=SC2046,SC2086
    if quietly "$work/fallbacks.log" gcc -std=gnu11 -O2 -fPIC -shared \
        $warnings -U__linux__ -include test/portability/no_populate.h \
        $(headers) -o "$work/fallbacks/mod_slotmem_shm.so" mod_slotmem_shm.c
    then
        # Only Linux tells where POSIX objects are, so only there can the
        # parent find those that children made, and remove them.
        SLOTMEM_MAY_LEAK=1 \
            SLOTMEM_MODULE=$work/fallbacks/mod_slotmem_shm.so run_tests \
            'contract, without /proc and MADV_POPULATE_WRITE' fallbacks \
            --mpm event --mpm prefork $tests \
            -k 'not restart_removes_what_children_made'
    else
        row FAILED 'compile without __linux__ and MADV_POPULATE_WRITE'
    fi
    row 'not tried' 'FreeBSD, Solaris, macOS, AIX' \
        'no such machine here; only the branches they take'
}

# -- APR with other kinds of shared memory --

# Debian's httpd runs with any build of the same APR.  A `file` is what
# configure chooses where there is no shm_open().  System V's it chooses where
# there is no mmap() either, but that would take apr_mmap_*() away, too; so
# only the choice is changed, as configure itself does on AIX.
check_apr() {
    local archive
    archive=$(test/intree/source.sh apr build/source) || {
        row 'not tried' 'other builds of APR' 'no source could be had'
        return
    }
    rm -rf "$work/apr"
    mkdir -p "$work/apr/source"
    tar -xf "$archive" -C "$work/apr/source" --strip-components=1
    apr_variant posix
    apr_variant file
    apr_variant sysv
}

# apr_variant KIND: a build of APR, and the tests on it.
apr_variant() {
    local kind=$1 what
    if ! quietly "$work/apr/$kind.log" apr_build "$kind"; then
        row FAILED "APR built for $kind"
        return
    fi
    what="contract, APR with $(sed -n \
        's/^#define APR_USE_SHMEM_\([A-Z_]*\) *1$/\1/p' \
        "$work/apr/$kind/include/apr.h" | tr '\n' ' ')"
    if [ "$kind" = posix ]; then
        apr_tests "$kind" "$what"
    else
        system_v_segments > "$work/apr/before"
        apr_tests "$kind" "$what, segments made by the parent" -k "$BY_PARENT"
        system_v_segments > "$work/apr/after"
        cmp -s "$work/apr/before" "$work/apr/after" ||
            row FAILED "$what: System V segments left"
        apr_tests_unprivileged "$kind" "$what, all of one user"
    fi
}

# A file, or System V's key, is what a child that is not root can neither read
# nor make in root's runtime directory.  So, with httpd run as root, what the
# parent makes; and all of it with an httpd that is nobody's.  Left out is
# what looks for objects in /dev/shm, where here there are none.
BY_PARENT="restart_keeps or stored_file_byte or old_generation or clearinuse
    or parent_may_use or moving_between or attach_in_child_init
    or attached_and_inherited or memory_without_attaching or of_the_parent"
BY_PARENT=$(echo $BY_PARENT)
SEES_OBJECTS="removes_what_children_made or keyed_by or generation_in_the_key
    or unusual_names or old_generations_objects or clean_stop_leaves
    or objects_are_for_their_owner"
SEES_OBJECTS=$(echo $SEES_OBJECTS)

# apr_tests KIND WHAT words-for-pytest...
apr_tests() {
    local kind=$1 what=$2
    shift 2
    # shellcheck disable=SC2086 # words
    SLOTMEM_MODULE=$top/.libs/mod_slotmem_shm.so \
        LD_LIBRARY_PATH=$work/apr/$kind/.libs \
        run_tests "$what" "apr-$kind" --mpm event $tests "$@"
}

apr_tests_unprivileged() {
    local kind=$1 what=$2 id
    if [ "$(id -u)" = 0 ]; then
        mkdir -p "$work/apr-nobody"
        chown nobody "$work/apr-nobody"
        as_nobody=(setpriv --reuid=nobody --regid=nogroup --clear-groups)
        if ! "${as_nobody[@]}" test -w "$work/apr-nobody"; then
            row 'not tried' "$what" "nobody may not reach $work"
            return
        fi
    fi
    system_v_segments > "$work/apr/before"
    # shellcheck disable=SC2086 # words
    SLOTMEM_MODULE=$top/.libs/mod_slotmem_shm.so \
        LD_LIBRARY_PATH=$work/apr/$kind/.libs \
        run_tests "$what" apr-nobody --mpm event $tests \
        -k "not ($SEES_OBJECTS)"
    as_nobody=()
    # What children made at run time stays, on systems where the parent
    # cannot list it.
    system_v_segments > "$work/apr/after"
    for id in $(comm -13 "$work/apr/before" "$work/apr/after"); do
        ipcrm -m "$id"
    done
}

apr_build() {
    local kind=$1 dir=$work/apr/$1
    mkdir -p "$dir" && cd "$dir" || return 1
    [ "$kind" = posix ] || cp ../posix/config.cache .
    [ "$kind" = file ] &&
        sed -i 's/^ac_cv_func_shm_open=.*/ac_cv_func_shm_open=no/' config.cache
    ../source/configure -C || return 1
    if [ "$kind" = sysv ]; then
        sed -i -e 's/\(APR_USE_SHMEM_MMAP_[A-Z]*\) .*/\1 0/' \
            -e 's/\(APR_USE_SHMEM_SHMGET[_A-Z]*\) .*/\1 1/' include/apr.h
    fi
    make -j"$jobs"
}

system_v_segments() {
    ipcs -m | awk '/^0x/ && $1 != "0x00000000" { print $2 }' | sort
}

# -- a 32-bit httpd --

# Debian's i386 packages, unpacked, not installed; gcc -m32 for the modules.
# Where the kernel runs no 32-bit programs, QEMU does, for prefork alone: it
# does not get through threads that fork (with the stock module neither), and
# answers "done" to any madvise(), so the module touches every page instead.
check_word() {
    local tool runner extra='' skip="$NEEDS_64_BITS"
    for tool in gcc dpkg-deb apt-get; do
        have "$tool" || { row 'not tried' 'a 32-bit httpd' "no $tool"; return; }
    done
    mkdir -p "$work/word"
    echo 'int main(void) { return 0; }' > "$work/word/try.c"
    if ! gcc -m32 -o "$work/word/try" "$work/word/try.c" 2> /dev/null; then
        row 'not tried' 'a 32-bit httpd' \
            'no 32-bit C library (Debian: gcc-multilib)'
        return
    fi
    if "$work/word/try" 2> /dev/null; then
        runner=
    elif have qemu-i386-static && qemu-i386-static "$work/word/try"; then
        runner=qemu-i386-static
        extra="-include $top/test/portability/no_populate.h"
    else
        row 'not tried' 'a 32-bit httpd' 'this kernel runs no 32-bit program, and there is no qemu-i386-static (Debian: qemu-user-static)'
        return
    fi
    if ! quietly "$work/word.log" word_unpack ||
        ! quietly "$work/word.log" word_wrap "$runner"; then
        row 'not tried' 'a 32-bit httpd' "no packages; see $work/word.log"
        return
    fi
    word_compile
    mkdir -p "$work/word/module"
    # shellcheck disable=SC2086 # words
    (cp mod_slotmem_shm.c "$work/word/module" &&
        cd "$work/word/module" &&
        quietly "$work/word.log" "$work/word/apxs" -c -Wc,-std=gnu11 $extra \
            "-I$top/include" mod_slotmem_shm.c) || {
        row FAILED '32-bit module'
        return
    }
    APXS=$work/word/apxs \
        SLOTMEM_MODULE=$work/word/module/.libs/mod_slotmem_shm.so \
        run_tests "contract and word size, 32-bit httpd ${runner:+by QEMU, }prefork" \
        word-test --mpm prefork $tests test/portability/test_word_size.py \
        -k "not ($skip)"
    run_tests 'word size, 64-bit httpd' word-test64 \
        test/portability/test_word_size.py
}

# Their figures do not fit 32 bits; test_word_size.py has the counterparts.
NEEDS_64_BITS='before_configuration or size_that_overflows
    or more_than_the_machine_has or stored_file_byte_for_byte'
NEEDS_64_BITS=$(echo $NEEDS_64_BITS)

word_apt() {
    local command=$1 apt=$work/word/apt
    shift
    "$command" -o Dir::Etc::SourceList=/dev/null \
        -o Dir::Etc::SourceParts="$apt/sources" \
        -o Dir::State::Lists="$apt/lists" -o Dir::State::status="$apt/status" \
        -o Dir::Cache="$apt/cache" -o APT::Sandbox::User=root \
        -o APT::Architecture=i386 -o APT::Architectures::=i386 "$@"
}

word_unpack() {
    local apt=$work/word/apt root=$work/word/root release package
    [ -x "$root/usr/sbin/apache2" ] && return
    mkdir -p "$apt/sources" "$apt/lists/partial" "$apt/cache/archives/partial"
    : > "$apt/status"
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    cat > "$apt/sources/i386.sources" <<END
Types: deb
URIs: ${DEBIAN_MIRROR:-http://deb.debian.org/debian}
Suites: $release $release-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
    word_apt apt-get -qq update || return 1
    word_apt apt-get -qq -y --no-install-recommends --download-only install \
        apache2-bin libapr1-dev libaprutil1-dev || return 1
    (cd "$apt/cache/archives" && word_apt apt-get -qq download apache2-dev) ||
        return 1
    rm -rf "$root"
    mkdir -p "$root"
    for package in "$apt"/cache/archives/*.deb; do
        dpkg-deb -x "$package" "$root" || return 1
    done
}

# An httpd and an apxs, as far as the tests need them, over what was unpacked.
word_wrap() {
    local root=$work/word/root
    mkdir -p "$work/word/bin"
    cat > "$work/word/bin/apache2" <<END
#!/bin/sh
exec $1 $root/lib/ld-linux.so.2 --library-path \\
    $root/lib/i386-linux-gnu:$root/usr/lib/i386-linux-gnu \\
    $root/usr/sbin/apache2 "\$@"
END
    cat > "$work/word/apxs" <<END
#!/bin/sh
if [ "\$1" = -q ]; then
    case \$2 in
        SBINDIR) echo $work/word/bin ;;
        PROGNAME) echo apache2 ;;
        LIBEXECDIR) echo $root/usr/lib/apache2/modules ;;
        *) exit 1 ;;
    esac
    exit
fi
shift
for word; do
    case \$word in
        *.c) name=\${word%.c} ;;
    esac
    set -- "\$@" "\${word#-Wc,}"
    shift
done
mkdir -p .libs
exec gcc -m32 -O2 -fPIC -shared -Wno-psabi $(word_headers) \\
    -o .libs/\$name.so "\$@"
END
    chmod +x "$work/word/bin/apache2" "$work/word/apxs"
    "$work/word/bin/apache2" -v
}

word_headers() {
    echo "-D_REENTRANT -D_GNU_SOURCE -D_LARGEFILE64_SOURCE" \
        "-I$work/word/root/usr/include/apache2" \
        "-I$work/word/root/usr/include/apr-1.0"
}

word_compile() {
    local cc
    for cc in gcc clang; do
        have "$cc" || continue
        # shellcheck disable=SC2046
        compile "$cc -m32 -std=gnu11 -O2" "$cc" -m32 -std=gnu11 -O2 -Iinclude \
            $([ "$cc" = gcc ] && echo -Wno-psabi) $(word_headers)
    done
}

# -- big pages --

check_pages() {
    local knob=/sys/kernel/mm/transparent_hugepage/shmem_enabled
    if [ ! -e "$knob" ]; then
        row 'not tried' 'big pages' 'this kernel has none for shared memory'
        return
    fi
    run_tests 'big pages (what was skipped is said above)' pages \
        test/portability/test_big_pages.py
    row 'not tried' 'base pages other than 4 KiB (arm64, ppc64)' \
        'no such machine here'
}

renice -n 5 -p $$ > /dev/null
mkdir -p "$work"
make -s all > "$work/make.log" 2>&1 || { tail -n 20 "$work/make.log"; exit 1; }
[ $# -gt 0 ] || set -- compilers musl fallbacks apr word pages
for part; do
    "check_$part"
done
printf '\n'
printf '%s\n' "${rows[@]}"
[ "$failed" = no ]
