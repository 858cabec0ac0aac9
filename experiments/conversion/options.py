"""Options of conversion between formats, and of export for serving."""

import dataclasses
import re

from bert_tf.options import option
from bert_tf.serving.options import SERVERS, TOLERANCES, ServingOptions

CHECKPOINT_FORMATS = ("tf1", "hf", "keras_hub", "keras")


@dataclasses.dataclass(frozen=True)
class ConfigChanges:
    """Fields of the model's configuration that may be changed on the way."""

    hidden_act: str | None = option(
        None, "Activation to take in place of the source's.", group="model"
    )
    layer_norm_eps: float | None = option(None, "Epsilon to take in place of the source's.")
    vocab_size: int | None = option(None, "Cut or extend the word embeddings to this.")
    max_position_embeddings: int | None = option(None, "Cut or extend the positions to this.")
    type_vocab_size: int | None = option(None, "Cut or extend the segment embeddings to this.")


@dataclasses.dataclass(frozen=True)
class ConversionOptions:
    """What convert_checkpoint.py is asked for.

    Raises:
        ValueError: the format cannot hold such weights, or the Hub cannot take it.
    """

    source: str = option(
        None,
        "Directory, file, TensorFlow prefix, or name as in hf://OWNER/NAME.",
        required=True,
        flag="from",
        path="model",
        group="model",
    )
    target: str = option(
        None, "What to write.", required=True, flag="to", path="new_folder", group="output"
    )
    format: str = option(None, "The target's format.", choices=CHECKPOINT_FORMATS, required=True)
    weights: str = option(
        "float32",
        "What the file holds the weights in; float16 is for hf.",
        choices=("float32", "float16"),
    )
    bert_config_file: str | None = option(
        None, "Configuration; by default the source's.", path="any", group="model"
    )
    kind: str | None = option(None, "Kind of model; by default what the weights say.")
    do_lower_case: bool | None = option(None, "Casing; by default what the source says.")
    strip_accents: bool | None = option(
        None, "Whether accents are stripped; by default as the source says."
    )
    ignore: tuple[str, ...] = option(
        (), "Regular expression of weights of the source to leave; repeatable.", repeated=True
    )
    allow_missing: tuple[str, ...] = option(
        (), "Regular expression of weights that it may lack; repeatable.", repeated=True
    )
    changes: ConfigChanges = ConfigChanges()
    overwrite: bool = option(False, "Write into a target that exists.", group="output")
    upload_to: str | None = option(
        None, "Repository to put what was written into, as hf://OWNER/NAME; for --format=hf."
    )
    all_weights: bool = option(False, "List every layer's weights, not one line for all.")
    verify: bool = option(True, "Compare source and target.", group="verification")
    tolerance: float = option(1e-4, "Largest absolute difference of outputs.")

    def __post_init__(self) -> None:
        if self.upload_to is not None and self.format != "hf":
            raise ValueError(f"upload_to: needs --format=hf, got {self.format}")
        if not re.fullmatch(r"hf://[\w.-]+/[\w.-]+/?", self.upload_to or "hf://OWNER/NAME"):
            raise ValueError(f"upload_to: expected hf://OWNER/NAME, got {self.upload_to}")
        if self.weights != "float32" and self.format != "hf":
            raise ValueError(f"weights: {self.weights} is for --format=hf, got {self.format}")


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What export_model.py is asked for.

    Raises:
        ValueError: the format cannot hold such weights, or no TF Serving reads it.
    """

    model_dir: str = option(
        None, "Model directory, checkpoint or name.", required=True, path="model", group="model"
    )
    output_dir: str = option(
        None,
        "Folder of the model's versions; its last part is the name.",
        required=True,
        alias="saved_model",
        path="new_folder",
        group="output",
    )
    format: str = option("saved_model", "What to write.", choices=tuple(TOLERANCES))
    weights: str = option(
        "float32",
        "What the file holds the weights in; int8 is for tflite, onnx and openvino, bfloat16 for a "
        "SavedModel.",
        choices=("float32", "float16", "bfloat16", "int8"),
    )
    compute: str = option(
        "float32",
        "What a SavedModel's matrix products and weights are; bfloat16 is for processors that have "
        "its products.",
        choices=("float32", "bfloat16"),
    )
    description: str | None = option(
        None, "Of the weights, for the model card; by default where they were."
    )
    version: int | None = option(None, "Version; by default one more than the highest there is.")
    ids_only: bool = option(
        False,
        "Take ids instead of strings: no operations of tensorflow_text. Always so for onnx and "
        "openvino.",
    )
    for_server: str | None = option(
        None,
        "Release of TF Serving: refuse what it does not know. For a SavedModel.",
        choices=SERVERS,
    )
    serving: ServingOptions = ServingOptions()
    dev_file: str | None = option(
        None,
        "Records of create_finetuning_data.py or of a run: what is written has to have the model's "
        "figures on them.",
        path="any",
        group="verification",
    )
    dev_tolerance: float = option(
        0.005, "How much lower its figure may be on the dev file, of 1.", minimum=0, maximum=1
    )
    calibration_file: str | None = option(
        None,
        "Records whose ranges int8 of openvino takes: some of training.",
        path="any",
    )

    def __post_init__(self) -> None:
        if (self.calibration_file is None) == (self._calibrated):
            raise ValueError(
                "calibration_file: needed for --format=openvino --weights=int8, and for nothing "
                f"else; got {self.calibration_file} with --format={self.format} "
                f"--weights={self.weights}"
            )
        if self.dev_file is not None and self.format == "tflite" and not self.ids_only:
            raise ValueError("dev_file: holds ids, and so needs --ids_only with --format=tflite")
        if self.for_server is not None and self.format != "saved_model":
            raise ValueError(f"for_server: is for --format=saved_model, got {self.format}")
        if self.weights not in TOLERANCES[self.format]:
            raise ValueError(
                f"weights: {self.format} can hold {', '.join(TOLERANCES[self.format])}, got "
                f"{self.weights}"
            )
        if self.compute != "float32" and (
            self.format != "saved_model" or self.weights != "float32"
        ):
            raise ValueError(
                f"compute: {self.compute} is for --format=saved_model, whose weights then are "
                f"{self.compute} too; leave out --weights, got --format={self.format} "
                f"--weights={self.weights}"
            )

    @property
    def _calibrated(self) -> bool:
        return self.format == "openvino" and self.weights == "int8"
