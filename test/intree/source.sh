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

# source.sh PACKAGE DIR: gets the source that a Debian package is made from
# (the authors' archive, without Debian's patches) and prints its path.
#
# The machine's own package lists and sources stay as they are: apt is given
# an entry of its own, lists of its own and a cache of its own, under DIR.  A
# mirror may list a version that it does not serve; then the one before it is
# taken.  DEBIAN_MIRROR and DEBIAN_SECURITY choose the mirrors.

set -eu
package=$1
dir=$2
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
security=${DEBIAN_SECURITY:-http://deb.debian.org/debian-security}
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

archive() {
    find "$dir/$package" -name '*.orig.tar.*' ! -name '*.asc' 2>/dev/null |
        head -n 1
}

ours() {
    command=$1
    shift
    "$command" -o Dir::Etc::SourceList=/dev/null \
        -o Dir::Etc::SourceParts="$dir/apt/sources" \
        -o Dir::State::Lists="$dir/apt/lists" \
        -o Dir::Cache="$dir/apt/cache" \
        -o APT::Sandbox::User=root -o Acquire::Retries=3 "$@"
}

update() {
    mkdir -p "$dir/apt/sources" "$dir/apt/lists/partial" \
        "$dir/apt/cache/archives/partial"
    cat > "$dir/apt/sources/source.sources" <<END
Types: deb-src
URIs: $mirror
Suites: $release $release-updates
Components: main
Signed-By: $keyring

Types: deb-src
URIs: $security
Suites: $release-security
Components: main
Signed-By: $keyring
END
    ours apt-get -qq update >&2
}

# Newest first.
versions() {
    ours apt-cache showsrc --only-source "$package" |
        sed -n 's/^Version: //p' | sort -ruV
}

fetch() {
    for version in $(versions); do
        rm -rf "${dir:?}/$package"
        mkdir -p "$dir/$package"
        if (cd "$dir/$package" &&
            ours apt-get -qq source --download-only \
                "$package=$version" >&2); then
            echo "source of $package $version" >&2
            return 0
        fi
        echo "$package $version is listed but not served" >&2
    done
    echo "no version of the source of $package could be had" >&2
    return 1
}

dir=$(mkdir -p "$dir" && cd "$dir" && pwd)
if [ -z "$(archive)" ]; then
    update
    fetch
fi
archive
