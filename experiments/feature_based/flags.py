"""Flags of the feature-based approach."""

from __future__ import annotations

import functools

from absl import flags

from data_prep.finetuning import ner

_UNSUPPORTED = ("use_tpu", "master", "tpu_name", "tpu_zone", "gcp_project")


# === The model ===


def define_model_flags(values: flags.FlagValues) -> None:
    """Define the flags that name a pre-trained model, and the original's of TPUs."""
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    boolean = functools.partial(flags.DEFINE_bool, flag_values=values)
    text("model_dir", None, "Model, in place of the next three: anything that load_bert reads.")
    text("bert_config_file", None, "Configuration of the model.")
    text("init_checkpoint", None, "Weights of the model.")
    text("vocab_file", None, "Vocabulary of the model.")
    boolean(
        "do_lower_case",
        None,
        "Casing; by default true with vocab_file, and with model_dir what lies there.",
    )
    boolean("use_tpu", False, "Not supported.")
    flags.DEFINE_integer("num_tpu_cores", 8, "Without effect.", flag_values=values)
    boolean("use_one_hot_embeddings", False, "Without effect: the results are the same.")
    for name in ("master", "tpu_name", "tpu_zone", "gcp_project"):
        text(name, None, "Not supported.")


def check_model_flags(values: flags.FlagValues) -> None:
    """Refuse flags that do not name one model; ValueError."""
    if used := [f"--{name}" for name in _UNSUPPORTED if getattr(values, name)]:
        raise ValueError(
            f"{', '.join(used)}: TPUs and TensorFlow masters are not supported; drop these flags "
            "to run on this machine's GPU or CPU"
        )
    names = ("bert_config_file", "init_checkpoint", "vocab_file")
    given = [f"--{name}" for name in names if getattr(values, name)]
    if values.model_dir and given:
        raise ValueError(f"expected --model_dir or {', '.join(given)}, got both")
    if not values.model_dir and len(given) < len(names):
        missing = ", ".join(f"--{name}" for name in names if f"--{name}" not in given)
        raise ValueError(f"expected --model_dir, or all three of its parts; missing: {missing}")


ALL_SIX = "all_six"
CHOICES = (  # those of models.bilstm_tagger, which loads Keras
    "embeddings",
    "second_to_last",
    "last",
    "weighted_sum_last_four",
    "concat_last_four",
    "weighted_sum_all",
)


FLAG_NAMES = (
    *("train_file", "eval_file", "test_file", "model_dir", "bert_config_file", "init_checkpoint"),
    *("vocab_file", "do_lower_case", "features", "document_context", "max_seq_length"),
    *("token_column", "tag_column", "tag_scheme", "num_train_epochs", "train_batch_size"),
    *("learning_rate", "dropout_rate", "lstm_size", "seeds"),
)


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of the script."""
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    number = functools.partial(flags.DEFINE_float, flag_values=values)
    choice = functools.partial(flags.DEFINE_enum, flag_values=values)
    boolean = functools.partial(flags.DEFINE_bool, flag_values=values)
    text("train_file", None, "Tagged words to train on.", required=True)
    text("eval_file", None, "Tagged words that choose the epoch.", required=True)
    text("test_file", None, "Tagged words to evaluate each tagger on at last.")
    text("output_dir", None, "Folder of results and taggers.", required=True)
    define_model_flags(values)
    choice("features", ALL_SIX, [*CHOICES, ALL_SIX], "Which hidden states.")
    text("cache_dir", None, "Folder of hidden states; feature_cache in output_dir by default.")
    boolean("document_context", False, "Fill windows with the text around the sentence.")
    integer("max_seq_length", 128, "Pieces of a window at most, [CLS] and [SEP] counted.")
    integer("token_column", 0, "Column of the words, from 0, or negative from the end.")
    integer("tag_column", -1, "Column of the tags, likewise.")
    choice("tag_scheme", "original", list(ner.TAG_SCHEMES), "Tags as they are, or made IOB2.")
    integer("num_train_epochs", 20, "Epochs of each tagger.")
    integer("train_batch_size", 32, "Windows in a training batch.")
    integer("eval_batch_size", 64, "Windows in an evaluation batch.")
    integer("encoder_batch_size", 32, "Windows in a batch of the encoder.")
    number("learning_rate", 1e-3, "Of Adam, constant.")
    number("dropout_rate", 0.3, "Of features, between LSTM layers and before the classifier.")
    integer("lstm_size", 768, "Units of each direction of an LSTM layer.")
    flags.DEFINE_list("seeds", ["1"], "One run for each, parted by commas.", flag_values=values)
