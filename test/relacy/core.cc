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
 * The core headers under Relacy: core [-b BOUND] [-n ITERATIONS] [-q] [TEXT].
 *
 * Runs the scenarios whose name has TEXT in it: random schedules, ITERATIONS
 * of each, or, with -b, every schedule with at most so many switches that
 * nothing forces.  One line each; ends at the first that fails, with what
 * happened (-q: without).
 */
#define SLOTMEM_RELACY
#define SLOTMEM_WORD_BITS   2u
#define SLOTMEM_STRIPES_MAX 2u

#include <sys/time.h>

#include "slotmem_table.h"
#include "slotmem_locks.h"

Doom Doom::all[THREADS_MAX];

#include "table.h"
#include "locks.h"

struct Scenario {
    const char *name;
    bool (*run)(rl::test_params &, bool quiet);
};

/* Runs a scenario; once more, if it fails, for its history. */
template <typename T, typename SCHEDULER>
static bool run_by(rl::test_params &params, bool quiet)
{
    rl::ostringstream state, again;

    if (rl::run_test<T, SCHEDULER>(params, state, false)
        == rl::test_result_success) {
        return true;
    }
    if (!quiet) {
        params.initial_state = state.str();
        params.collect_history = true;
        rl::run_test<T, SCHEDULER>(params, again, true);
    }
    return false;
}

/* ONLY_RANDOM, for weak.py, which builds this once for each order. */
template <typename T> static bool run(rl::test_params &params, bool quiet)
{
    static const int threads = T::params::thread_count;

#ifndef ONLY_RANDOM
    if (params.search_type != rl::random_scheduler_type) {
        return run_by<T, rl::context_bound_scheduler<threads>>(params, quiet);
    }
#endif
    return run_by<T, rl::random_scheduler<threads>>(params, quiet);
}

#define SCENARIO(name, ...) { name, &run<__VA_ARGS__> },

static const Scenario scenarios[] = {
#ifndef ONLY_LOCKS
    TABLE_SCENARIOS
#endif
#ifndef ONLY_TABLE
        LOCK_SCENARIOS
#endif
};

static double now()
{
    struct timeval t;

    gettimeofday(&t, NULL);
    return (double)t.tv_sec + (double)t.tv_usec / 1e6;
}

int main(int argc, char **argv)
{
    const char *text = "";
    unsigned long iterations = 10000, bound = 0;
    bool quiet = false;
    unsigned i, ran = 0;
    int option;

    while ((option = getopt(argc, argv, "b:n:q")) != -1) {
        switch (option) {
        case 'b':
            bound = strtoul(optarg, NULL, 10);
            break;
        case 'n':
            iterations = strtoul(optarg, NULL, 10);
            break;
        case 'q':
            quiet = true;
            break;
        default:
            return 2;
        }
    }
    if (optind < argc) {
        text = argv[optind];
    }
    for (i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++) {
        const Scenario &s = scenarios[i];
        rl::test_params params;
        rl::ostringstream said;
        double began = now();

        if (!strstr(s.name, text)) {
            continue;
        }
        params.iteration_count = iterations;
        params.execution_depth_limit = 4000;
        params.output_stream = &said;
        params.progress_stream = &said;
        if (bound) {
            params.search_type = rl::fair_context_bound_scheduler_type;
            params.context_bound = (unsigned)bound;
        }
        if (!s.run(params, quiet)) {
            printf("%-44s FAILED after %lu: %s\n", s.name,
                   (unsigned long)params.stop_iteration,
                   rl::test_result_str(params.test_result));
            if (!quiet) {
                fputs(said.str().c_str(), stdout);
            }
            return 1;
        }
        printf("%-44s %9lu schedules %6.1f s\n", s.name,
               (unsigned long)params.stop_iteration, now() - began);
        fflush(stdout);
        ran++;
    }
    if (ran == 0) {
        fprintf(stderr, "core: no scenario \"%s\"\n", text);
        return 2;
    }
    return 0;
}
