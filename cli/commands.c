#include "cli/commands.h"

#include <limits.h>

const command command_table[] = {
    {"train", "train_network train_network.py", COMMAND_TRAIN, "", 0, 0, "learn a subject or a style from a folder of pictures", cmd_train},
    {"generate", "txt2img", COMMAND_GENERATE, "", 0, 0, "draw pictures, with any number of adapters", cmd_generate},
    {"grid", NULL, COMMAND_GRID, "", 0, 0, "draw the same prompts and seeds with several adapters and strengths, on one sheet", cmd_grid},
    {"inspect", NULL, COMMAND_INSPECT, "FILE...", 1, INT_MAX, "say what adapter files are: kind, rank, modules, metadata, problems",
     cmd_inspect},
    {"convert", "resize_lora resize_lora.py", COMMAND_CONVERT, "IN", 1, 1, "rewrite an adapter: another format, number type, kind or rank",
     cmd_convert},
    {"merge", "merge_lora merge_lora.py", COMMAND_MERGE, "FILE[:WEIGHT[:TE_WEIGHT]]...", 1, INT_MAX, "make one adapter of several",
     cmd_merge},
    {"extract", "extract_lora_from_models extract_lora_from_models.py", COMMAND_EXTRACT, "", 0, 0,
     "make a LoRA of the difference of two models", cmd_extract},
    {"devices", NULL, COMMAND_DEVICES, "", 0, 0, "list what can compute here, and what auto picks", cmd_devices},
    {"bench", NULL, COMMAND_BENCH, "", 0, 0, "time a part of the model on a device", cmd_bench},
    {"probe", NULL, COMMAND_PROBE, "PART", 1, 1, "run one part of the model on given tensors", cmd_probe},
    {0}};
