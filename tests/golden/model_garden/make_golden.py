"""Make tiny checkpoints with TensorFlow Model Garden, and what its models say of a batch.

    python tests/golden/model_garden/make_golden.py

Needs tf-models-official 2.20.0 (made with TensorFlow 2.20.0, tf-keras 2.20.1, Python 3.11). Writes
one folder per checkpoint beside itself; `README.md` says what is in them.

The weights are drawn under the names and shapes of google-research/bert. Model Garden's own
converter makes the checkpoints in `CONVERTED` from them; those in `SAVED` come from Model Garden's
models, which get the same weights by assignment and are saved with `tf.train.Checkpoint`. Outputs
are those of a new model restored from the written files. What a tensor is in a checkpoint is told
by its value.
"""

import json
import logging
import pathlib
import shutil
import tempfile

import numpy as np
import tensorflow as tf
from official.legacy.bert import configs as legacy_configs
from official.nlp.configs import bert as bert_configs
from official.nlp.configs import encoders
from official.nlp.tasks import masked_lm
from official.nlp.tools import tf2_bert_encoder_checkpoint_converter as converter

# Distinct primes, but for the hidden size, which is a multiple of the number of heads.
CONFIG = dict(
    vocab_size=37,
    hidden_size=21,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=29,
    hidden_act="gelu",
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
    max_position_embeddings=19,
    type_vocab_size=2,
    initializer_range=0.02,
)
LENGTHS, LENGTH, PREDICTIONS = (13, 9, 5), 13, 4
# Folder: the converter's converted_model and checkpoint_model_name.
CONVERTED = {
    "v1_encoder": ("encoder", "encoder"),
    "v1_encoder_as_model": ("encoder", "model"),
    "v1_converted_pretrainer": ("pretrainer", "model"),
    "v1_converted_pretrainer_as_encoder": ("pretrainer", "encoder"),
}
# Folder: the encoder's type in Model Garden, whether the heads of pre-training are there.
SAVED = {
    "v1_pretrainer": ("bert", True),
    "v2_encoder": ("bert_v2", False),
    "v2_pretrainer": ("bert_v2", True),
}
# Not in google-research/bert: Model Garden's next sentence head has a pooler of its own.
HEAD_POOLER = "next_sentence/pooler_dense"


def make_weights(rng):
    """Draw every variable of google-research/bert, and of the head's pooler, none of them constant.

    Args:
        rng: A `numpy.random.Generator`.

    Returns:
        A dict of names to float32 arrays.
    """
    size, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    weights = {}

    def draw(name, *shape, mean=0.0, scale=0.3):
        weights[name] = rng.normal(mean, scale, shape).astype(np.float32)

    def norm(name):
        draw(f"{name}/LayerNorm/gamma", size, mean=1.0)
        draw(f"{name}/LayerNorm/beta", size)

    def dense(name, inputs, outputs):
        draw(f"{name}/kernel", inputs, outputs)
        draw(f"{name}/bias", outputs)

    draw("bert/embeddings/word_embeddings", CONFIG["vocab_size"], size)
    draw("bert/embeddings/position_embeddings", CONFIG["max_position_embeddings"], size)
    draw("bert/embeddings/token_type_embeddings", CONFIG["type_vocab_size"], size)
    norm("bert/embeddings")
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"bert/encoder/layer_{i}"
        for part in ("query", "key", "value"):
            dense(f"{layer}/attention/self/{part}", size, size)
        dense(f"{layer}/attention/output/dense", size, size)
        norm(f"{layer}/attention/output")
        dense(f"{layer}/intermediate/dense", size, inner)
        dense(f"{layer}/output/dense", inner, size)
        norm(f"{layer}/output")
    dense("bert/pooler/dense", size, size)
    dense("cls/predictions/transform/dense", size, size)
    norm("cls/predictions/transform")
    draw("cls/predictions/output_bias", CONFIG["vocab_size"])
    draw("cls/seq_relationship/output_weights", 2, size)
    draw("cls/seq_relationship/output_bias", 2)
    dense(HEAD_POOLER, size, size)
    return weights


