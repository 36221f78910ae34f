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

usage: beats.py ADDRESS UDP-PORT http://ADDRESS:PORT/heartbeat
"""

import http.client
import socket
import sys
import urllib.parse


def main():
    address, port = sys.argv[1], int(sys.argv[2])
    url = urllib.parse.urlsplit(sys.argv[3])
    beats = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    beats.bind((address, port))
    while True:
        beat = beats.recv(1000)
        # The monitor takes the address that a beat comes from for the sender's.
        monitor = http.client.HTTPConnection(url.hostname, url.port, 2,
                                             source_address=(address, 0))
        try:
            monitor.request("POST", url.path, beat)
            monitor.getresponse().read()
        except (OSError, http.client.HTTPException):
            pass    # the server is being restarted: the next beat will reach it
        finally:
            monitor.close()


if __name__ == "__main__":
    main()
