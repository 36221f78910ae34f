#!/usr/bin/python3
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
"""Carries heartbeats over loopback: UDP datagrams in, HTTP POSTs out.

mod_heartbeat and mod_heartmonitor usually meet on a multicast group.  A
multicast datagram would leave this machine through its default route, and the
demonstration must not send anything outside.  So mod_heartbeat is told to send
to this relay, and the relay hands each beat to mod_heartmonitor's own
"heartbeat" handler, which takes the same text in a POST.

usage: beats.py UDP-PORT http://127.0.0.1:PORT/heartbeat
"""

import socket
import sys
import urllib.error
import urllib.request


def main():
    port, url = int(sys.argv[1]), sys.argv[2]
    beats = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    beats.bind(("127.0.0.1", port))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        beat = beats.recv(1000)
        try:
            opener.open(url, data=beat, timeout=2).close()
        except (OSError, urllib.error.URLError):
            pass    # the server is being restarted: the next beat will reach it


if __name__ == "__main__":
    main()
