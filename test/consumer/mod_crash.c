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
 * A child that crashes says where, in one line of the error log, innermost
 * call first:
 *
 *     crash of PID by signal 11: libapr-1.so.0:apr_os_sock_get < ...
 *
 * A call without a name that its file exports is a question mark.  Then the
 * child ends as it would have.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* dladdr */
#endif

#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#ifdef __GLIBC__
#include <execinfo.h>
#endif

#include "httpd.h"
#include "http_config.h"

#define DEPTH 40

#ifdef __GLIBC__
static void crashed(int number)
{
    void *calls[DEPTH];
    char line[4096];
    int depth = backtrace(calls, DEPTH), i;
    int len = snprintf(line, sizeof(line),
                       "crash of %ld by signal %d:", (long)getpid(), number);

    /* The first is this one, the second the kernel's way here. */
    for (i = 2; i < depth && len < (int)sizeof(line) - 200; i++) {
        const char *file = "?", *name = "?";
        Dl_info info;

        if (dladdr(calls[i], &info) && info.dli_fname) {
            file = strrchr(info.dli_fname, '/');
            file = file ? file + 1 : info.dli_fname;
            name = info.dli_sname ? info.dli_sname : name;
        }
        len += snprintf(line + len, 200, "%s %.90s:%.90s", i == 2 ? "" : " <",
                        file, name);
    }
    line[len++] = '\n';
    (void)!write(STDERR_FILENO, line, (size_t)len);
    raise(number); /* it may have been sent, and would not come again */
}
#endif

static void child_init(apr_pool_t *p, server_rec *s)
{
#ifdef __GLIBC__
    struct sigaction action;
    void *calls[1];

    (void)p;
    (void)s;
    if (dlsym(RTLD_DEFAULT, "__asan_init")) {
        return; /* it tells better */
    }
    (void)backtrace(calls, 1); /* loads what it needs now */
    memset(&action, 0, sizeof(action));
    action.sa_handler = crashed;
    action.sa_flags = (int)SA_RESETHAND;
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGABRT, &action, NULL);
#else
    (void)p;
    (void)s;
#endif
}

static void register_hooks(apr_pool_t *p)
{
    (void)p;
    ap_hook_child_init(child_init, NULL, NULL, APR_HOOK_REALLY_LAST);
}

AP_DECLARE_MODULE(crash) = {
    STANDARD20_MODULE_STUFF, NULL, NULL, NULL, NULL, NULL, register_hooks,
    AP_MODULE_FLAG_NONE
};
