#!/usr/bin/env python3
"""Writes tests/fixtures/tokenizer.jsonl and tests/fixtures/tokenizer_*/: odd prompts with the ids that transformers' CLIPTokenizer gives them.

Needs transformers, and CLIP's merges where tools/fetch_bpe.sh puts them. Run from anywhere.
"""
import gzip
import json
import random
from pathlib import Path

from transformers import CLIPTokenizer

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
MERGES = ROOT / "third_party" / "bpe" / "bpe_simple_vocab_16e6.txt.gz"

HAND = [
    "", " ", "\t\r\n ", "a", "A", "a photo of a cat", "A PHOTO OF A CAT", "  two   spaces\tand\ttabs\nand lines\r\n ",
    "sks person, best quality, (masterpiece:1.2), [blurry], ((wow))", "1girl, solo, long_hair, :d, ^_^, >_<, @_@, ;)", "photo by d'artagnan",
    "it's, IT'S, don't, we're, they've, I'm, she'll, he'd, 'street, 'tis, 'like, rock'n'roll, o'clock, y'all'd've", "it\u2019s a curly apostrophe",
    "''s", "'''s'''t", "x''re", "'", "''", "' s", "'S 'T 'RE", "isn't'nt", "a's'b", "!'s", "can't.won't",
    "2023", "3.14159", "1,000,000", "v1.5", "8k uhd 4K", "mp3 h264 a1b2c3", "0000000000", "\u00bd \u00b2 \u2460 \u2167 \u216b", "\u0663\u0664 \u0967\u0968 \uff11\uff12",
    "<|startoftext|>", "<|endoftext|>", "a <|startoftext|> b <|endoftext|> c", "<|startoftext|><|startoftext|>x", "<|STARTOFTEXT|> loud", "<|EndOfText|>",
    "<| startoftext |>", "<|startoftext", "|startoftext|>", "x<|endoftext|>y", "<|endoftext|>" * 80, "<|<|endoftext|>|>", "<|endoftext|",
    "<lora:add_detail:0.8> girl", "<hypernet:x:1>", "BREAK AND BREAK", "a | b || c", "{a|b|c}", "__wildcard__", "\\(escaped\\)", "a\\b/c", "C:\\path\\to\\file.png",
    "https://example.org/a?b=c&d=%20#frag", "mail@example.org", "#hashtag #f\u00fcr", "$100 \u20ac50 \u00a330 \u00a55", "50% off!!!", "wait... what?!?!", "-----", "=====>", "*****", "&amp; &lt;b&gt; &#39;", "&amp;amp;",
    "\u00fcber caf\u00e9 na\u00efve \u00c5ngstr\u00f6m \u00d1and\u00fa", "u\u0308ber cafe\u0301 nai\u0308ve A\u030angstro\u0308m", "\u212b \u2126 \u212a", "\u1e9b\u0323 \u0073\u0323\u0307 \u1e69", "a\u0301\u0302\u0303\u0304", "\u0301", " \u0301x", "e\u0301\u0301e",
    "\u0130stanbul \u0131\u015f\u0131k I\u0307", "STRASSE stra\u00dfe STRA\u1e9eE", "\u039f\u0394\u03a5\u03a3\u03a3\u0395\u03a5\u03a3 \u03a3\u03a3 \u03c3\u03c2", "\u01c5 \u01c4 \u01c6 \ufb01ne \ufb02ow", "\u1f88 \u1ffc \u1fb3", "\u0410\u041b\u0418\u0421\u0410 \u0432 \u0441\u0442\u0440\u0430\u043d\u0435", "\u1c80\u10a0\u2d00\u13a0\uab70", "\u023a \u2c65 \u023e", "\ua64a\u1c88",
    "\u4e00\u53ea\u732b", "\u732b\u3068\u72ac", "\u6771\u4eac\u30bf\u30ef\u30fc 2020\u5e74", "\u304b\u3099 \u304c \u30cf\u309a", "\ud55c\uad6d\uc5b4 \ud55c\u1100\u1161\u11a8", "\u1112\u1161\u11ab", "\uff21\uff22\uff23 \uff01\uff1f", "\u3000\u5168\u89d2\u3000", "\U00020000\U0002a6d6", "\ufa1e\uf900\u8c48", "\u65e5\u672c\u8a9e\u3067cat\u3068\u3044\u3046",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645", "\u05e9\u05dc\u05d5\u05dd", "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u0ba4\u0bae\u0bbf\u0bb4\u0bcd", "\u0f56\u0f7c\u0f51", "\u1219\u122d\u1200\u1263", "\u0915\u093c \u0958", "\u09c7\u09be",
    "\U0001f600", "\U0001f600\U0001f602\U0001f923", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 family", "\U0001f44d\U0001f3fd", "\U0001f1e9\U0001f1ea \U0001f1ef\U0001f1f5", "\u2764\ufe0f \u2764", "1\ufe0f\u20e3", "cat\U0001f431dog\U0001f436", "\U0001faf0\U0001fae8", "\u2605\u2606\u266a\u266b", "\u263a\ufe0e",
    "\u0000nul", "a\u0000b", "\u0001\u0002\u0003", "bell\u0007", "esc\u001b[31mred", "del\u007f", "nel\u0085x", "\u001c\u001d\u001e\u001f", "a\u000bb\u000cc", "nbsp\u00a0x", "\u2028\u2029", "thin\u2009space", "zero\u200bwidth", "join\u200der", "\ufeffbom", "mid\ufeffbom", "\u00adsoft\u00adhyphen", "\u202ertl", "\u180emongol", "\u1680ogham", "\u205f\u202f\u2000", "\ufffd", "\ue000\uf8ff", "\U000f0000", "\U0010ffff", "\ufdd0", "\u0378", "\uffff",
    "supercalifragilisticexpialidocious", "pneumonoultramicroscopicsilicovolcanoconiosis", "a" * 100, "ab" * 150, "abc" * 60, "z" * 77, "\u00e9" * 60, "\u732b" * 40, "lo" * 40 + "l", "!" * 90, "?!" * 45, "-" * 33, "1" * 90, "_" * 17 + "x", ".,." * 20, "aaa aa a aaaa", "x" * 2000,
    " ".join(["word"] * 74), " ".join(["word"] * 75), " ".join(["word"] * 76), " ".join(["word"] * 200), ", ".join(["masterpiece", "best quality", "ultra detailed"] * 20),
    "hello\u0301world", "x\u0338y", "\u2260 =\u0338", "\u00c7a va?", "C\u0327a va?", "\u1ea5 \u00e2\u0301 a\u0302\u0301", "\U0001d400\U0001d41a \U0001d7d8", "\u24b6\u24d0", "\u02b0\u02bc\u02bcs", "\u0149", "\u2019s \u2018t", "\uff07s", "`s \u00b4s",
    "portrait of Zo\u00eb Kravitz, Greg Rutkowski, Wlop, Alphonse Mucha", "best quality,masterpiece,illustration,1girl", "a cat.a dog;a bird:a fish", "(((((((deep)))))))", "[from:to:0.5]", "\"quoted\" \u201cquoted\u201d \u00abquoted\u00bb", "100\u00b0C \u00b15 \u00b5m", "caf\u00e9's na\u00efve'll", "\u00c9'D \u00e9'd", "mother-in-law's co-op", "e.g. i.e. U.S.A.", "\u2014em\u2013en\u2212minus", "a\u0345 \u0399", "\u1e00\u0301", "\u0958\u0930", "\ufb1d \ufb2a", "\u2adc", "\U0001d15e", "\u0344 \u0374 \u037e \u0387", "\u1fef \u2000 \u2001",
]

