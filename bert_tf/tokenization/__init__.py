"""Strings to word pieces and back, in Python and in the TensorFlow graph."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from bert_tf.tokenization.graph_tokenizer import TextToIds as TextToIds
    from bert_tf.tokenization.keras_preprocessor import BertPreprocessor as BertPreprocessor
    from bert_tf.tokenization.packing import pack_pair as pack_pair
    from bert_tf.tokenization.packing import truncate_pair as truncate_pair
    from bert_tf.tokenization.vocabulary import CLS_TOKEN as CLS_TOKEN
    from bert_tf.tokenization.vocabulary import MASK_TOKEN as MASK_TOKEN
    from bert_tf.tokenization.vocabulary import PAD_TOKEN as PAD_TOKEN
    from bert_tf.tokenization.vocabulary import SEP_TOKEN as SEP_TOKEN
    from bert_tf.tokenization.vocabulary import SPECIAL_TOKENS as SPECIAL_TOKENS
    from bert_tf.tokenization.vocabulary import UNK_TOKEN as UNK_TOKEN
    from bert_tf.tokenization.vocabulary import load_vocab as load_vocab
    from bert_tf.tokenization.vocabulary import (
        validate_case_matches_checkpoint as validate_case_matches_checkpoint,
    )
    from bert_tf.tokenization.wordpiece import BasicTokenizer as BasicTokenizer
    from bert_tf.tokenization.wordpiece import FullTokenizer as FullTokenizer
    from bert_tf.tokenization.wordpiece import WordpieceTokenizer as WordpieceTokenizer
