/* SHA-256 (FIPS 180-4), for adapter hashes and cache keys. */
#ifndef VULORA_BASE_SHA256_H
#define VULORA_BASE_SHA256_H

#include <stddef.h>
#include <stdint.h>

typedef struct sha256 {
    uint32_t state[8];
    uint64_t length;
    uint8_t block[64];
} sha256;

void sha256_init(sha256 *hash);
void sha256_update(sha256 *hash, const void *data, size_t size);
void sha256_hex(sha256 *hash, char out[65]); /* ends the hash; 64 lower-case hex digits and a zero */

#endif
