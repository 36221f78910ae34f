/* As where the system has no MADV_POPULATE_WRITE. */
#include <sys/mman.h>
#undef MADV_POPULATE_WRITE
#define PLATFORM_NO_POPULATE
