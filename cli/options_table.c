/* Every option there is. A new option is a field in struct options and a row here. */
#include "cli/options.h"

#include "cli/samplers.h"
#include "lora/adapter.h"

#define FIELD(name) offsetof(struct options, name)
#define NONE .type = OPTION_NOTED
#define COMPUTE (COMMAND_TRAIN | COMMAND_GENERATE | COMMAND_PROBE | COMMAND_BENCH)
#define DRAW (COMMAND_GENERATE | COMMAND_PROBE)
#define LEARN (COMMAND_TRAIN | COMMAND_BENCH)
#define MOST 9007199254740992.0 /* 2^53: whole numbers that a double holds */

static const char *kind_at(int index) {
    const adapter_trainee *t = adapter_trainee_at(index);
    return t ? t->name : NULL;
}

static const option_choice precisions[] = {
    {"auto", NULL}, {"fp32", "float|float32|no"}, {"fp16", "float16|half"}, {"bf16", "bfloat16"}, {0}};
static const option_choice save_precisions[] = {{"fp16", "float16|half"}, {"bf16", "bfloat16"}, {"fp32", "float|float32"}, {0}};
static const option_choice optimizers[] = {{"adamw", "adamw8bit|pagedadamw|pagedadamw8bit|pagedadamw32bit"}, {0}};
static const option_choice schedulers[] = {{"constant", "constant-with-warmup"}, {"linear", NULL}, {"cosine", NULL}, {0}};
static const option_choice backgrounds[] = {{"white", NULL}, {"black", NULL}, {0}};
static const option_choice schedules[] = {{"default", NULL}, {"karras", NULL}, {0}};
static const option_choice generate_schedules[] = {{"auto", "automatic"}, {"default", NULL}, {"karras", NULL}, {0}};
static const option_choice noises[] = {{"gpu", "nv"}, {"cpu", NULL}, {0}};
static const option_choice kernel_sets[] = {
    {"auto", NULL}, {"portable", NULL}, {"avx2", NULL}, {"avx512", NULL}, {"avx512bf16", NULL}, {"amx", NULL}, {0}};
static const option_choice parts[] = {{"unet", NULL},       {"train-step", NULL}, {"text-encoder", NULL},
                                      {"vae-encode", NULL}, {"vae-decode", NULL}, {0}};

