"""Make tiny models of every class of BERT in transformers, and what they say of a batch.

    python tests/golden/transformers/make_golden.py

Needs torch and transformers (made with torch 2.13.0, transformers 5.23.0, safetensors 0.8.0).
Writes one folder per class beside itself; `README.md` says what is in them. A second run gives the
same bytes.
"""

import pathlib
import shutil

import numpy as np

# Distinct primes, but for the hidden size, which is a multiple of the number of heads.
SIZES = dict(
    vocab_size=37,
    hidden_size=21,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=29,
    max_position_embeddings=19,
    type_vocab_size=2,
)
LENGTHS, LENGTH, CHOICES = (13, 9, 5), 13, 5
# Class: its configuration besides the sizes.
MODELS = {
    "BertModel": {},
    "BertForPreTraining": {},
    "BertForMaskedLM": {"hidden_act": "gelu_new"},
    "BertForNextSentencePrediction": {},
    "BertForSequenceClassification": {
        "id2label": dict(enumerate(("awful", "bad", "so-so", "good", "très bon")))
    },
    "BertForQuestionAnswering": {},
    "BertForTokenClassification": {"id2label": dict(enumerate(("O", "B-PER", "I-PER")))},
    "BertForMultipleChoice": {},
}
SHARDED = ("BertForPreTraining", "10KB")
OLD_NAMES = "BertModel"


def make_batch(rng, choices=None):
    """Make padded sequences, [B, F] or [B, C, F]."""
    lengths = np.array(LENGTHS)
    if choices is not None:
        lengths = rng.integers(2, LENGTH + 1, (len(LENGTHS), choices))
    mask = np.arange(LENGTH) < lengths[..., None]
    batch = {
        "input_ids": rng.integers(1, SIZES["vocab_size"], mask.shape) * mask,
        "attention_mask": mask,
        "token_type_ids": (np.arange(LENGTH) >= lengths[..., None] // 2) & mask,
    }
    return {name: array.astype(np.int32) for name, array in batch.items()}


def make_model(name, rng, **arguments):
    """Make a model none of whose weights is constant, for evaluation.

    Args:
        name: of a class of transformers.
        rng: a `numpy.random.Generator`.
        **arguments: of `transformers.BertConfig`.
    """
    import torch
    import transformers

    model = getattr(transformers, name)(transformers.BertConfig(**arguments))
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            mean = 1.0 if path.endswith("LayerNorm.weight") else 0.0
            value = rng.normal(mean, 0.3, tuple(parameter.shape)).astype(np.float32)
            parameter.copy_(torch.from_numpy(value))
    return model.eval()


def run(model, batch):
    """Return the outputs by name as arrays, all hidden states stacked."""
    import torch

    tensors = {name: torch.tensor(value, dtype=torch.long) for name, value in batch.items()}
    with torch.no_grad():
        outputs = dict(model(**tensors, output_hidden_states=True))
    outputs["hidden_states"] = torch.stack(outputs["hidden_states"])
    return {name: value.numpy() for name, value in outputs.items()}


def write_old_names(path):
    """Rename the weights of every LayerNorm as in files of 2018 and 2019."""
    import safetensors.torch

    tensors = safetensors.torch.load_file(path)
    for new, old in (("weight", "gamma"), ("bias", "beta")):
        end = f"LayerNorm.{new}"
        for name in [name for name in tensors if name.endswith(end)]:
            tensors[name.removesuffix(new) + old] = tensors.pop(name)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def main():
    for seed, (name, arguments) in enumerate(MODELS.items()):
        rng = np.random.default_rng(seed)
        folder = pathlib.Path(__file__).parent / name
        shutil.rmtree(folder, ignore_errors=True)
        batch = make_batch(rng, CHOICES if name == "BertForMultipleChoice" else None)
        model = make_model(name, rng, **SIZES, **arguments)
        model.save_pretrained(folder, **({"max_shard_size": SHARDED[1]} if name in SHARDED else {}))
        if name == OLD_NAMES:
            write_old_names(folder / "model.safetensors")
        # In float64, which all machines agree on to the last digit of float32.
        outputs = {
            key: value.astype(np.float32) for key, value in run(model.double(), batch).items()
        }
        if name != "BertModel":
            del outputs["hidden_states"]
        np.savez_compressed(folder / "outputs.npz", **batch, **outputs)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{folder.name}: {size} bytes; {', '.join(outputs)}")


if __name__ == "__main__":
    main()