POOLS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCXYZ", "0123456789", " \t\n", "'\",.;:!?-_()[]{}<>|/\\@#$%^&*+=~`", "\u00e4\u00f6\u00fc\u00df\u00e9\u00e8\u00ea\u00f1\u00e7\u00c4\u00d6\u00dc",
    "\u0300\u0301\u0308\u0327\u0323\u030a\u0345", "\u0430\u0431\u0432\u0413\u0414\u0401", "\u03b1\u03b2\u03a3\u03c2\u1f80", "\u4e2d\u6587\u732b\u65e5\u672c", "\u3042\u304b\u3099\u30a2\u30cf\u309a", "\uac00\ub098\u1100\u1161\u11a8", "\u05d0\u05b8\u0645\u064e", "\u0915\u094d\u093f\u0e01\u0e31",
    "\U0001f600\U0001f468\u200d\ufe0f\U0001f3fd\U0001f1e9", "\u200b\u00a0\u2003\u3000\u0085\u00ad\ufeff", "\u00bd\u00b2\u2460\u2167\u0663\uff15",
]


def byte_alphabet():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    codes = printable + [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(codes) - len(printable))]


def clip_files():
    merges = [tuple(line.split()) for line in gzip.open(MERGES).read().decode().split("\n")[1 : 49152 - 256 - 2 + 1]]
    letters = byte_alphabet()
    tokens = letters + [c + "</w>" for c in letters] + ["".join(m) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, merges


def random_prompts(count):
    rng = random.Random(5)
    words = ["photo", "don't", "it's", "caf\u00e9", "<|endoftext|>", "8k", "(red:1.3)", "\u732b", "\U0001f600", "I'm", "we'll", "\u00dcber"]
    prompts = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 12)):
            if rng.random() < 0.2:
                parts.append(rng.choice(words))
            else:
                pool = rng.choice(POOLS)
                parts.append("".join(rng.choice(pool) for _ in range(rng.randint(1, 5))))
            if rng.random() < 0.3:
                parts.append(" ")
        prompts.append("".join(parts))
    return prompts


