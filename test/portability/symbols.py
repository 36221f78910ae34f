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
"""What the module asks of httpd and APR is in the oldest that it is for.

    symbols.py FILE ...         what `apxs` built

OLDEST is what httpd 2.4.4 with APR 1.4 and apr-util 1.4 has, of what is
needed.  A function that is new here must be looked up in their CHANGES files
(httpd: include/ap_mmn.h) before it is put there; apr_hash_this_val(), for one,
came with APR 1.5, and RHEL 7 has 1.4.8.
"""

import re
import subprocess
import sys

OLDEST = set("""
ap_close_listeners ap_escape_html2 ap_escape_logitem ap_global_mutex_create
ap_hook_child_init ap_hook_child_status ap_hook_monitor ap_hook_post_config
ap_hook_pre_config ap_log_error_ ap_mpm_query ap_mutex_register
ap_register_provider ap_retained_data_create ap_retained_data_get
ap_runtime_dir_relative ap_server_conf ap_state_query ap_unixd_config
ap_vrprintf

apr_allocator_create apr_allocator_destroy apr_allocator_owner_set
apr_array_clear apr_array_make apr_array_push apr_cpystrn apr_file_close
apr_file_open apr_file_read_full apr_file_rename apr_file_write_full
apr_generate_random_bytes apr_global_mutex_child_init apr_global_mutex_lockfile
apr_global_mutex_trylock apr_global_mutex_unlock apr_hash_clear apr_hash_count
apr_hash_first apr_hash_get apr_hash_make apr_hash_next apr_hash_set
apr_hash_this apr_md5 apr_md5_final apr_md5_init apr_md5_update
apr_optional_hook_add apr_os_file_get apr_os_file_put apr_palloc apr_pmemdup
apr_pool_cleanup_null apr_pool_cleanup_register apr_pool_create_ex
apr_pool_create_unmanaged_ex apr_pool_destroy apr_pool_tag
apr_proc_other_child_register apr_psprintf apr_pstrcat apr_pstrdup
apr_pstrmemdup apr_rfc822_date apr_shm_baseaddr_get apr_shm_create
apr_shm_destroy apr_signal apr_sleep apr_thread_mutex_create
apr_thread_mutex_lock apr_thread_mutex_unlock apr_time_now
""".split())


def main():
    newer = set()
    for path in sys.argv[1:]:
        listing = subprocess.run(["nm", "-D", "--undefined-only", path],
                                 check=True, text=True,
                                 stdout=subprocess.PIPE).stdout
        asked = set(re.findall(r"(?m)^\s+U (apr?_\w+)", listing))
        if not asked:
            sys.exit(f"{path} asks nothing of httpd and APR")
        newer |= asked - OLDEST
    if newer:
        sys.exit("newer than httpd 2.4.4 and APR 1.4, or not looked up: "
                 + " ".join(sorted(newer)))


if __name__ == "__main__":
    main()
