"""Functional models of the encoder and a head, one for each kind of task.

Each function takes and refuses what `encoder.bert_encoder` does, and its model has the same inputs;
its docstring tells what differs. `num_labels` is the number of logits for each thing labelled.

Shapes: B batch, F sequence length, P predictions, C choices, W windows, D hidden size, V
vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import keras

from bert_tf.config import BertConfig
from bert_tf.models import heads
from bert_tf.models.encoder import INPUT_NAMES, Bert, bert_encoder, encoder_inputs, packed_inputs
from bert_tf.models.layers import Dropout
from bert_tf.models.reported_loss import PredictionModel


def _encode(config: BertConfig, inputs: dict, output: str, recompute, dtype):
    """Return "pooled_output" or "sequence_output" of a Bert, or of a BiLSTM over one."""
    pooled = output == "pooled_output"
    has_lstm = getattr(config, "bilstm", False)  # what is no BertConfig is refused by Bert
    bert = Bert(
        config, train_pooler=pooled and not has_lstm, recompute=recompute, name="bert", dtype=dtype
    )
    encoded = bert(inputs)
    if not has_lstm:
        return encoded[output]
    lstm = heads.BiLstm(config, return_sequences=not pooled, name="bilstm", dtype=dtype)
    return lstm(encoded["sequence_output"], inputs["input_mask"])


def _grouped_inputs() -> dict[str, keras.KerasTensor]:
    """Return the inputs of an encoder for several sequences an example: [B, C, F]."""
    return {key: keras.Input((None, None), dtype="int32", name=key) for key in encoder_inputs()}


def _merged(inputs: dict[str, keras.KerasTensor], dtype) -> dict[str, keras.KerasTensor]:
    """Return rows [B * C, F] of the sequences of all examples."""
    return {
        key: heads.MergeChoices(name=f"merge_{key}", dtype=dtype)(value)
        for key, value in inputs.items()
    }


def bert_pretrainer(
    config: BertConfig,
    *,
    packed: bool = False,
    hidden_states: bool = False,
    recompute: str | Sequence[int] = "none",
    dtype=None,
    name: str = "bert_pretrainer",
) -> keras.Model:
    """Make the pre-training model: encoder, masked LM head, next sentence head.

    Inputs: also int32 "masked_lm_positions" [B, P], and for `packed` rows, of which each holds
    several sequences, those of `encoder.packed_inputs`. The weights are the same.

    Outputs, a dict of float32: "masked_lm_logits" [B, P, V], "next_sentence_logits" [B, 2], or
    [B, K, 2] of packed rows. With `next_sentence_prediction` off the latter is missing, and the
    pooler, though it is there for fine-tuning, stays as it was initialised: nothing trains it, so
    its variables are not trainable. With `hidden_states` also "hidden_states_0" (the embeddings) to
    "hidden_states_L", each [B, F, D].

    It is compiled with `pretraining_compile_arguments`.
    """
    inputs = {**encoder_inputs(), **(packed_inputs() if packed else {})}
    bert = Bert(
        config,
        hidden_states,
        train_pooler=config.next_sentence_prediction,
        recompute=recompute,
        name="bert",
        dtype=dtype,
    )
    encoded = dict(bert(inputs))
    states = encoded.pop("hidden_states", ())
    positions = keras.Input((None,), dtype="int32", name="masked_lm_positions")
    outputs = heads.PretrainingHeads(config, name="cls", dtype=dtype)(encoded, positions)
    outputs |= {f"hidden_states_{number}": value for number, value in enumerate(states)}
    return PredictionModel({**inputs, "masked_lm_positions": positions}, outputs, name=name)


# The original's dropout before a classifier, whatever the configuration says.
_HEAD_DROPOUT = 0.1


def bert_classifier(
    config: BertConfig,
    num_labels: int,
    *,
    window_pooling: str | None = None,
    dropout_rate: float = _HEAD_DROPOUT,
    recompute: str | Sequence[int] = "none",
    dtype=None,
    name: str = "bert_classifier",
) -> keras.Model:
    """Make a model that classifies a text or a pair, or with one label gives a number.

    Output: float32 logits [B, num_labels]. `dropout_rate` is that of the pooled output.

    With `window_pooling`, one of `config.WINDOW_POOLINGS` (None for what the configuration has), it
    classifies documents that are cut into windows: inputs are [B, W, F] with any W, and the pooled
    outputs of a document's windows become one (`heads.WindowPooling`) before dropout and head. A
    window without a token is padding: nothing depends on how many there are. Documents of one
    window have the outputs and gradients of the same model without window_pooling.

    Reference: `create_model` of google-research/bert `run_classifier.py`.
    """
    if window_pooling is not None:
        config = dataclasses.replace(config, window_pooling=window_pooling)
    if getattr(config, "window_pooling", None) is None:  # what is no BertConfig is refused by Bert
        inputs = encoder_inputs()
        pooled = _encode(config, inputs, "pooled_output", recompute, dtype)
    else:
        inputs = _grouped_inputs()
        rows = _merged(inputs, dtype)
        pooled = _encode(config, rows, "pooled_output", recompute, dtype)  # [B * W, D]
        pooling = heads.WindowPooling(config, name="window_pooling", dtype=dtype)
        pooled = pooling(pooled, inputs["input_mask"])
    pooled = Dropout(dropout_rate, name="dropout", dtype=dtype)(pooled)
    logits = heads.ClassificationHead(config, num_labels, name="classifier", dtype=dtype)(pooled)
    return keras.Model(inputs, logits, name=name)


def parts_of_windows(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Take a classifier of windows apart, so that these can be encoded some at a time.

    Args:
        model: as `bert_classifier` makes it with a window_pooling.

    Returns:
        The model of windows, from a list of input_ids, input_mask and segment_ids [N, F] to
        [N, D]; and that of documents, from a list of rows [B * W, D] of such outputs and input_mask
        [B, W, F] to the model's output. They share its weights.
    """
    pooled, input_mask = model.get_layer("window_pooling").input
    rows = [model.get_layer(f"merge_{name}").output for name in INPUT_NAMES]
    return (
        keras.Model(rows, pooled, name="windows"),
        keras.Model([pooled, input_mask], model.output, name="documents"),
    )


