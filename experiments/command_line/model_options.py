"""Options that name a pre-trained model."""

import dataclasses

from bert_tf.options import option


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """A model: one place that holds all of it, or the original's three flags."""

    model_dir: str | None = option(
        None,
        "Model: a directory or checkpoint of any format that bert_tf.load_bert reads, or the name "
        "of a published one: hf://, kaggle:// or google://.",
        path="model",
        group="model",
    )
    bert_config_file: str | None = option(
        None, "Configuration of the model, where --model_dir is not given.", path="any"
    )
    init_checkpoint: str | None = option(None, "Its weights, likewise.", path="model")
    vocab_file: str | None = option(None, "Its vocabulary, likewise.", path="any")
    do_lower_case: bool | None = option(
        None, "Casing; by default the model's, or True without --model_dir."
    )
    strip_accents: bool | None = option(
        None, "Whether accents are stripped; by default the model's, or as the casing."
    )
