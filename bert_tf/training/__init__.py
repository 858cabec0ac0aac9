"""Losses, objectives, optimizers, one step, the `Trainer`, exact state, devices."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from bert_tf.training.distillation import DistillationObjective as DistillationObjective
    from bert_tf.training.distillation import DistilledModel as DistilledModel
    from bert_tf.training.distribution import create_strategy as create_strategy
    from bert_tf.training.errors import StoppedError as StoppedError
    from bert_tf.training.finetuning import make_model as make_model
    from bert_tf.training.losses import CosineSimilarityLoss as CosineSimilarityLoss
    from bert_tf.training.losses import MaskedLMLoss as MaskedLMLoss
    from bert_tf.training.losses import MultipleNegativesLoss as MultipleNegativesLoss
    from bert_tf.training.losses import NextSentenceLoss as NextSentenceLoss
    from bert_tf.training.losses import masked_lm_loss as masked_lm_loss
    from bert_tf.training.losses import next_sentence_loss as next_sentence_loss
    from bert_tf.training.masked_lm_distillation import (
        PretrainingDistillation as PretrainingDistillation,
    )
    from bert_tf.training.masked_lm_distillation import matched_student as matched_student
    from bert_tf.training.objectives import FineTuningObjective as FineTuningObjective
    from bert_tf.training.objectives import Objective as Objective
    from bert_tf.training.objectives import PretrainingObjective as PretrainingObjective
    from bert_tf.training.objectives import (
        finetuning_compile_arguments as finetuning_compile_arguments,
    )
    from bert_tf.training.objectives import (
        pretraining_compile_arguments as pretraining_compile_arguments,
    )
    from bert_tf.training.optimizers import AdamWeightDecay as AdamWeightDecay
    from bert_tf.training.optimizers import Lamb as Lamb
    from bert_tf.training.optimizers import WarmupLinearDecay as WarmupLinearDecay
    from bert_tf.training.optimizers import create_optimizer as create_optimizer
    from bert_tf.training.optimizers import layer_wise_rules as layer_wise_rules
    from bert_tf.training.options import TrainerOptions as TrainerOptions
    from bert_tf.training.resumable_fit import ResumableFit as ResumableFit
    from bert_tf.training.trainer import Trainer as Trainer