def make_inputs(rng):
    """Make a batch with padded rows.

    Args:
        rng: A `numpy.random.Generator`.

    Returns:
        A dict of int32 arrays named as Model Garden names its inputs.
    """
    lengths = np.array(LENGTHS)[:, None]
    mask = np.arange(LENGTH) < lengths
    positions = [np.sort(rng.permutation(n)[:PREDICTIONS]) for n in LENGTHS]
    positions = np.array(positions) * (np.arange(PREDICTIONS) < lengths // 3)
    batch = dict(
        input_word_ids=rng.integers(1, CONFIG["vocab_size"], mask.shape) * mask,
        input_mask=mask,
        input_type_ids=(np.arange(LENGTH) >= lengths // 2) & mask,
        masked_lm_positions=positions,
    )
    return {name: array.astype(np.int32) for name, array in batch.items()}


def build(kind, heads):
    """Build a model of Model Garden as its configurations and its pre-training task do.

    Args:
        kind: The encoder's type, "bert" or "bert_v2".
        heads: None, "mlm" or "mlm and nsp".

    Returns:
        The encoder, or a `BertPretrainerV2` around it.
    """
    config = dict(
        vocab_size=CONFIG["vocab_size"],
        hidden_size=CONFIG["hidden_size"],
        num_layers=CONFIG["num_hidden_layers"],
        num_attention_heads=CONFIG["num_attention_heads"],
        hidden_activation=CONFIG["hidden_act"],
        intermediate_size=CONFIG["intermediate_size"],
        dropout_rate=CONFIG["hidden_dropout_prob"],
        attention_dropout_rate=CONFIG["attention_probs_dropout_prob"],
        max_position_embeddings=CONFIG["max_position_embeddings"],
        type_vocab_size=CONFIG["type_vocab_size"],
        initializer_range=CONFIG["initializer_range"],
    )
    encoder_config = encoders.EncoderConfig(type=kind, **{kind: config})
    if heads is None:
        model = encoders.build_encoder(encoder_config)
    else:
        head = bert_configs.ClsHeadConfig(
            inner_dim=CONFIG["hidden_size"], num_classes=2, dropout_rate=0.1, name="next_sentence"
        )
        task = masked_lm.MaskedLMConfig(
            model=bert_configs.PretrainerConfig(
                encoder=encoder_config, cls_heads=[head] if "nsp" in heads else []
            )
        )
        model = masked_lm.MaskedLMTask(task).build_model()
    batch = make_inputs(np.random.default_rng(0))
    if heads is None:
        del batch["masked_lm_positions"]
    model(batch)  # Creates the variables.
    return model


def encoder_variables(encoder):
    """Find the variables of an encoder by its attributes.

    Args:
        encoder: A `BertEncoder` or `BertEncoderV2` of Model Garden.

    Yields:
        Names in google-research/bert, and variables.
    """
    embeddings = "bert/embeddings"
    yield f"{embeddings}/word_embeddings", encoder._embedding_layer.embeddings
    yield f"{embeddings}/position_embeddings", encoder._position_embedding_layer.weights[0]
    yield f"{embeddings}/token_type_embeddings", encoder._type_embedding_layer.embeddings
    layers = {f"{embeddings}/LayerNorm": encoder._embedding_norm_layer}
    for i, block in enumerate(encoder.transformer_layers):
        name, attention = f"bert/encoder/layer_{i}", block._attention_layer
        for part in ("query", "key", "value"):
            layers[f"{name}/attention/self/{part}"] = getattr(attention, f"_{part}_dense")
        layers[f"{name}/attention/output/dense"] = attention._output_dense
        layers[f"{name}/attention/output/LayerNorm"] = block._attention_layer_norm
        layers[f"{name}/intermediate/dense"] = block._intermediate_dense
        layers[f"{name}/output/dense"] = block._output_dense
        layers[f"{name}/output/LayerNorm"] = block._output_layer_norm
    layers["bert/pooler/dense"] = encoder.pooler_layer
    yield from layer_variables(layers)


def layer_variables(layers):
    """Name the variables of dense layers and layer normalizations.

    Args:
        layers: A dict of names to layers.

    Yields:
        Names and variables.
    """
    for name, layer in layers.items():
        for part in ("gamma", "beta") if name.endswith("LayerNorm") else ("kernel", "bias"):
            yield f"{name}/{part}", getattr(layer, part)


def head_variables(pretrainer):
    """Find the variables of the heads of a pretrainer that has both.

    Args:
        pretrainer: A `BertPretrainerV2` of Model Garden.

    Yields:
        Names in google-research/bert, and variables.
    """
    head = pretrainer.classification_heads[0]
    yield "cls/predictions/output_bias", pretrainer.masked_lm.bias
    yield "cls/seq_relationship/output_weights", head.out_proj.kernel
    yield "cls/seq_relationship/output_bias", head.out_proj.bias
    yield from layer_variables(
        {
            "cls/predictions/transform/dense": pretrainer.masked_lm.dense,
            "cls/predictions/transform/LayerNorm": pretrainer.masked_lm.layer_norm,
            HEAD_POOLER: head.dense,
        }
    )


def shape_as(name, array, shape):
    """Give an array of google-research/bert the shape it has in Model Garden.

    Args:
        name: The variable's name in google-research/bert.
        array: Its value there.
        shape: Its shape in Model Garden.

    Returns:
        An array of that shape.
    """
    if name == "cls/seq_relationship/output_weights":
        array = array.T
    return array.reshape(shape)


def save_original(weights, prefix):
    """Save weights as google-research/bert does.

    Args:
        weights: A dict of names to arrays.
        prefix: Where to.
    """
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = {
            name: tf.compat.v1.Variable(array, name=name) for name, array in weights.items()
        }
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver(variables)
        saver.save(session, str(prefix), write_meta_graph=False)


def items_of(model, name):
    """Collect what Model Garden hands to `tf.train.Checkpoint`.

    Args:
        model: An encoder or pretrainer.
        name: What the checkpoint calls the model itself.

    Returns:
        A dict of names to objects.
    """
    return {**getattr(model, "checkpoint_items", {}), name: model}


def describe(prefix, weights):
    """Tell by value which variable each tensor of a checkpoint is.

    Args:
        prefix: The checkpoint.
        weights: A dict of names in google-research/bert to arrays.

    Returns:
        Lines of tensor name, shape and name in google-research/bert, tabs between them.
    """
    reader = tf.train.load_checkpoint(prefix)
    lines = []
    for tensor, shape in tf.train.list_variables(prefix):
        value, names = reader.get_tensor(tensor), ["-"]
        if tensor.startswith(("encoder/", "model/", "masked_lm/", "next_sentence..")):
            names = [
                name
                for name, array in weights.items()
                if array.size == value.size
                and np.array_equal(shape_as(name, array, value.shape), value)
            ]
        if len(names) != 1:
            raise ValueError(f"{tensor} is {names}")
        lines.append(f"{tensor}\t{shape}\t{names[0]}\n")
    return lines


def run(model, batch):
    """Run a model without dropout.

    Args:
        model: An encoder or pretrainer with dict outputs.
        batch: A dict of arrays.

    Returns:
        A dict of float32 arrays.
    """
    outputs = model(batch, training=False)
    outputs = {name: np.array(value) for name, value in outputs.items()}
    return {name: value.astype(np.float32) for name, value in outputs.items()}


def main():
    """Make all folders anew."""
    logging.disable(logging.WARNING)
    root = pathlib.Path(__file__).resolve().parent
    rng = np.random.default_rng(20)
    weights, batch = make_weights(rng), make_inputs(rng)
    encoder_batch = {name: x for name, x in batch.items() if name.startswith("input_")}
    config = legacy_configs.BertConfig.from_dict(CONFIG)

    for folder in [*CONVERTED, *SAVED]:
        shutil.rmtree(root / folder, ignore_errors=True)
        (root / folder).mkdir()
        (root / folder / "bert_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
        prefix = str(root / folder / "bert_model.ckpt")
        if folder in CONVERTED:
            converted, name = CONVERTED[folder]
            kind, heads = "bert", "mlm" if converted == "pretrainer" else None
            with tempfile.TemporaryDirectory() as original:
                original = pathlib.Path(original) / "bert_model.ckpt"
                save_original(weights, original)
                converter.convert_checkpoint(config, prefix, str(original), name, converted)
        else:
            kind, heads = SAVED[folder]
            heads = "mlm and nsp" if heads else None
            name = "model" if heads else "encoder"
            model = build(kind, heads)
            encoder = model.encoder_network if heads else model
            variables = dict(encoder_variables(encoder))
            variables.update(head_variables(model) if heads else ())
            if len(variables) != len(model.weights):
                raise ValueError(f"{len(variables)} variables found of {len(model.weights)}")
            for variable_name, variable in variables.items():
                array = shape_as(variable_name, weights[variable_name], variable.shape)
                variable.assign(array)
            tf.train.Checkpoint(**items_of(model, name)).save(prefix)
        (root / folder / "checkpoint").unlink()  # Holds times.
        prefix += "-1"

        (root / folder / "variables.tsv").write_text("".join(describe(prefix, weights)))
        model = build(kind, heads)
        status = tf.train.Checkpoint(**items_of(model, name)).restore(prefix)
        status.assert_consumed()
        used = batch if heads else encoder_batch
        outputs = run(model, used)
        np.savez_compressed(root / folder / "outputs.npz", **used, **outputs)
        print(folder, {name: value.shape for name, value in outputs.items()})


if __name__ == "__main__":
    main()
