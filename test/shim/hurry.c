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
 * A preloaded library that makes httpd's parent run its monitor hook every
 * half second instead of every ten: the pauses between two looks after its
 * children are a twentieth as long.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>

typedef long long apr_interval_time_t;

void apr_sleep(apr_interval_time_t t);

void apr_sleep(apr_interval_time_t t)
{
    void (*real)(apr_interval_time_t) =
        (void (*)(apr_interval_time_t))dlsym(RTLD_NEXT, "apr_sleep");

    if (getpid() == getsid(0) && t >= 1000000) {
        t /= 20;
    }
    real(t);
}