def bert_span_labeler(
    config: BertConfig,
    *,
    recompute: str | Sequence[int] = "none",
    dtype=None,
    name: str = "bert_span_labeler",
) -> keras.Model:
    """Make a model that finds the answer to a question as a span of the second segment (SQuAD).

    Outputs, a dict of float32 [B, F]: "start_logits" and "end_logits". Nothing reads the pooled
    output, so the pooler is not trainable.

    Reference: `create_model` of google-research/bert `run_squad.py`.
    """
    inputs = encoder_inputs()
    sequence = _encode(config, inputs, "sequence_output", recompute, dtype)
    return keras.Model(inputs, heads.SpanHead(config, name="cls", dtype=dtype)(sequence), name=name)


def bert_token_classifier(
    config: BertConfig,
    num_labels: int,
    *,
    dropout_rate: float = _HEAD_DROPOUT,
    recompute: str | Sequence[int] = "none",
    dtype=None,
    name: str = "bert_token_classifier",
) -> keras.Model:
    """Make a model that labels each word piece, as for named entities.

    Output: float32 logits [B, F, num_labels]. Nothing reads the pooled output, so the pooler is not
    trainable. `dropout_rate` is that of the sequence output.

    Reference: the paper, section 5.3.
    """
    inputs = encoder_inputs()
    sequence = _encode(config, inputs, "sequence_output", recompute, dtype)
    sequence = Dropout(dropout_rate, name="dropout", dtype=dtype)(sequence)
    head = heads.TokenClassificationHead(
        config, num_labels, name="token_classification", dtype=dtype
    )
    return PredictionModel(inputs, head(sequence), name=name)


def bert_multiple_choice(
    config: BertConfig,
    *,
    dropout_rate: float = _HEAD_DROPOUT,
    recompute: str | Sequence[int] = "none",
    dtype=None,
    name: str = "bert_multiple_choice",
) -> keras.Model:
    """Make a model that scores choices, each a sequence of its own (SWAG).

    Inputs: each [B, C, F] for C choices, any number of them. Output: float32 logits [B, C], whose
    softmax is over the choices. `dropout_rate` is that of the pooled output.

    Reference: the paper, section 4.4. Its head is a vector alone; the bias here, which a softmax
    over choices does not see, is there because transformers' class has one.
    """
    inputs = _grouped_inputs()
    rows = _merged(inputs, dtype)
    pooled = _encode(config, rows, "pooled_output", recompute, dtype)
    pooled = Dropout(dropout_rate, name="dropout", dtype=dtype)(pooled)
    scores = heads.MultipleChoiceHead(config, 1, name="multiple_choice", dtype=dtype)(pooled)
    logits = heads.SplitChoices(name="logits", dtype=dtype)(scores, inputs["input_ids"])
    return keras.Model(inputs, logits, name=name)