def small_files():
    """A tokenizer of 300 odd ids with unknown bytes, another order of ids and a padding token of its own."""
    tokens = ["<|startoftext|>", "<|endoftext|>", "!"] + [c for c in "abcdefgh"] + [c + "</w>" for c in "abcdefgh"]
    merges = [("a", "b"), ("ab", "c"), ("ab", "c</w>"), ("d", "e</w>"), ("a", "a"), ("aa", "aa"), ("b", "c")]
    tokens += ["".join(m) for m in merges]
    return {token: i for i, token in enumerate(tokens)}, merges


def main():
    vocab, merges = clip_files()
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges)
    with open(FIXTURES / "tokenizer.jsonl", "w", encoding="ascii") as out:
        for prompt in HAND + random_prompts(250):
            ids = tokenizer(prompt).input_ids[1:-1]
            padded = tokenizer(prompt, padding="max_length", max_length=77, truncation=True).input_ids
            assert padded == ([49406] + ids[:75] + [49407] * 77)[: 1 + len(ids[:75]) + 1] + [49407] * (75 - len(ids[:75]))
            out.write(json.dumps({"text": prompt, "ids": ids}, separators=(",", ":")) + "\n")

    vocab, merges = small_files()
    small = CLIPTokenizer(vocab=vocab, merges=merges, pad_token="!")
    small.add_tokens(["<pet>"])
    small.save_pretrained(FIXTURES / "tokenizer_json")  # version 5: tokenizer.json
    two = FIXTURES / "tokenizer_two"  # as SD 1.5's own folder
    two.mkdir(exist_ok=True)
    (two / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (two / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    special = lambda text: {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    config = {"bos_token": special("<|startoftext|>"), "eos_token": special("<|endoftext|>"), "unk_token": special("<|endoftext|>"), "pad_token": "!", "tokenizer_class": "CLIPTokenizer"}
    (two / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (two / "added_tokens.json").write_text(json.dumps({"<pet>": len(vocab)}), encoding="utf-8")
    prompts = ["abc abcabc", "aaaa aaaaaaa", "de abde xyz", "a <pet> b<pet>", "<|endoftext|>a", "bc! bcbc", "zz\u00e9"]
    with open(FIXTURES / "tokenizer_small.jsonl", "w", encoding="ascii") as out:
        other = CLIPTokenizer.from_pretrained(two)
        for prompt in prompts:
            ids = small(prompt).input_ids[1:-1]
            assert other(prompt).input_ids[1:-1] == ids, prompt
            out.write(json.dumps({"text": prompt, "ids": ids}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
