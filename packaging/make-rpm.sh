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

# Builds the RPM, source and binary, looks at it with rpmlint, and lets httpd
# load the module the way that the package says.
#
#     packaging/make-rpm.sh [DIR]
#
# Everything is made in DIR (build/rpm); the last line printed is the package.
# Where httpd-devel's macros are missing (on Debian), apxs and its httpd stand
# in, which shows less: see the head of the spec file.
set -u
LC_ALL=C
export LC_ALL

top=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "${1:-$top/build/rpm}"
dir=$(cd "${1:-$top/build/rpm}" && pwd)
spec=$top/packaging/rpm/mod_slotmem_shm.spec
apxs=${APXS:-apxs}

die() {
    echo "make-rpm: $*" >&2
    exit 1
}

version=$(sed -n 's/^Version: *//p' "$spec")
grep -q "^Changes with mod_slotmem_shm $version\$" "$top/CHANGES" ||
    die "version $version is not in CHANGES"
rm -rf "${dir:?}"/*
mkdir -p "$dir/SOURCES" "$dir/root"
sh "$top/packaging/source.sh" "$dir/mod_slotmem_shm-$version" \
    "$dir/SOURCES/mod_slotmem_shm-$version.tar.gz" || die "no archive"

options=(--define "_topdir $dir")
if [ "$(rpm --eval '%{?_httpd_mmn}')" = "" ]; then
    mmn=$(awk '$1 " " $2 == "#define MODULE_MAGIC_NUMBER_MAJOR" { print $3 }' \
        "$("$apxs" -q INCLUDEDIR)/ap_mmn.h")
    options+=(--nodeps --define "_httpd_apxs $(command -v "$apxs")"
              --define "_httpd_mmn $mmn")
fi
rpmbuild -ba "${options[@]}" "$spec" >"$dir/build.log" 2>&1 || {
    tail -n 40 "$dir/build.log" >&2
    die "rpmbuild failed; all it said is in $dir/build.log"
}
rpm=$(find "$dir/RPMS" -name 'mod_slotmem_shm-[0-9]*.rpm')
rpmlint -r "$top/packaging/rpm/rpmlintrc" "$spec" "$dir"/SRPMS/*.rpm "$rpm" >&2 ||
    die "rpmlint has something to say"

# ---- httpd's configuration as Fedora has it: 00-base.conf loads its own module

(cd "$dir/root" && rpm2cpio "$rpm" | cpio -idm --quiet) || die "cannot unpack"
etc=$dir/root/etc/httpd
ours=$(find "$dir/root" -name mod_slotmem_shm.so)
stock=$("$apxs" -q LIBEXECDIR)
httpd=$("$apxs" -q SBINDIR)/$("$apxs" -q PROGNAME)
ln -s "$(dirname "$(dirname "$ours")")" "$etc/modules"
cat >"$etc/conf.modules.d/00-base.conf" <<END
LoadModule slotmem_shm_module $stock/mod_slotmem_shm.so
END
cat >"$etc/httpd.conf" <<END
ServerRoot $etc
ServerName localhost
Listen 127.0.0.1:$(python3 -c 'import socket
s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
PidFile $dir/httpd.pid
DefaultRuntimeDir $dir
ErrorLog $dir/error.log
LoadModule mpm_event_module $stock/mod_mpm_event.so
LoadModule authz_core_module $stock/mod_authz_core.so
Include conf.modules.d/*.conf
END
# Started by root, httpd gives its children to somebody else.
if [ "$(id -u)" = 0 ]; then
    printf 'User nobody\nGroup %s\n' "$(id -gn nobody)" >>"$etc/httpd.conf"
fi
"$httpd" -X -f "$etc/httpd.conf" &
pid=$!
trap 'kill $pid 2>/dev/null; wait' EXIT
for _ in $(seq 600); do
    [ -s "$dir/httpd.pid" ] && break
    kill -0 $pid || die "httpd does not start: $(cat "$dir/error.log")"
    sleep 0.05
done
grep -q " $ours\$" /proc/$pid/maps || die "httpd has not loaded $ours"
! grep -q " $stock/mod_slotmem_shm.so\$" /proc/$pid/maps ||
    die "httpd has loaded its own module, too"
echo "$rpm"
