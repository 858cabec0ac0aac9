"""BERT on today's TensorFlow and Keras: the names below are the package's front door.

They are imported on first use, so that a data preparation worker that needs the tokenizer alone
does not pay for Keras, and `import bert_tf` works where TensorFlow is absent.
"""

from etils import epy as _epy

from bert_tf import keras_registration as _keras_registration

__version__ = "0.1.0"

with _epy.lazy_api_imports(globals()):
    from bert_tf import input_pipeline as input_pipeline
    from bert_tf import models as models
    from bert_tf import records as records
    from bert_tf import serving as serving
    from bert_tf import tasks as tasks
    from bert_tf import tokenization as tokenization
    from bert_tf import training as training
    from bert_tf import weights as weights
    from bert_tf.config import SIZES as SIZES
    from bert_tf.config import BertConfig as BertConfig
    from bert_tf.input_pipeline.finetuning import TaskRecords as TaskRecords
    from bert_tf.input_pipeline.pretraining import pretraining_dataset as pretraining_dataset
    from bert_tf.models.encoder import bert_encoder as bert_encoder
    from bert_tf.models.lora import add_lora as add_lora
    from bert_tf.models.lora import merge_lora as merge_lora
    from bert_tf.models.task_models import bert_classifier as bert_classifier
    from bert_tf.models.task_models import bert_multiple_choice as bert_multiple_choice
    from bert_tf.models.task_models import (
        bert_next_sentence_predictor as bert_next_sentence_predictor,
    )
    from bert_tf.models.task_models import bert_pretrainer as bert_pretrainer
    from bert_tf.models.task_models import bert_sentence_encoder as bert_sentence_encoder
    from bert_tf.models.task_models import bert_span_labeler as bert_span_labeler
    from bert_tf.models.task_models import bert_token_classifier as bert_token_classifier
    from bert_tf.serving.predictor import Predictor as Predictor
    from bert_tf.tokenization.keras_preprocessor import BertPreprocessor as BertPreprocessor
    from bert_tf.tokenization.wordpiece import FullTokenizer as FullTokenizer
    from bert_tf.training.optimizers import AdamWeightDecay as AdamWeightDecay
    from bert_tf.training.optimizers import Lamb as Lamb
    from bert_tf.training.optimizers import WarmupLinearDecay as WarmupLinearDecay
    from bert_tf.training.optimizers import create_optimizer as create_optimizer
    from bert_tf.training.options import TrainerOptions as TrainerOptions
    from bert_tf.training.trainer import Trainer as Trainer
    from bert_tf.weights.keras_hub import save_keras_hub as save_keras_hub
    from bert_tf.weights.keras_hub import to_keras_hub as to_keras_hub
    from bert_tf.weights.load import load_bert as load_bert
    from bert_tf.weights.load import load_checkpoint as load_checkpoint
    from bert_tf.weights.load import load_model as load_model
    from bert_tf.weights.released import presets as presets
    from bert_tf.weights.save import save_hf as save_hf
    from bert_tf.weights.save import save_keras as save_keras
    from bert_tf.weights.save import save_model_directory as save_model_directory
    from bert_tf.weights.save import save_tf1 as save_tf1
    from bert_tf.weights.upload import upload_hf as upload_hf

_keras_registration.register_with_keras()
