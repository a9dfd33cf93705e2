/* The machine that the program runs on. */
#ifndef VULORA_BASE_MACHINE_H
#define VULORA_BASE_MACHINE_H

#include <stdint.h>

typedef struct machine_memory {
    uint64_t free; /* bytes that can be taken now without driving anything out of memory */
    uint64_t most; /* bytes there are at all, or that this process's control group may have */
} machine_memory;

/* Linux: MemAvailable and MemTotal, and the limits of the control groups (versions 1 and 2) that this process is in. root: what stands in
   front of /proc and /sys, "" but in tests. What cannot be read does not limit: UINT64_MAX. */
machine_memory machine_get_memory(const char *root);

#endif
