/* Licensed to the Apache Software Foundation (ASF) under one or more
 * contributor license agreements.  See the NOTICE file distributed with
 * this work for additional information regarding copyright ownership.
 * The ASF licenses this file to You under the Apache License, Version 2.0
 * (the "License"); you may not use this file except in compliance with
 * the License.  You may obtain a copy of the License at
 *
 *     http://www.apache.org/licenses/LICENSE-2.0
 *
 * Unless required by applicable law or agreed to in writing, software
 * distributed under the License is distributed on an "AS IS" BASIS,
 * WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
 * See the License for the specific language governing permissions and
 * limitations under the License.
 */

/*
 * mod_monitor_clock: how long the parent's monitor hooks take.
 *
 * Looks at the clock before and after all others, and appends each time, in
 * microseconds, as a line to the file named by MONITOR_CLOCK.
 */

#include "httpd.h"
#include "http_config.h"
#include "mpm_common.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

module AP_MODULE_DECLARE_DATA monitor_clock_module;

static struct timespec began;

static int clock_first(apr_pool_t *p, server_rec *s)
{
    (void)p;
    (void)s;
    clock_gettime(CLOCK_MONOTONIC, &began);
    return DECLINED;
}

static int clock_last(apr_pool_t *p, server_rec *s)
{
    const char *path = getenv("MONITOR_CLOCK");
    struct timespec now;
    char line[32];
    int fd, len;

    (void)p;
    (void)s;
    clock_gettime(CLOCK_MONOTONIC, &now);
    len = snprintf(line, sizeof line, "%ld\n",
                   (long)(now.tv_sec - began.tv_sec) * 1000000L
                       + (now.tv_nsec - began.tv_nsec) / 1000);
    fd =
        path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (fd >= 0) {
        if (write(fd, line, (size_t)len) != len) {
            abort();
        }
        close(fd);
    }
    return DECLINED;
}

static void register_hooks(apr_pool_t *p)
{
    (void)p;
    ap_hook_monitor(clock_first, NULL, NULL, APR_HOOK_REALLY_FIRST);
    ap_hook_monitor(clock_last, NULL, NULL, APR_HOOK_REALLY_LAST);
}

module AP_MODULE_DECLARE_DATA monitor_clock_module = {
    STANDARD20_MODULE_STUFF, NULL, NULL, NULL, NULL, NULL, register_hooks,
#ifdef AP_MODULE_FLAG_NONE
    AP_MODULE_FLAG_NONE
#endif
};
