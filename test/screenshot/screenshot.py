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
"""Makes the picture of the status page that the README shows.

    /usr/bin/python3 test/screenshot/screenshot.py [doc/status.png]
    .../screenshot.py --all build/screenshot     the whole page and the
                            section, on desktop and phone, light and dark

A real mod_proxy_balancer stands behind it: two virtual hosts, traffic, a
stop and a start, so that the section shows what it shows in production.
"""

import os
import shutil
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(TOP, "test"))

import httpd as harness     # noqa: E402  (the path above finds it)

CONF = """
<VirtualHost *:${PORT}>
    BalancerPersist On
    <Proxy balancer://app>
        BalancerMember http://127.0.0.1:${PORT1} route=a
        BalancerMember http://127.0.0.1:${PORT2} route=b
        ProxySet growth=10
    </Proxy>
    <Proxy balancer://static>
        BalancerMember http://127.0.0.1:${PORT1}
        ProxySet growth=1
    </Proxy>
    ProxyPass /app balancer://app
    ProxyPass /static balancer://static
</VirtualHost>
<VirtualHost *:${PORT3}>
    ServerName shop.example.org
    <Proxy balancer://checkout-and-payment-of-the-eu-shop>
        BalancerMember http://127.0.0.1:${PORT2}
    </Proxy>
    ProxyPass / balancer://checkout-and-payment-of-the-eu-shop
</VirtualHost>
"""
MODULES = ["status", "proxy", "proxy_http", "proxy_balancer",
           "lbmethod_byrequests"]
SECTION = (1200, 380)
SHOTS = {"desktop": SECTION, "phone": (400, 420)}
PAGES = {"desktop-page": (1200, 1200), "phone-page": (400, 1600)}


def chromium_program():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return name
    raise SystemExit("screenshot: no chromium; test/install-deps.sh "
                     "screenshot installs it")


def shoot(url, path, width, height, dark=False):
    """A picture of what a window of that size shows of the page."""
    with tempfile.TemporaryDirectory() as profile:
        command = [chromium_program(), "--headless", "--no-sandbox",
                   "--disable-gpu", "--disable-quic", "--no-first-run",
                   "--disable-background-networking",
                   "--disable-component-update", "--disable-sync",
                   f"--user-data-dir={profile}", "--hide-scrollbars",
                   f"--window-size={width},{height}", f"--screenshot={path}"]
        if dark:
            command += ["--force-dark-mode",
                        "--enable-features=WebContentsForceDark"]
        done = subprocess.run(command + [url], text=True, timeout=300,
                              env=dict(os.environ, HOME=profile),
                              stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
    if not os.path.exists(path) or os.path.getsize(path) == 0:
        raise SystemExit(f"screenshot: chromium made no picture:\n"
                         f"{done.stdout}")


def section_only(server):
    """The page without what mod_status says above our section: its address."""
    page = server.get("/server-status")[1]
    head, _, body = page.partition("<hr />\n<h2 id=\"slotmem\">")
    path = os.path.join(server.root, "section.html")
    with open(path, "w") as file:
        file.write(head[:head.index("<body>") + len("<body>")]
                   + "<h2 id=\"slotmem\">" + body)
    return "file://" + path


def prepare(server):
    """Traffic and a restart, after which everything has been restored."""
    for _ in range(20):
        server.request("GET", "/app/")
    server.stop()
    server.start()
    harness.wait_for(lambda: "SlotmemBeganWithFile: 3" in
                     server.get("/server-status?auto")[1],
                     "the balancers to be restored")


def main(arguments):
    every = arguments[:1] == ["--all"]
    if every:
        arguments = arguments[1:]
    target = os.path.abspath(arguments[0] if arguments else
                             os.path.join(TOP, "doc", "status.png"))
    harness.become_subreaper()
    server = harness.Httpd(CONF, modules=MODULES, ports=4, consumer=None,
                           slotmem_module=harness.our_module(),
                           loglevel="error proxy:crit")
    with server:
        prepare(server)
        url = f"http://127.0.0.1:{server.port}/server-status"
        if not every:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shoot(section_only(server), target, *SECTION)
            return
        os.makedirs(target, exist_ok=True)
        for shots, what in (SHOTS, section_only(server)), (PAGES, url):
            for name, size in shots.items():
                for dark in False, True:
                    path = name + ("-dark" if dark else "") + ".png"
                    shoot(what, os.path.join(target, path), *size, dark)


if __name__ == "__main__":
    main(sys.argv[1:])
