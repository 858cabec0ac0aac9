"""BERT on today's TensorFlow and Keras: the names below are the package's front door.

Attributes are imported on first use (PEP 562), so that a data preparation worker that needs the
tokenizer alone does not pay for Keras, and `import bert_tf` works where TensorFlow is absent.
"""

import importlib

__version__ = "0.1.0"

_MODULE_OF = {
    "BertConfig": "config",
    "SIZES": "config",
    "FullTokenizer": "tokenization",
    "bert_encoder": "modeling",
    "bert_pretrainer": "heads",
    "bert_classifier": "heads",
    "bert_span_labeler": "heads",
    "bert_token_classifier": "heads",
    "bert_multiple_choice": "heads",
    "bert_next_sentence_predictor": "heads",
    "load_bert": "checkpoints",
    "load_model": "checkpoints",
    "load_checkpoint": "checkpoints",
    "save_tf1": "checkpoint_writers",
    "save_model_directory": "checkpoint_writers",
    "save_hf": "checkpoint_writers",
    "save_keras": "checkpoint_writers",
    "save_keras_hub": "checkpoint_writers",
    "to_keras_hub": "checkpoint_writers",
    "AdamWeightDecay": "optimization",
    "Lamb": "optimization",
    "WarmupLinearDecay": "optimization",
    "create_optimizer": "optimization",
    "add_lora": "lora",
    "merge_lora": "lora",
    "pretraining_dataset": "input_pipeline",
    "BertPreprocessor": "preprocessing",
    "Predictor": "predictor",
    "TaskRecords": "finetuning_pipeline",
    "Trainer": "training",
}

__all__ = ["__version__", *_MODULE_OF]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    """Import the module that holds a public name, or a submodule, on first use."""
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULE_OF.values():
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Names a user can complete."""
    return sorted(__all__)
