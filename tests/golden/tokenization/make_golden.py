"""Make the golden values of the tokenizer tests by running google-research/bert's tokenization.py.

    python tests/golden/tokenization/make_golden.py --original=PATH/TO/bert --vocabularies=FOLDER

PATH/TO/bert is a checkout of google-research/bert at its last commit, eedf571. FOLDER holds the
four released vocabularies. Run it once under each Python, since the rules follow the interpreter's
version of Unicode: digests.json gains or replaces that version's entry.

Neither TensorFlow nor six is needed: the original uses one function of each, replaced here.
The strings to tokenize are defined here too, and the tests import them.
"""

import argparse
import hashlib
import importlib.util
import json
import pathlib
import random
import sys
import types
import unicodedata
from collections.abc import Iterable

FOLDER = pathlib.Path(__file__).resolve().parent

# Vocabulary: whether the original's own check wants lower-casing for its model.
VOCABULARIES = {
    "bert-base-uncased-vocab.txt": True,
    "bert-base-cased-vocab.txt": False,
    "bert-base-chinese-vocab.txt": True,
    "bert-base-multilingual-cased-vocab.txt": False,
}

BLOCK_SIZE = 0x4000
NUM_CODE_POINTS = 0x110000
FUZZ_SEEDS = 12
FUZZ_STRINGS = 1000


def load_original(checkout: str | pathlib.Path) -> types.ModuleType:
    """Import the original's tokenization.py with stand-ins for tensorflow and six."""
    tensorflow = types.ModuleType("tensorflow")
    tensorflow.gfile = types.SimpleNamespace(
        GFile=lambda path, mode: open(path, mode, encoding="utf-8", newline="\n")
    )
    six = types.ModuleType("six")
    six.PY2, six.PY3 = False, True
    spec = importlib.util.spec_from_file_location(
        "original_tokenization", pathlib.Path(checkout) / "tokenization.py"
    )
    module = importlib.util.module_from_spec(spec)
    stand_ins = {"tensorflow": tensorflow, "six": six}
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        spec.loader.exec_module(module)
    finally:
        for name, value in before.items():
            if value is None:
                del sys.modules[name]
            else:
                sys.modules[name] = value
    return module


def block_strings(block: int) -> list[str]:
    """Each code point of a block alone and between letters."""
    code_points = map(chr, range(block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE))
    return [text for char in code_points for text in (char, f"a{char}b")]


def _ranges(*bounds: tuple[int, int]) -> list[str]:
    return [chr(code_point) for first, last in bounds for code_point in range(first, last + 1)]


