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
 * mod_slotmem_grandchild: a process that serves a request is forked by a
 * child, as mpm-itk does it, without any hook of httpd's.
 *
 *     GET /slotmem-grandchild?SEGMENT
 *
 * forks one that puts slot 0 of that segment over and over, and answers its
 * pid and the pid of the child that forked it.  The segment must be in the
 * child already.
 */

#include "httpd.h"
#include "http_config.h"
#include "http_protocol.h"
#include "ap_provider.h"
#include "ap_slotmem.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

module AP_MODULE_DECLARE_DATA slotmem_grandchild_module;

static void put_for_ever(const ap_slotmem_provider_t *shm,
                         ap_slotmem_instance_t *s, apr_size_t size)
{
    unsigned char *bytes = malloc(size);
    int turn;

    for (turn = 0; bytes; turn++) {
        memset(bytes, turn, size);
        shm->put(s, 0, bytes, size);
    }
    _exit(1);
}

static int grandchild(request_rec *r)
{
    const ap_slotmem_provider_t *shm;
    ap_slotmem_instance_t *s = NULL;
    apr_size_t size = 0;
    unsigned int num = 0;
    pid_t pid;

    if (strcmp(r->uri, "/slotmem-grandchild") != 0 || !r->args) {
        return DECLINED;
    }
    shm = ap_lookup_provider(AP_SLOTMEM_PROVIDER_GROUP, "shm",
                             AP_SLOTMEM_PROVIDER_VERSION);
    if (!shm || shm->attach(&s, r->args, &size, &num, r->pool) != APR_SUCCESS) {
        return HTTP_NOT_FOUND;
    }
    pid = fork();
    if (pid == 0) {
        put_for_ever(shm, s, size);
    }
    if (pid < 0) {
        return HTTP_INTERNAL_SERVER_ERROR;
    }
    ap_set_content_type(r, "text/plain");
    ap_rprintf(r, "%ld %ld\n", (long)pid, (long)getpid());
    return OK;
}

static void register_hooks(apr_pool_t *p)
{
    (void)p;
    ap_hook_handler(grandchild, NULL, NULL, APR_HOOK_FIRST);
}

module AP_MODULE_DECLARE_DATA slotmem_grandchild_module = {
    STANDARD20_MODULE_STUFF, NULL, NULL, NULL, NULL, NULL, register_hooks, 0
};
