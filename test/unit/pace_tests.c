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

/* How long the checkpoint's helper waits.  Part of unit.c. */

#define SECONDS(n) ((apr_uint64_t)(n)*CHECKPOINT_SECOND)

/* A look that takes `took`, and writes `bytes`, `idle` after the last wait was
 * over.  Moves the time on, over the wait as well. */
static apr_uint64_t pace_look(pace_t *pace, apr_uint64_t *now,
                              apr_uint64_t took, apr_uint64_t bytes)
{
    apr_uint64_t pause;

    *now += took;
    pause = pace_pause(pace, *now, took, bytes);
    *now += pause;
    return pause;
}

/* No amount of state takes more than a fiftieth of a processor. */
static void test_pace_follows_the_shorter_of_two_looks(void **state)
{
    pace_t pace = { 0, 0, 0, 0 };
    apr_uint64_t now = SECONDS(1000);

    (void)state;
    pace.paid = now;
    assert_int_equal(pace_look(&pace, &now, 10, 0), SECONDS(1));
    assert_int_equal(pace_look(&pace, &now, 20000, 0), SECONDS(1));
    assert_int_equal(pace_look(&pace, &now, 40000, 0), SECONDS(1));
    assert_int_equal(pace_look(&pace, &now, 60000, 0), SECONDS(2));
    assert_int_equal(pace_look(&pace, &now, 50000, 0), SECONDS(5) / 2);
    /* One flush of an hour changes nothing. */
    assert_int_equal(pace_look(&pace, &now, SECONDS(3600), 0), SECONDS(5) / 2);
    assert_int_equal(pace_look(&pace, &now, 50000, 0), SECONDS(5) / 2);
    /* Two do, but only so far. */
    pace_look(&pace, &now, SECONDS(30), 0);
    assert_int_equal(pace_look(&pace, &now, SECONDS(30), 0), SECONDS(300));
    assert_int_equal(pace_look(&pace, &now, 10, 0), SECONDS(1));
}

/* Five minutes' worth may be written at once; what is beyond is waited for. */
static void test_pace_limits_what_is_written(void **state)
{
    const apr_uint64_t burst = SECONDS(300) / CHECKPOINT_SECOND * 65536;
    pace_t pace = { 0, 0, 0, 0 };
    apr_uint64_t now = SECONDS(1000);

    (void)state;
    pace.paid = now;
    assert_int_equal(pace_look(&pace, &now, 0, burst), SECONDS(1));
    /* One second's worth is free by now. */
    assert_int_equal(pace_look(&pace, &now, 0, (apr_uint64_t)11 * 65536),
                     SECONDS(10));
    assert_int_equal(pace_look(&pace, &now, 0, 65536), SECONDS(1));
    assert_int_equal(pace_look(&pace, &now, 0, burst - 65536), SECONDS(299));
    assert_int_equal(pace_look(&pace, &now, 0, 4 * burst), SECONDS(300));
    /* After a quiet hour nothing is owed. */
    now += SECONDS(3600);
    assert_int_equal(pace_look(&pace, &now, 0, burst), SECONDS(1));
}

#define PACE_TESTS                                                             \
    cmocka_unit_test(test_pace_follows_the_shorter_of_two_looks),              \
        cmocka_unit_test(test_pace_limits_what_is_written)