# What the fuzzed strings are made of. Everything of one alphabet is likely to meet its like.
ALPHABETS = [
    list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    list("etaoinshrdluETAOIN0123456789"),
    list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"),
    _ranges((0xC0, 0x17F), (0x1E00, 0x1EFF)),  # Latin with accents
    _ranges((0x300, 0x36F), (0x1AB0, 0x1AC0), (0x20D0, 0x20F0), (0xFE20, 0xFE2F)),  # marks
    ["e\u0301", "\u0301e", "a\u0323\u0302", "a\u0302\u0323", "\u0344", "\u1e69", "s\u0307\u0323"],
    list("ΣσςΑΒΩάΌἈᾳ\u0345\u0301'’.:\u00ad\u200d aΣ"),  # final sigma and what it looks past
    list("İIıiŞĞß\u0307ﬀﬃŉǰΐ"),  # lower-casing that lengthens, ligatures
    _ranges((0x391, 0x3C9), (0x400, 0x45F)),
    _ranges((0x5D0, 0x5EA), (0x591, 0x5C7), (0x200E, 0x200F), (0x202A, 0x202E)),  # Hebrew, bidi
    _ranges((0x621, 0x652), (0x660, 0x669), (0x600, 0x605)),  # Arabic
    _ranges((0x900, 0x97F), (0xE01, 0xE5B)),  # Devanagari, Thai
    _ranges((0x4E00, 0x4EFF), (0x3400, 0x3410), (0x2FA10, 0x2FA1F), (0xF900, 0xF920)),  # Han
    _ranges((0x20000, 0x20008), (0x2A6D0, 0x2A705), (0x2B810, 0x2B825), (0x2CEA0, 0x2CEB5)),
    _ranges((0x3041, 0x30FF), (0x3001, 0x3020), (0xFF01, 0xFF9F)),  # kana, full and half width
    _ranges((0xAC00, 0xAC40), (0x1100, 0x1112), (0x1161, 0x1175), (0x11A8, 0x11C2)),  # Hangul
    [*"👨👩👧👦🏳🌈❤", "\u200d", "\ufe0f", "\U0001f3fd", "\U000e0067", "\U000e007f", "🇩🇪", "👩‍💻"],
    _ranges((0x00, 0x1F), (0x7F, 0x9F)),  # control
    [" ", "  ", "\t", "\n", "\r\n", "\xa0", "\u1680", "\u2003", "\u202f", "\u205f", "\u3000"],
    ["\x85", "\x1c", "\x1f", "\x0b", "\x0c", "\u2028", "\u2029", "\u200b", "\ufeff", "\u180e"],
    ["\u00ad", "\u2060", "\ufffd", "\0", "\ufffe", "\ufff9", "\u061c", "\ue000", "\U0010fffd"],
    [chr(code_point) for code_point in (0xD800, 0xDBFF, 0xDC00, 0xDFFF)],  # lone surrogates
    _ranges((0x2000, 0x206F), (0x20A0, 0x20BF), (0x2190, 0x21FF)),
    _ranges((0x1D400, 0x1D45F), (0x1F100, 0x1F16F), (0x10400, 0x1042F), (0x1E900, 0x1E943)),
    ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "[PAD]", "##ing", "##", "[unused1]", "[mask]"],
    [
        "the",
        "The",
        "unaffable",
        "running",
        "naïve",
        "café",
        "Москва",
        "don't",
        "U.S.",
        "3.14",
        "e-mail",
    ],
]


def fuzz_strings(seed: int) -> list[str | bytes]:
    """FUZZ_STRINGS strings, some of them bytes with errors, the same under every Python."""
    rng = random.Random(seed)

    def below(n: int) -> int:  # random() is the one method that never changes
        return int(rng.random() * n)

    strings: list[str | bytes] = []
    for _ in range(FUZZ_STRINGS):
        parts = []
        for _ in range(1 + below(10)):
            draw = below(40)
            if draw == 0:  # any code point of any plane
                parts.append("".join(chr(below(NUM_CODE_POINTS)) for _ in range(1 + below(6))))
            elif draw == 1:  # words about the limit of 200 characters
                alphabet = ALPHABETS[(0, 3, 8, 15)[below(4)]]
                parts.append(
                    "".join(alphabet[below(len(alphabet))] for _ in range(97 + below(110)))
                )
            elif draw == 2:
                unit = ("a", "e\u0301", "á", "Σ", "the", "각", "!a")[below(7)]
                parts.append(unit * (199 + below(4)))
            else:
                alphabet = ALPHABETS[below(len(ALPHABETS))]
                parts.extend(alphabet[below(len(alphabet))] for _ in range(1 + below(7)))
            if below(3) == 0:
                parts.append(" ")
        text = "".join(parts)
        if below(10) == 0:
            data = bytearray(text.encode("utf-8", "surrogatepass"))
            for _ in range(below(4)):
                if data:
                    data[below(len(data))] = below(256)
            strings.append(bytes(data[: len(data) - below(3)]))
        else:
            strings.append(text)
    return strings