def bert_next_sentence_predictor(
    config: BertConfig,
    *,
    recompute: str | Sequence[int] = "none",
    dtype=None,
    name: str = "bert_next_sentence_predictor",
) -> keras.Model:
    """Make a model that tells whether the second segment follows the first.

    Output: float32 logits [B, 2], 0 meaning that it does.

    Reference: `get_next_sentence_output` of google-research/bert `run_pretraining.py`.
    """
    inputs = encoder_inputs()
    pooled = Bert(config, recompute=recompute, name="bert", dtype=dtype)(inputs)["pooled_output"]
    logits = heads.NextSentenceScope(config, name="cls", dtype=dtype)(pooled)
    return keras.Model(inputs, logits, name=name)


def bert_sentence_encoder(
    config: BertConfig,
    *,
    pooling: str = "mean",
    normalize: bool = False,
    grouped: bool = False,
    recompute: str | Sequence[int] = "none",
    dtype=None,
    name: str = "bert_sentence_encoder",
) -> keras.Model:
    """Make a model that gives each text a vector, so that like texts have like vectors.

    Its weights are the encoder's alone: `load_checkpoint(model, path, heads=False)` takes them from
    any BERT. Nothing reads the pooled output, so the pooler is not trainable.

    Output: float32 [B, D]. For training `grouped` takes C texts an example, that are compared with
    each other: inputs [B, C, F] give [B, C, D], which `training.losses.MultipleNegativesLoss` and
    `CosineSimilarityLoss` take.

    Args:
        config: the model's configuration.
        pooling: "mean" or "max" over all pieces, [CLS] and [SEP] included, or "cls", the last
            state of the first.
        normalize: whether vectors get length 1, so that their dot product is their cosine.
        grouped: whether an example is several texts.
        recompute: see `Bert`.
        dtype: a Keras dtype policy.
        name: the model's name.

    Raises:
        ValueError: an argument is wrong; or the configuration has a BiLSTM, whose states are not
            the encoder's.

    Reference: Reimers and Gurevych, Sentence-BERT (arXiv 1908.10084), section 3.
    """
    if getattr(config, "bilstm", False):
        raise ValueError("config: a sentence encoder has no BiLSTM")
    rows = inputs = encoder_inputs()
    if grouped:
        inputs = _grouped_inputs()
        rows = _merged(inputs, dtype)
    sequence = _encode(config, rows, "sequence_output", recompute, dtype)
    pool = heads.SentencePooling(pooling, normalize, name="pooling", dtype=dtype)
    vectors = pool(sequence, rows["input_mask"])
    if grouped:
        vectors = heads.SplitTexts(name="vectors", dtype=dtype)(vectors, inputs["input_ids"])
    return keras.Model(inputs, vectors, name=name)


@dataclasses.dataclass(frozen=True)
class Head:
    """A kind of model.

    Attributes:
        make: (config, ...) -> the model.
        has_labels: whether `make` takes num_labels.
        has_dropout: whether `make` takes dropout_rate.
        tuned: (config, ...) -> the model that is fine-tuned, where it is another with the same
            weights.
    """

    make: Callable[..., keras.Model]
    has_labels: bool = False
    has_dropout: bool = False
    tuned: Callable[..., keras.Model] | None = None


HEADS = {
    "encoder": Head(bert_encoder, tuned=functools.partial(bert_sentence_encoder, grouped=True)),
    "pretraining": Head(bert_pretrainer),
    "next_sentence": Head(bert_next_sentence_predictor),
    "classification": Head(bert_classifier, has_labels=True, has_dropout=True),
    "span": Head(bert_span_labeler),
    "token_classification": Head(bert_token_classifier, has_labels=True, has_dropout=True),
    "multiple_choice": Head(bert_multiple_choice, has_dropout=True),
}
