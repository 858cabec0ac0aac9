"""Options of serving a checkpoint, and what files of it can hold."""

import dataclasses

from bert_tf.options import option

# Format -> what it can hold weights in, and how far outputs may then be from the Keras model's, in
# units of `saved_model.worst_difference`. Some times what was measured, of TFLite 1e-6, 2e-3 and
# 0.1 for all-MiniLM-L6-v2; what is really wrong is far from it.
TOLERANCES = {
    "saved_model": {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2},
    "tflite": {"float32": 1e-4, "float16": 1e-2, "int8": 0.25},
    "onnx": {"float32": 1e-4, "int8": 0.5},
    "openvino": {"float32": 1e-4, "float16": 1e-2, "int8": 0.5},
}
COMPUTE_TOLERANCE = 0.1  # the same of a SavedModel that computes in bfloat16
MODEL_CARD_NAME = "model_card.md"  # beside each file
SERVERS = ("2.16", "2.17", "2.18", "2.19", "2.20")  # TF Serving's releases; server_operations.py
WORDS = ("punctuation", "white_space")


@dataclasses.dataclass(frozen=True)
class ServingOptions:
    """How a checkpoint is served; None stands for what training wrote down."""

    task: str | None = option(
        None, "What it is for, where the checkpoint does not say.", group="serving"
    )
    vocab_file: str | None = option(
        None, "Vocabulary; by default the model directory's.", path="any"
    )
    do_lower_case: bool | None = option(None, "Casing; by default the model directory's.")
    strip_accents: bool | None = option(
        None, "Whether accents are stripped; by default as the model directory says."
    )
    max_seq_length: int | None = option(None, "Tokens of a sequence; training's or 128.", minimum=3)
    max_windows: int | None = option(
        None, "Texts in windows: how many of one are read at most; training's.", minimum=1
    )
    has_pairs: bool | None = option(
        None, "Whether requests have two texts; training's.", flag="pairs"
    )
    labels: tuple[str, ...] | None = option(
        None, "Names of the labels; by default the model directory's, or label 0, label 1, ..."
    )
    null_score_diff_threshold: float | None = option(
        None, "Question answering: no answer if the null score is greater; training's."
    )
    words: str = option("punctuation", "Tagging: what parts the words of a text.", choices=WORDS)
    top_k: int = option(5, "Filling masks: candidates for each.", minimum=1)
    layer: int = option(-1, "Embeddings: hidden state to take the mean of, 0 for the embeddings.")
