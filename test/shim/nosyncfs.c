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
 * A preloaded library: as in a container whose seccomp profile has no syncfs.
 * By the numbers of the kernel's interface, since musl-gcc has no headers of
 * the kernel's.
 */
#include <sys/prctl.h>
#include <sys/syscall.h>

#define LOAD_WORD      0x20 /* BPF_LD | BPF_W | BPF_ABS: 0 is the call's number */
#define SKIP_IF_NOT    0x15 /* BPF_JMP | BPF_JEQ | BPF_K */
#define ANSWER         0x06 /* BPF_RET | BPF_K */
#define ANSWER_EPERM   0x00050001u
#define ANSWER_ALLOW   0x7fff0000u
#define MODE_OF_FILTER 2

static struct {
    unsigned short code;
    unsigned char if_true, if_false;
    unsigned int k;
} filter[] = {
    { LOAD_WORD, 0, 0, 0 },
    { SKIP_IF_NOT, 0, 1, SYS_syncfs },
    { ANSWER, 0, 0, ANSWER_EPERM },
    { ANSWER, 0, 0, ANSWER_ALLOW },
};

__attribute__((constructor)) static void forbid(void)
{
    struct {
        unsigned short len;
        void *filter;
    } program = { sizeof(filter) / sizeof(filter[0]), filter };

    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_SECCOMP, MODE_OF_FILTER, &program);
}
