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
 * child ends as it would have.  Where the C library has no backtrace() (musl),
 * what was built with frame pointers is seen: test/platforms/musl.sh.
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
#else
#include <stdint.h>
#include <sys/uio.h>
#include <ucontext.h>
#endif

#include "httpd.h"
#include "http_config.h"

#define DEPTH 40

#ifdef __GLIBC__
/* The first is this one, then come its caller and the kernel's way there. */
__attribute__((noinline)) static int calls_of(void **calls, void *context)
{
    void *all[DEPTH + 3];
    int depth = backtrace(all, DEPTH + 3);

    (void)context;
    depth = depth > 3 ? depth - 3 : 0;
    memcpy(calls, all + 3, (size_t)depth * sizeof(*calls));
    return depth;
}
#elif defined(__x86_64__)
/* Where a frame begins lies the address of the one above, and behind it where
 * that goes on; what is no frame may be no memory, either. */
static int calls_of(void **calls, void *context)
{
    const ucontext_t *at = context;
    uintptr_t frame[2] = { (uintptr_t)at->uc_mcontext.gregs[REG_RBP], 0 };
    struct iovec to = { frame, sizeof(frame) }, from = { NULL, sizeof(frame) };
    int depth = 1;

    calls[0] = (void *)at->uc_mcontext.gregs[REG_RIP];
    while (depth < DEPTH) {
        from.iov_base = (void *)frame[0];
        if (process_vm_readv(getpid(), &to, 1, &from, 1, 0)
                != (ssize_t)sizeof(frame)
            || frame[0] <= (uintptr_t)from.iov_base) {
            break;
        }
        calls[depth++] = (void *)frame[1];
    }
    return depth;
}
#else
static int calls_of(void **calls, void *context)
{
    (void)calls;
    (void)context;
    return 0;
}
#endif

static void crashed(int number, siginfo_t *info, void *context)
{
    void *calls[DEPTH];
    char line[4096];
    int depth = calls_of(calls, context), i;
    int len = snprintf(line, sizeof(line),
                       "crash of %ld by signal %d:", (long)getpid(), number);

    (void)info;
    for (i = 0; i < depth && len < (int)sizeof(line) - 200; i++) {
        const char *file = "?", *name = "?";
        Dl_info where;

        if (dladdr(calls[i], &where) && where.dli_fname) {
            file = strrchr(where.dli_fname, '/');
            file = file ? file + 1 : where.dli_fname;
            name = where.dli_sname ? where.dli_sname : name;
        }
        len += snprintf(line + len, 200, "%s %.90s:%.90s", i == 0 ? "" : " <",
                        file, name);
    }
    line[len++] = '\n';
    (void)!write(STDERR_FILENO, line, (size_t)len);
    raise(number); /* it may have been sent, and would not come again */
}

static void child_init(apr_pool_t *p, server_rec *s)
{
    struct sigaction action;
#ifdef __GLIBC__
    void *calls[1];
#endif

    (void)p;
    (void)s;
    if (dlsym(RTLD_DEFAULT, "__asan_init")) {
        return; /* it tells better */
    }
#ifdef __GLIBC__
    (void)backtrace(calls, 1); /* loads what it needs now */
#endif
    memset(&action, 0, sizeof(action));
    action.sa_sigaction = crashed;
    action.sa_flags = (int)(SA_RESETHAND | SA_SIGINFO);
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGABRT, &action, NULL);
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