# Strings whose characters have long had their properties: the result is the same in every version
# of Unicode that a supported Python has.
HARD_STRINGS: list[str | bytes] = [
    "",
    " ",
    "\t\n\r \xa0\u3000",
    "\0\ufffd\u200b",
    "Hello, world!",
    "unaffable UNAFFABLE unaffabley",
    "don't stop-it (now) [really] {yes}",
    "$5+4=9<10>8^2`x|y~z",
    "a\tb\nc\r\nd",
    "a\x85b c\x1fd e\x0bf g\x0ch i\x1cj",  # str.split() would cut where these vanish
    "a\u2028b\u2029c d\u2028",  # kept by the cleaning, cut by the split
    "a\xa0b\u2003c\u3000d\u1680e",
    "a\u200bb a\ufeffb a\u00adb a\u180eb a\0b a\ufffdb",
    "café CAFÉ cafe\u0301 CAFE\u0301",
    "a\u0323\u0302 a\u0302\u0323 ậ \u0344 \u0301 \u0301a",
    "ΣΑΣ ΣΑΣ. ΣΑΣ.Α Σ ΑΣ'Α ΑΣ\u00adΑ ΑΣ\u0301 ΑΣ中Α",
    "İstanbul ISTANBUL ıI İ\u0307 i\u0307",
    "ß ẞ ﬁ ﬃ ½ ™ ① … ª",
    "full-width ＡＢＣ，！ １２",
    "中文字中 a中b 中a文 豈\uf900 \u3400 \U00020000",
    "ひらがな カタカナ ｶﾞ が か\u3099 々",
    "한국 각 \u1100\u1161\u11a8",
    "नमस्ते हिन्दी",
    "שָׁלוֹם \u200fשלום\u200e",
    "العَرَبِيَّة ٠١٢",
    "Việt Nam tiếng",
    "👨\u200d👩\u200d👧 ❤\ufe0f 🏳\ufe0f\u200d🌈 🇩🇪 a👩b",
    "[MASK] [CLS] [SEP] [UNK] [PAD] [mask] the[MASK]the",
    "##ing a##ing # ##",
    "«quoted» “quoted” ‘q’ – — ‽ ¿que? ·;·",
    "\u037e \u1fef \u2000 \u212b \u2126",  # NFD gives ; ` space Å Ω
    "a" * 200,
    "a" * 201,
    "e\u0301" * 200,
    "é" * 201,
    "the" * 66 + "ab",
    "the" * 66 + "abc",
    "!" * 250,
    "\ud800 a\udfffb",
    "\ue000 a\U0010fffdb",
    b"bytes caf\xc3\xa9",
    b"a\xffb \xc3 \xe4\xb8 \xe4\xb8\xad",
    b"\xed\xa0\x80a",
]


def to_json(text: str | bytes) -> str | dict[str, str]:
    """Return a string as JSON can hold it; bytes become {"bytes": hexadecimal}."""
    return text if isinstance(text, str) else {"bytes": text.hex()}


def from_json(value: str | dict[str, str]) -> str | bytes:
    """Undo `to_json`."""
    return value if isinstance(value, str) else bytes.fromhex(value["bytes"])


def digest(tokenizer, strings: Iterable[str | bytes]) -> str:
    """16 hexadecimal digits for what a tokenizer makes of many strings."""
    text = "\n".join(" ".join(tokenizer.tokenize(string)) for string in strings)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def main() -> None:
    """Write hard_strings.json and this Unicode version's part of digests.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--original", required=True, help="checkout of google-research/bert")
    parser.add_argument("--vocabularies", required=True, help="folder of released vocabularies")
    arguments = parser.parse_args()
    original = load_original(arguments.original)

    rows = []
    tokenizers = [original.FullTokenizer(FOLDER / "tiny_vocab.txt", low) for low in (True, False)]
    for text in HARD_STRINGS:
        uncased, cased = (tokenizer.tokenize(text) for tokenizer in tokenizers)
        rows.append({"text": to_json(text), "uncased": uncased, "cased": cased})
    lines = ",\n".join(json.dumps(row) for row in rows)
    (FOLDER / "hard_strings.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")

    digests = {}
    for name, do_lower_case in VOCABULARIES.items():
        path = str(pathlib.Path(arguments.vocabularies) / name)
        tokenizer = original.FullTokenizer(path, do_lower_case)
        other = original.FullTokenizer(path, not do_lower_case)
        digests[name] = {
            "blocks": [
                digest(tokenizer, block_strings(block))
                for block in range(NUM_CODE_POINTS // BLOCK_SIZE)
            ],
            "fuzz": [digest(tokenizer, fuzz_strings(seed)) for seed in range(FUZZ_SEEDS)],
            "fuzz_other_casing": [digest(other, fuzz_strings(seed)) for seed in range(FUZZ_SEEDS)],
        }
    path = FOLDER / "digests.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[unicodedata.unidata_version] = digests
    path.write_text(json.dumps(known, indent=0, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
