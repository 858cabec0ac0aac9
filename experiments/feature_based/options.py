"""Options of the feature-based approach."""

import dataclasses
import os

from bert_tf.files import is_remote, size_of
from bert_tf.options import option
from data_prep.finetuning.sources import TaggedOptions
from experiments.command_line.model_options import ModelOptions

EXTRACTION_FORMATS = ("json", "npz", "tfrecord")
ALL_SIX = "all_six"
CHOICES = (  # those of models.bilstm_tagger, which loads Keras
    "embeddings",
    "second_to_last",
    "last",
    "weighted_sum_last_four",
    "concat_last_four",
    "weighted_sum_all",
)
# What feature_based.json tells of a run.
SETTINGS = (
    *("train_file", "dev_file", "test_file", "model_dir", "bert_config_file", "init_checkpoint"),
    *("vocab_file", "do_lower_case", "strip_accents", "features", "document_context"),
    "max_seq_length",
    *("token_column", "tag_column", "tag_scheme", "num_train_epochs", "train_batch_size"),
    *("learning_rate", "dropout_rate", "lstm_size", "seeds"),
)
_UNSUPPORTED = ("use_tpu", "master", "tpu_name", "tpu_zone", "gcp_project")


@dataclasses.dataclass(frozen=True)
class FrozenModelOptions:
    """The model that features are taken from, and the original's options of TPUs.

    Raises:
        ValueError: they do not name one model, or what is not supported.
    """

    source: ModelOptions = ModelOptions()
    use_tpu: bool = option(False, "Not supported.", group="model")
    num_tpu_cores: int = option(8, "Without effect.")
    use_one_hot_embeddings: bool = option(False, "Without effect: the results are the same.")
    master: str | None = option(None, "Not supported.")
    tpu_name: str | None = option(None, "Not supported.")
    tpu_zone: str | None = option(None, "Not supported.")
    gcp_project: str | None = option(None, "Not supported.")

    def __post_init__(self) -> None:
        if unsupported := [f"--{name}" for name in _UNSUPPORTED if getattr(self, name)]:
            raise ValueError(
                f"{', '.join(unsupported)}: TPUs and TensorFlow masters are not supported; drop "
                "these flags to run on this machine's GPU or CPU"
            )
        names = ("bert_config_file", "init_checkpoint", "vocab_file")
        parts = [f"--{name}" for name in names if getattr(self.source, name)]
        if self.source.model_dir and parts:
            raise ValueError(f"expected --model_dir or {', '.join(parts)}, got both")
        if not self.source.model_dir and len(parts) < len(names):
            missing = ", ".join(f"--{name}" for name in names if f"--{name}" not in parts)
            raise ValueError(f"expected --model_dir, or all three of its parts; missing: {missing}")


@dataclasses.dataclass(frozen=True)
class ExtractionOptions:
    """What extract_features.py is asked for.

    Raises:
        ValueError: options do not fit each other.
        FileNotFoundError: there is no such file to read, or folder to write to.
    """

    model: FrozenModelOptions
    input_file: str = option(
        None, "Texts, one a line, or two as A ||| B.", required=True, path="any", group="data"
    )
    output_file: str = option(None, "What to write.", required=True, path="any", group="output")
    layers: str | None = option(
        None,
        "Layers: -1 the last, 0 the first, or embeddings; by default -1,-2,-3,-4, with pooling -1.",
        group="features",
    )
    max_seq_length: int = option(128, "Tokens of a line at most, [CLS] and [SEP] counted.")
    batch_size: int = option(32, "Lines computed at once.", minimum=1)
    output_format: str | None = option(
        None, "json, or with pooling npz, by default.", choices=EXTRACTION_FORMATS, group="output"
    )
    pooling: str | None = option(
        None,
        "One vector a line, over all its tokens.",
        choices=("mean", "cls", "max"),
        group="features",
    )
    dtype: str = option("float32", "Of the values in npz.", choices=("float32", "float16"))

    def __post_init__(self) -> None:
        if self.pooling and self.file_format == "json":
            raise ValueError(
                "--pooling: the original's JSON has a vector for each token; write "
                "--output_format=npz or tfrecord"
            )
        if self.dtype == "float16" and self.file_format != "npz":
            raise ValueError(f"--dtype: float16 is for npz only, the format is {self.file_format}")
        # Here, since it takes seconds to import what reads and writes them.
        folder = os.path.dirname(os.path.abspath(self.output_file))
        if not is_remote(self.output_file) and not os.path.isdir(folder):
            raise FileNotFoundError(f"--output_file: no such folder: {folder}")
        size_of(self.input_file)

    @property
    def file_format(self) -> str:
        """Format of the file, by default the original's where it can hold the values."""
        return self.output_format or ("npz" if self.pooling else "json")

    @property
    def layer_names(self) -> str:
        """Layers to write: a text's vector is of one, unless more are asked for."""
        return self.layers or ("-1" if self.pooling else "-1,-2,-3,-4")


@dataclasses.dataclass(frozen=True)
class TaggerOptions:
    """What run_feature_based.py is asked for.

    Raises:
        ValueError: the seeds are not distinct integers.
        FileNotFoundError: there is no such file to read.
    """

    model: FrozenModelOptions
    train_file: str = option(
        None, "Tagged words to train on.", required=True, path="any", group="data"
    )
    dev_file: str = option(None, "Tagged words that choose the epoch.", required=True, path="any")
    test_file: str | None = option(
        None, "Tagged words to evaluate each tagger on at last.", path="any"
    )
    output_dir: str = option(
        None, "Folder of results and taggers.", required=True, path="folder", group="output"
    )
    features: str = option(
        ALL_SIX, "Which hidden states.", choices=(*CHOICES, ALL_SIX), group="features"
    )
    cache_dir: str | None = option(
        None, "Folder of hidden states; by default in output_dir.", path="local"
    )
    max_seq_length: int = option(
        128, "Tokens of a window at most, [CLS] and [SEP] counted.", group="data"
    )
    tagged: TaggedOptions = TaggedOptions()
    num_train_epochs: int = option(20, "Epochs of each tagger.", minimum=1, group="training")
    train_batch_size: int = option(32, "Windows in a training batch.", minimum=1)
    eval_batch_size: int = option(64, "Windows in an evaluation batch.", minimum=1)
    encoder_batch_size: int = option(32, "Windows in a batch of the encoder.", minimum=1)
    learning_rate: float = option(1e-3, "Of Adam, constant.", above=0)
    dropout_rate: float = option(
        0.3, "Of features, between LSTM layers and before the classifier.", minimum=0, below=1
    )
    lstm_size: int = option(768, "Units of each direction of an LSTM layer.", minimum=1)
    seeds: tuple[str, ...] = option(("1",), "One run for each, parted by commas.", alias="seed")

    def __post_init__(self) -> None:
        numbers = [int(text) for text in self.seeds if text.strip().isdecimal()]
        if not numbers or not len(self.seeds) == len(numbers) == len(set(numbers)):
            raise ValueError(
                f"--seeds: expected distinct integers of at least 0, got {','.join(self.seeds)!r}"
            )
        for path in (self.train_file, self.dev_file, self.test_file):
            if path:
                size_of(path)  # here, since it takes seconds to import what reads it
