"""Weights: what a path holds, every system's names, loading, saving, adapters."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from bert_tf.weights.adapters import load_adapters as load_adapters
    from bert_tf.weights.adapters import save_adapters as save_adapters
    from bert_tf.weights.checkpoint import open_checkpoint as open_checkpoint
    from bert_tf.weights.keras_hub import save_keras_hub as save_keras_hub
    from bert_tf.weights.keras_hub import to_keras_hub as to_keras_hub
    from bert_tf.weights.load import load_bert as load_bert
    from bert_tf.weights.load import load_checkpoint as load_checkpoint
    from bert_tf.weights.load import load_model as load_model
    from bert_tf.weights.new_words import load_with_new_words as load_with_new_words
    from bert_tf.weights.released import presets as presets
    from bert_tf.weights.save import save_hf as save_hf
    from bert_tf.weights.save import save_keras as save_keras
    from bert_tf.weights.save import save_model_directory as save_model_directory
    from bert_tf.weights.save import save_tf1 as save_tf1
    from bert_tf.weights.upload import upload_hf as upload_hf
