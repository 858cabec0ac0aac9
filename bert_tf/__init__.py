"""BERT on today's TensorFlow and Keras: the names below are the package's front door.

Attributes are imported on first use (PEP 562), so that a data preparation worker that needs the
tokenizer alone does not pay for Keras, and `import bert_tf` works where TensorFlow is absent.
"""

import importlib
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:  # what type checkers and editors see; a test keeps it equal to _MODULE_OF
    from bert_tf.checkpoint_writers import save_hf as save_hf
    from bert_tf.checkpoint_writers import save_keras as save_keras
    from bert_tf.checkpoint_writers import save_keras_hub as save_keras_hub
    from bert_tf.checkpoint_writers import save_model_directory as save_model_directory
    from bert_tf.checkpoint_writers import save_tf1 as save_tf1
    from bert_tf.checkpoint_writers import to_keras_hub as to_keras_hub
    from bert_tf.checkpoints import load_bert as load_bert
    from bert_tf.checkpoints import load_checkpoint as load_checkpoint
    from bert_tf.checkpoints import load_model as load_model
    from bert_tf.config import SIZES as SIZES
    from bert_tf.config import BertConfig as BertConfig
    from bert_tf.finetuning_pipeline import TaskRecords as TaskRecords
    from bert_tf.heads import bert_classifier as bert_classifier
    from bert_tf.heads import bert_multiple_choice as bert_multiple_choice
    from bert_tf.heads import bert_next_sentence_predictor as bert_next_sentence_predictor
    from bert_tf.heads import bert_pretrainer as bert_pretrainer
    from bert_tf.heads import bert_span_labeler as bert_span_labeler
    from bert_tf.heads import bert_token_classifier as bert_token_classifier
    from bert_tf.input_pipeline import pretraining_dataset as pretraining_dataset
    from bert_tf.lora import add_lora as add_lora
    from bert_tf.lora import merge_lora as merge_lora
    from bert_tf.modeling import bert_encoder as bert_encoder
    from bert_tf.optimization import AdamWeightDecay as AdamWeightDecay
    from bert_tf.optimization import Lamb as Lamb
    from bert_tf.optimization import WarmupLinearDecay as WarmupLinearDecay
    from bert_tf.optimization import create_optimizer as create_optimizer
    from bert_tf.predictor import Predictor as Predictor
    from bert_tf.preprocessing import BertPreprocessor as BertPreprocessor
    from bert_tf.tokenization import FullTokenizer as FullTokenizer
    from bert_tf.training import Trainer as Trainer

__all__ = ["__version__", *_MODULE_OF]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
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