const option option_table[] = {
    {"model", "pretrained-model-name-or-path", OPTION_FILE, COMPUTE, FIELD(model), .value = "FILE|DIR|demo", .group = "Model",
     .help = "SD 1.5 checkpoint: a .safetensors file, a diffusers folder, or demo, the model that comes with vulora"},
    {"vae", NULL, OPTION_FILE, COMPUTE, FIELD(vae), .value = "FILE|DIR", .group = "Model", .help = "another VAE than the model's own"},
    {"tokenizer", NULL, OPTION_FILE, COMPUTE, FIELD(tokenizer), .value = "DIR", .group = "Model",
     .help = "another tokenizer folder than the model's own"},
    {"lora", NULL, OPTION_LIST, DRAW, FIELD(loras), .value = "FILE[:W[:TE]]", .group = "Model",
     .help = "adapter with its strength, also apart for the text encoder; may be given several times"},
    {"lora-dir", NULL, OPTION_FILE, COMMAND_GENERATE, FIELD(lora_dir), .value = "DIR", .group = "Model",
     .help = "where <lora:name:weight> of a prompt is looked up"},
    {"clip-skip", NULL, OPTION_INT, COMMAND_TRAIN | COMMAND_GENERATE, FIELD(clip_skip), 1, 12, .fallback = "1", .value = "N",
     .group = "Model", .help = "use the text encoder's states N layers from its end"},

    {"data", "train-data-dir", OPTION_FILE, COMMAND_TRAIN, FIELD(data), .value = "DIR", .group = "Pictures to learn from",
     .help = "folder of images: directly in it, in folders named N_name (N repeats), or a parent of those"},
    {"trigger", NULL, OPTION_TEXT, COMMAND_TRAIN, FIELD(trigger), .value = "TEXT", .group = "Pictures to learn from",
     .help = "caption of images that have no caption file and no folder N_name"},
    {"caption-extension", "caption-extention", OPTION_TEXT, COMMAND_TRAIN, FIELD(caption_extension), .value = "EXT",
     .group = "Pictures to learn from", .help = "caption files end in this (default: .txt, else .caption)"},
    {"resolution", NULL, OPTION_SIZE, LEARN, FIELD(resolution), 64, 4096, 8, .value = "WxH", .group = "Pictures to learn from",
     .help = "picture size to train at, one number is a square (default: 512, small models 128)"},
    {"bucket", "enable-bucket", OPTION_SWITCH, COMMAND_TRAIN, FIELD(bucket), .fallback = "1", .group = "Pictures to learn from",
     .help = "sort images into aspect ratio buckets instead of cropping all to one shape"},
    {"min-bucket-reso", NULL, OPTION_INT, COMMAND_TRAIN, FIELD(min_bucket), 64, 4096, 8, .value = "N", .group = "Pictures to learn from",
     .help = "shortest side of a bucket (default: 256; below 512 half of the resolution)"},
    {"max-bucket-reso", NULL, OPTION_INT, COMMAND_TRAIN, FIELD(max_bucket), 64, 8192, 8, .value = "N", .group = "Pictures to learn from",
     .help = "longest side of a bucket (default: 1024; below 512 twice the resolution)"},
    {"bucket-reso-steps", NULL, OPTION_INT, COMMAND_TRAIN, FIELD(bucket_step), 8, 512, 8, .value = "N", .group = "Pictures to learn from",
     .help = "sides of buckets are multiples of N (default: 64; below 256 16)"},
    {"flip", "flip-aug", OPTION_SWITCH, COMMAND_TRAIN, FIELD(flip), .fallback = "0", .group = "Pictures to learn from",
     .help = "mirror images half of the time"},
    {"background", NULL, OPTION_CHOICE, COMMAND_TRAIN, FIELD(background), .choices = backgrounds, .fallback = "white", .value = "COLOUR",
     .group = "Pictures to learn from", .help = "what transparent pixels are laid on"},
    {"cache-dir", NULL, OPTION_FILE, COMMAND_TRAIN, FIELD(cache_dir), .value = "DIR", .group = "Pictures to learn from",
     .help = "where encoded images are kept for the next run (default: the user's cache folder)"},

    {"kind", NULL, OPTION_CHOICE, LEARN, FIELD(kind), .choice_at = kind_at, .fallback = "lora", .value = "KIND", .group = "Adapter",
     .help = "what is trained"},
    {"rank", "network-dim", OPTION_INT, LEARN, FIELD(rank), 1, 1024, .fallback = "16", .value = "N", .group = "Adapter",
     .help = "size of the adapter"},
    {"alpha", "network-alpha", OPTION_REAL, LEARN, FIELD(alpha), 1e-6, 1e6, .value = "X", .group = "Adapter",
     .help = "the adapter's effect is scaled by alpha/rank (default: the rank; sd-scripts' default is 1)"},
    {"conv-rank", "conv-dim", OPTION_INT, LEARN, FIELD(conv_rank), 1, 1024, .value = "N", .group = "Adapter",
     .help = "rank for 3x3 convolutions, which kind locon trains (default: the rank)"},
    {"conv-alpha", NULL, OPTION_REAL, LEARN, FIELD(conv_alpha), 1e-6, 1e6, .value = "X", .group = "Adapter",
     .help = "alpha for 3x3 convolutions (default: their rank)"},
    {"dora", "weight-decompose", OPTION_SWITCH, LEARN, FIELD(dora), .fallback = "0", .group = "Adapter",
     .help = "weight decomposition (kinds lora, locon, loha, lokr), with norms of the inputs, as webui has them"},
    {"tucker", "use-tucker", OPTION_SWITCH, LEARN, FIELD(tucker), .fallback = "0", .group = "Adapter",
     .help = "Tucker factors for 3x3 convolutions (kinds locon, loha, lokr)"},
    {"factor", NULL, OPTION_INT, LEARN, FIELD(factor), -1, 512, .value = "N", .group = "Adapter",
     .help = "lokr: size of the smaller matrix (default: -1, as even as possible)"},
    {"decompose-both", NULL, OPTION_SWITCH, LEARN, FIELD(decompose_both), .fallback = "0", .group = "Adapter",
     .help = "lokr: the smaller matrix in factors too"},
    {"full-matrix", NULL, OPTION_SWITCH, LEARN, FIELD(full_matrix), .fallback = "0", .group = "Adapter",
     .help = "lokr: no matrix in factors, whatever the rank"},
    {"constraint", NULL, OPTION_REAL, LEARN, FIELD(constraint), 0, 1e3, .value = "C", .group = "Adapter",
     .help = "oft, boft: how far blocks may turn, per output (default: 0, no limit)"},
    {"rescaled", NULL, OPTION_SWITCH, LEARN, FIELD(rescaled), .fallback = "0", .group = "Adapter",
     .help = "oft, boft: outputs are scaled too"},
    {"targets", NULL, OPTION_TEXT, LEARN, FIELD(targets), .value = "SET|REGEX", .group = "Adapter",
     .help =
         "modules that get an adapter: attn, attn-mlp, full, or a regular expression on their names (default: attn-mlp, of locon full)"},

    {"output", NULL, OPTION_FILE, COMMAND_TRAIN, FIELD(output), .value = "FILE", .group = "Result",
     .help = "adapter to write (.safetensors)"},
    {"output", NULL, OPTION_FILE, COMMAND_GENERATE, FIELD(output), .value = "FILE", .group = "Result",
     .help = "picture to write (.png); of several the others get -2, -3, ... in their names"},
    {"output", NULL, OPTION_FILE, COMMAND_PROBE, FIELD(output), .value = "FILE", .group = "Result",
     .help = "tensors to write (.safetensors)"},
    {"output-dir", NULL, OPTION_FILE, COMMAND_TRAIN, FIELD(output_dir), .value = "DIR", .group = "Result",
     .help = "with --output-name NAME, the same as --output DIR/NAME.safetensors"},
    {"output-name", NULL, OPTION_FILE, COMMAND_TRAIN, FIELD(output_name), .value = "NAME", .group = "Result", .help = "see --output-dir"},
    {"input", NULL, OPTION_FILE, COMMAND_PROBE, FIELD(input), .value = "FILE", .group = "Result",
     .help = "tensors to read (.safetensors); for the tokenizer a text file of prompts"},
    {"save-precision", NULL, OPTION_CHOICE, COMMAND_TRAIN, FIELD(save_precision), .choices = save_precisions, .fallback = "fp16",
     .value = "TYPE", .group = "Result", .help = "number type in the adapter file"},
    {"save-every-n-steps", NULL, OPTION_INT, COMMAND_TRAIN, FIELD(save_every_steps), 1, 1e9, .value = "N", .group = "Result",
     .help = "also save every N steps (NAME-step00000500.safetensors)"},
    {"save-every-n-epochs", NULL, OPTION_INT, COMMAND_TRAIN, FIELD(save_every_epochs), 1, 1e9, .value = "N", .group = "Result",
     .help = "also save every N epochs (NAME-000004.safetensors)"},
    {"metadata", NULL, OPTION_SWITCH, COMMAND_TRAIN, FIELD(metadata), .fallback = "1", .group = "Result",
     .help = "write training settings and tag counts into the file"},
    {"training-comment", NULL, OPTION_TEXT, COMMAND_TRAIN, FIELD(comment), .value = "TEXT", .group = "Result",
     .help = "a note for the file's metadata"},
    {"resume", NULL, OPTION_SWITCH, COMMAND_TRAIN, FIELD(resume), .fallback = "0", .group = "Result",
     .help = "go on from the state kept beside --output"},
    {"dry-run", NULL, OPTION_SWITCH, COMMAND_TRAIN, FIELD(dry_run), .fallback = "0", .group = "Result",
     .help = "say what was understood, the memory plan and the expected time; train nothing"},
    {"trace", NULL, OPTION_FILE, COMMAND_TRAIN, FIELD(trace), .value = "DIR", .group = "Result",
     .help = "write DIR/trace.jsonl, one line a step"},
    {"trace-tensors", NULL, OPTION_INT, COMMAND_TRAIN, FIELD(trace_tensors), 0, 1e9, .fallback = "0", .value = "N", .group = "Result",
     .help = "with --trace: also every tensor of the first N steps"},

    {"steps", "max-train-steps", OPTION_INT, COMMAND_TRAIN, FIELD(steps), 1, 1e8, .value = "N", .group = "Training",
     .help = "optimizer steps (default: 1600 images' worth)"},
    {"epochs", "max-train-epochs", OPTION_INT, COMMAND_TRAIN, FIELD(epochs), 1, 1e8, .value = "N", .group = "Training",
     .help = "passes over the images, instead of --steps"},
    {"batch-size", "train-batch-size", OPTION_INT, LEARN, FIELD(batch_size), 1, 256, .fallback = "1", .value = "N", .group = "Training",
     .help = "images per pass"},
    {"gradient-accumulation-steps", NULL, OPTION_INT, COMMAND_TRAIN, FIELD(accumulation), 1, 4096, .fallback = "1", .value = "N",
     .group = "Training", .help = "passes per optimizer step"},
    {"lr", "learning-rate", OPTION_REAL, LEARN, FIELD(lr), 0, 10, .value = "X", .group = "Training",
     .help = "learning rate (default: 1e-4, the demo model 1e-3)"},
    {"unet-lr", NULL, OPTION_REAL, LEARN, FIELD(unet_lr), 0, 10, .value = "X", .group = "Training",
     .help = "learning rate of the U-Net's modules (default: --lr)"},
    {"text-encoder-lr", NULL, OPTION_REAL, LEARN, FIELD(text_encoder_lr), 0, 10, .fallback = "0", .value = "X", .group = "Training",
     .help = "above 0 trains the text encoder too"},
    {"network-train-unet-only", NULL, OPTION_SWITCH, LEARN, FIELD(unet_only), .fallback = "0", .group = "Training",
     .help = "the same as --text-encoder-lr 0"},
    {"optimizer", "optimizer-type", OPTION_CHOICE, LEARN, FIELD(optimizer), .choices = optimizers, .fallback = "adamw", .value = "NAME",
     .group = "Training", .help = "PyTorch's AdamW in fp32; the 8-bit spellings mean it too"},
    {"weight-decay", NULL, OPTION_REAL, LEARN, FIELD(weight_decay), 0, 10, .fallback = "0.01", .value = "X", .group = "Training",
     .help = "of the optimizer"},
    {"lr-scheduler", NULL, OPTION_CHOICE, COMMAND_TRAIN, FIELD(scheduler), .choices = schedulers, .fallback = "constant", .value = "NAME",
     .group = "Training", .help = "course of the learning rate"},
    {"lr-warmup-steps", NULL, OPTION_REAL, COMMAND_TRAIN, FIELD(warmup), 0, 1e8, .fallback = "0", .value = "N", .group = "Training",
     .help = "steps of rising learning rate; below 1 a part of all steps"},
    {"max-grad-norm", NULL, OPTION_REAL, LEARN, FIELD(max_grad_norm), 0, 1e6, .fallback = "1", .value = "X", .group = "Training",
     .help = "gradients are scaled down to this norm; 0 leaves them"},
    {"gradient-checkpointing", NULL, OPTION_SWITCH, LEARN, FIELD(checkpointing), .group = "Training",
     .help = "compute activations twice instead of keeping them: less memory, more time (default: only when memory needs it)"},
    {"sample-prompts", NULL, OPTION_FILE, COMMAND_TRAIN, FIELD(sample_prompts), .value = "FILE", .group = "Training",
     .help = "draw these while training; a line is: prompt --n negative --w 512 --h 512 --d seed --l cfg --s steps"},
    {"sample-every-n-steps", NULL, OPTION_INT, COMMAND_TRAIN, FIELD(sample_every_steps), 1, 1e9, .value = "N", .group = "Training",
     .help = "when (default: at the end)"},
    {"sample-every-n-epochs", NULL, OPTION_INT, COMMAND_TRAIN, FIELD(sample_every_epochs), 1, 1e9, .value = "N", .group = "Training",
     .help = "the same by epochs"},
    {"seed", NULL, OPTION_INT, LEARN, FIELD(seed), 0, MOST, .fallback = "42", .value = "N", .group = "Training",
     .help = "the same seed, settings and device give the same file"},

    {"prompt", NULL, OPTION_TEXT, COMMAND_GENERATE, FIELD(prompt), .value = "TEXT", .group = "Picture",
     .help = "what to draw; (word:1.2), [word], <lora:name:0.8> as in stable-diffusion-webui"},
    {"negative", "negative-prompt", OPTION_TEXT, COMMAND_GENERATE, FIELD(negative), .fallback = "", .value = "TEXT", .group = "Picture",
     .help = "what not to draw"},
    {"steps", "sample-steps", OPTION_INT, DRAW, FIELD(steps), 1, SCHEDULE_MAX_STEPS, .fallback = "20", .value = "N", .group = "Picture",
     .help = "sampling steps"},
    {"sampler", "sampling-method sample-sampler", OPTION_CHOICE, DRAW, FIELD(sampler), .choice_at = sampler_name_at,
     .choice_find = sampler_name_find, .fallback = "dpmpp-2m", .value = "NAME", .group = "Picture",
     .help = "stable-diffusion-webui's spellings are understood"},
    {"schedule", "scheduler schedule-type", OPTION_CHOICE, COMMAND_GENERATE, FIELD(schedule), .choices = generate_schedules,
     .fallback = "auto", .value = "NAME", .group = "Picture", .help = "spacing of the steps; auto is karras for dpmpp-2m"},
    {"schedule", "scheduler schedule-type", OPTION_CHOICE, COMMAND_PROBE, FIELD(schedule), .choices = schedules, .fallback = "default",
     .value = "NAME", .group = "Picture", .help = "spacing of the steps"},
    {"cfg", "cfg-scale guidance-scale", OPTION_REAL, DRAW, FIELD(cfg), 0, 100, .fallback = "7", .value = "X", .group = "Picture",
     .help = "how strictly the prompt is followed; 1 ignores the negative prompt"},
    {"width", NULL, OPTION_INT, COMMAND_GENERATE, FIELD(width), 64, 4096, 8, .value = "N", .group = "Picture",
     .help = "in pixels (default: 512, small models 128)"},
    {"height", NULL, OPTION_INT, COMMAND_GENERATE, FIELD(height), 64, 4096, 8, .value = "N", .group = "Picture",
     .help = "in pixels (default: 512, small models 128)"},
    {"batch", "batch-count n-iter", OPTION_INT, COMMAND_GENERATE, FIELD(batch), 1, 10000, .fallback = "1", .value = "N", .group = "Picture",
     .help = "pictures to draw, with seeds N, N+1, ..."},
    {"seed", NULL, OPTION_INT, COMMAND_GENERATE, FIELD(seed), -1, MOST, .fallback = "-1", .value = "N", .group = "Picture",
     .help = "-1 picks one and says which"},
    {"seed", NULL, OPTION_INT, COMMAND_PROBE, FIELD(seed), 0, MOST, .fallback = "0", .value = "N", .group = "Picture",
     .help = "of the noise that ancestral samplers add"},
    {"noise", "rng", OPTION_CHOICE, DRAW, FIELD(noise), .choices = noises, .fallback = "gpu", .value = "NAME", .group = "Picture",
     .help = "whose random numbers a seed gives: gpu as stable-diffusion-webui, cpu as ComfyUI and diffusers"},

    {"part", NULL, OPTION_CHOICE, COMMAND_BENCH, FIELD(part), .choices = parts, .fallback = "unet", .value = "PART", .group = "Measuring",
     .help = "what to time"},
    {"repeats", NULL, OPTION_INT, COMMAND_BENCH, FIELD(repeats), 1, 100000, .fallback = "3", .value = "N", .group = "Measuring",
     .help = "timed runs, after one warm-up"},

    {"device", NULL, OPTION_FILE, COMPUTE, FIELD(device), .fallback = "auto", .value = "NAME", .group = "Computing",
     .help = "auto (the best GPU, else the CPU), cpu, vulkan, vulkan:N, or part of a device's name"},
    {"precision", NULL, OPTION_CHOICE, COMPUTE, FIELD(precision), .choices = precisions, .fallback = "auto", .value = "TYPE",
     .group = "Computing", .help = "what activations and base weights are stored in"},
    {"threads", NULL, OPTION_INT, COMPUTE, FIELD(threads), 0, 1024, .fallback = "0", .value = "N", .group = "Computing",
     .help = "CPU threads (0: one for each processor)"},
    {"cpu-kernels", NULL, OPTION_CHOICE, COMPUTE, FIELD(cpu_kernels), .choices = kernel_sets, .fallback = "auto", .value = "SET",
     .group = "Computing", .help = "instructions that matrix products use on the CPU; portable leaves them to OpenBLAS"},

    {"memory-limit", NULL, OPTION_REAL, COMMAND_TRAIN | COMMAND_GENERATE, FIELD(memory_limit), 0.001, 1048576, .value = "GIB",
     .group = "Computing", .help = "memory of the device that may be used (default: what is free)"},

    {"json", NULL, OPTION_SWITCH, COMMAND_INSPECT | COMMAND_DEVICES | COMMAND_BENCH, FIELD(json), .fallback = "0", .group = "Talk",
     .help = "results for machines"},
    {"quiet", NULL, OPTION_SWITCH, COMMAND_ALL, FIELD(quiet), .fallback = "0", .group = "Talk", .help = "errors only"},
    {"verbose", NULL, OPTION_SWITCH, COMMAND_ALL, FIELD(verbose), .fallback = "0", .group = "Talk", .help = "more detail"},
    {"help", NULL, OPTION_SWITCH, COMMAND_ALL, FIELD(help), .fallback = "0", .group = "Talk", .help = "this page"},

    /* Options of sd-scripts that stand in everybody's saved command lines and mean nothing here. */
    {"xformers",
     "sdpa mem-eff-attn lowram highvram use-8bit-adam persistent-data-loader-workers cache-latents cache-latents-to-disk no-half-vae "
     "full-fp16 full-bf16 "
     "torch-compile safe-metadata skip-cache-check fp8-base split-attn",
     NONE, COMMAND_TRAIN, .help = "how PyTorch computes"},
    {"mixed-precision",
     "max-data-loader-n-workers save-model-as vae-batch-size dynamo-backend logging-dir log-with log-prefix network-module "
     "max-token-length num-cpu-threads-per-process",
     NONE, COMMAND_TRAIN, .value = "X", .help = "how PyTorch computes"},
    {"network-args", "optimizer-args lr-scheduler-args", OPTION_REFUSED, COMMAND_TRAIN,
     .help = "give conv_dim and conv_alpha as --conv-rank and --conv-alpha, algo as --kind, weight_decay as --weight-decay"},
    {"dataset-config", "config-file", OPTION_REFUSED, COMMAND_TRAIN,
     .help = "this version reads no configuration files; give its values as options, the folder as --data"},
    {"v2", "v-parameterization", OPTION_REFUSED, COMMAND_TRAIN, .help = "vulora trains Stable Diffusion 1.x with noise prediction only"},
    {0}};
