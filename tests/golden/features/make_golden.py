"""Make the golden values of the feature extraction tests.

    python tests/golden/features/make_golden.py --original=CHECKOUT

CHECKOUT is one of google-research/bert (eedf5716c was used), whose extract_features.py is run but
for its model; the hidden states are those of transformers (5.23.0 with torch 2.13.0), computed in
float64, one line at a time without padding.
"""

import argparse
import io
import json
import pathlib
import sys
import types

FOLDER = pathlib.Path(__file__).resolve().parent
MODEL = FOLDER.parent / "transformers" / "BertModel"
LENGTHS = (3, 5, 8, 13, 19)
LENGTH, LAYERS = 13, (-1, 0)

PIECES = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] the a dog cat sat ran un ##aff ##able ##ing ##s on mat . , ! | "
    "it is no not jack ##son ##ville who was jim hen pup mas cafe e ##t"
).split()

LINES = (
    "the dog sat on the mat.",
    "who was Jim Henson ? ||| jim was a pup",
    "",
    "  unaffable cats\tran  ",
    "a ||| b ||| the cat",  # the last bars part
    "is it |||no",  # no bars between spaces
    "the dog ||| ",  # nothing after the bars: what strip() leaves has none between spaces
    "||| the dog",
    " ||| the dog",
    "it ||| \u0000\u200b x",  # what vanishes in cleaning is still a text, of x
    "a dog ||| \u200b",  # and here of nothing: one text
    "the the the the the the the the the the the ||| a a a a a a",
    "a a a ||| the the the the the the the the the the the the the",
    "no not no not no not no not no not no not no not no not no not no not no not",
    "\u2028the cat\u00a0sat \u0085 caf\u00e9\r",
    "[CLS] is [MASK]",
)


def original(checkout: str) -> types.ModuleType:
    """Import the original's extract_features.py with a stub in the place of TensorFlow."""
    stub = types.ModuleType("tensorflow")
    nothing = lambda *_, **__: None  # noqa: E731
    stub.flags = types.SimpleNamespace(
        FLAGS=None, DEFINE_string=nothing, DEFINE_integer=nothing, DEFINE_bool=nothing
    )
    stub.logging = types.SimpleNamespace(info=nothing)
    stub.gfile = types.SimpleNamespace(GFile=_GFile)
    saved = {name: sys.modules.get(name) for name in ("tensorflow", "modeling", "tokenization")}
    sys.path.insert(0, checkout)
    try:
        sys.modules.pop("tokenization", None)
        sys.modules["tensorflow"], sys.modules["modeling"] = stub, types.ModuleType("modeling")
        module = types.ModuleType("original_extract_features")
        source = pathlib.Path(checkout, "extract_features.py").read_text(encoding="utf-8")
        exec(compile(source, "extract_features.py", "exec"), module.__dict__)  # noqa: S102
    finally:
        sys.path.remove(checkout)
        for name, found in saved.items():
            sys.modules.pop(name, None)
            if found is not None:
                sys.modules[name] = found
    return module


class _GFile(io.TextIOWrapper):
    """As tf.gfile.GFile: only line feeds end lines, and they stay as they are."""

    def __init__(self, path: str, mode: str):
        del mode
        super().__init__(open(path, "rb"), encoding="utf-8", newline="\n")


def pack(module: types.ModuleType, lines: str, vocab: str) -> dict[str, list]:
    """Return what the original makes of a file: length -> tokens, ids and segments of each line."""
    tokenizer = module.tokenization.FullTokenizer(vocab_file=vocab, do_lower_case=True)
    packed = {}
    for length in LENGTHS:
        examples = module.read_examples(lines)
        packed[str(length)] = [
            [feature.tokens, feature.input_ids, feature.input_mask, feature.input_type_ids]
            for feature in module.convert_examples_to_features(examples, length, tokenizer)
        ]
    return packed


def main() -> None:
    """Write the files."""
    import torch
    import transformers

    parser = argparse.ArgumentParser()
    parser.add_argument("--original", required=True)
    arguments = parser.parse_args()
    vocab, lines = FOLDER / "vocab.txt", FOLDER / "lines.txt"
    vocab.write_text("\n".join(PIECES[:37]) + "\n", encoding="utf-8")
    lines.write_bytes("".join(f"{line}\n" for line in LINES).encode())
    module = original(arguments.original)
    packed = pack(module, str(lines), str(vocab))
    # One line for each length: short enough to compare.
    text = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in packed.items())
    (FOLDER / "packed.json").write_text("{" + text + "}\n", encoding="utf-8")

    model = transformers.BertModel.from_pretrained(MODEL, dtype=torch.float64).eval()
    with open(FOLDER / "features.jsonl", "w", encoding="utf-8") as writer:
        for number, (tokens, ids, mask, types_) in enumerate(packed[str(LENGTH)]):
            size = sum(mask)
            with torch.no_grad():
                states = model(
                    torch.tensor([ids[:size]]),
                    token_type_ids=torch.tensor([types_[:size]]),
                    output_hidden_states=True,
                ).hidden_states[1:]
            features = [
                {
                    "token": token,
                    "layers": [
                        {
                            "index": layer,
                            "values": [round(float(x), 6) for x in states[layer][0, position]],
                        }
                        for layer in LAYERS
                    ],
                }
                for position, token in enumerate(tokens)
            ]
            line = {"linex_index": number, "features": features}
            writer.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
