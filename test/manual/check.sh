#!/bin/sh
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

# Validates the page for httpd's manual against httpd's own DTD, which Debian's
# package apache2-doc has: it is fetched, not installed, and kept in
# build/manual.
#
#     test/manual/check.sh [--if-it-can-be-had]
#
# With that, being offline is no error: well-formed is all that is asked then.
set -eu
LC_ALL=C
export LC_ALL

top=$(cd "$(dirname "$0")/../.." && pwd)
page=$top/doc/manual/mod_slotmem_shm.xml
work=$top/build/manual
style=$work/style

# The DTD includes W3C's lists of characters by name, which no page needs; their
# addresses lead to an empty file, and to no network.
write_catalog() {
    : >"$work/empty"
    cat >"$work/catalog.xml" <<END
<catalog xmlns="urn:oasis:names:tc:entity:xmlns:xml:catalog">
  <rewriteSystem systemIdStartString="http://www.w3.org/TR/xhtml1/DTD/xhtml-lat1.ent" rewritePrefix="file://$work/empty"/>
  <rewriteSystem systemIdStartString="http://www.w3.org/TR/xhtml1/DTD/xhtml-symbol.ent" rewritePrefix="file://$work/empty"/>
  <rewriteSystem systemIdStartString="http://www.w3.org/TR/xhtml1/DTD/xhtml-special.ent" rewritePrefix="file://$work/empty"/>
</catalog>
END
}

fetch() {
    rm -rf "$work"
    mkdir -p "$work/package"
    (cd "$work" && apt-get download -q apache2-doc >log 2>&1) || return
    dpkg-deb -x "$work"/apache2-doc_*.deb "$work/package"
    gunzip -q -r "$work/package/usr/share/doc/apache2-doc/manual/style"
    mv "$work/package/usr/share/doc/apache2-doc/manual/style" "$style"
    rm -rf "$work/package" "$work"/*.deb
    write_catalog
}

valid() {
    XML_CATALOG_FILES=$work/catalog.xml xmllint --nonet --noout \
        --nowarning --dtdvalid "$style/modulesynopsis.dtd" "$1"
}

# Its DTD is where httpd's tree has it, not here.
xmllint --nonet --noout --nowarning "$page"
if [ ! -f "$style/modulesynopsis.dtd" ] && ! fetch; then
    echo "manual: $page is well-formed, but was not validated: apache2-doc" \
        "cannot be fetched" >&2
    [ "${1-}" = --if-it-can-be-had ]
    exit
fi
valid "$page"
# A page that is not valid is found.
sed 's|<summary>|<summary><directive>x</directive>|' "$page" >"$work/wrong.xml"
if valid "$work/wrong.xml" 2>/dev/null; then
    echo "manual: the DTD finds no fault in a page that has one" >&2
    exit 1
fi
