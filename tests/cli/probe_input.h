/* Input of `probe unet` for the model of tiny_model.h, in the file in.safetensors. Include behind cmocka. */
#ifndef VULORA_TESTS_CLI_PROBE_INPUT_H
#define VULORA_TESTS_CLI_PROBE_INPUT_H

#include "formats/safetensors.h"
#include "tests/support/tiny_model.h"

static inline void write_probe_input(void) {
    float sample[4 * 8 * 8], states[77 * TINY_TEXT_WIDTH], timestep = 500;
    for (size_t i = 0; i < sizeof sample / sizeof *sample; i++) sample[i] = (float)(i % 13) / 7 - 1;
    for (size_t i = 0; i < sizeof states / sizeof *states; i++) states[i] = (float)(i % 11) / 5 - 1;
    safetensors_writer w = {0};
    assert_true(safetensors_writer_add_f32(&w, "sample", DTYPE_F32, 4, (int64_t[]){1, 4, 8, 8}, sample, NULL));
    assert_true(safetensors_writer_add_f32(&w, "timestep", DTYPE_F32, 1, (int64_t[]){1}, &timestep, NULL));
    assert_true(safetensors_writer_add_f32(&w, "encoder_hidden_states", DTYPE_F32, 3, (int64_t[]){1, 77, TINY_TEXT_WIDTH}, states, NULL));
    assert_true(safetensors_writer_write(&w, "in.safetensors", NULL));
    safetensors_writer_free(&w);
}

#endif
