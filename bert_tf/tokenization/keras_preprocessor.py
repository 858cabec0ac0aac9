"""The tokenizer as a Keras layer."""

import os
from collections.abc import Mapping
from typing import Any, cast

import keras
import tensorflow as tf

from bert_tf.tokenization.graph_tokenizer import TextToIds, as_written, string_tensor


@keras.saving.register_keras_serializable(package="bert_tf")
class BertPreprocessor(keras.layers.Layer):
    """Keras layer from strings to the encoder's inputs; see `TextToIds`, which does the work.

    It can be the first layer of a model, on `keras.Input(shape=(), dtype="string")`, or be mapped
    over a `tf.data.Dataset`, of batches or of single texts. Its configuration holds the vocabulary,
    so that a model saved with it needs no other file. It needs Keras on TensorFlow.

    Inputs, as a dictionary or in short:
      {"text": string [B]}, or the tensor alone.
      {"text": string [B], "text_b": string [B]}, or the tuple (text, text_b).
      {"text": string [B], "choices": string [B, C], or ragged [B, (C)]}.
      The same of one text, without B; the outputs then have no B either.

    Outputs: "input_ids", "input_mask" and "segment_ids", int32 [B, L], or [B, C, L] for choices
    (ragged where these are).

    Args:
        vocab: path of a vocabulary, one piece a line; or piece -> id.
        do_lower_case: True for uncased models, False for cased and Chinese ones.
        max_seq_length: L.
        parse_mask: make the literal text `[MASK]` the mask's id.
        strip_accents: strip the accents of words; None (default) where they are lower-cased.
        **kwargs: `name` and what else a Keras layer takes.

    Raises:
        FileNotFoundError, ValueError: see `TextToIds`; when called, ValueError for inputs of
            another form, type or rank, which it names.
    """

    def __init__(
        self,
        vocab: str | os.PathLike[str] | Mapping[str, int],
        do_lower_case: bool = True,
        max_seq_length: int = 128,
        parse_mask: bool = False,
        strip_accents: bool | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        arguments = do_lower_case, max_seq_length, parse_mask, strip_accents
        self.text_to_ids = TextToIds(vocab, *arguments)
        # Keras would make floating-point tensors of lists and arrays of strings.
        self._convert_input_args = False
        self._allow_non_tensor_positional_args = True

    @as_written
    def call(self, inputs: Any) -> dict[str, tf.Tensor] | dict[str, tf.RaggedTensor]:
        """Pack texts; see the class for inputs and outputs."""
        if isinstance(inputs, (tuple, list)) and not all(
            isinstance(text, (str, bytes)) for text in inputs
        ):
            if isinstance(inputs, list) and all(isinstance(text, list) for text in inputs):
                raise ValueError(
                    "inputs: expected strings [B], got a list of lists; join the words of each "
                    'text, or give pairs as {"text": ..., "text_b": ...}'
                )
            if len(inputs) != 2:
                raise ValueError(f"inputs: expected a pair (text, text_b), got {len(inputs)}")
            inputs = {"text": inputs[0], "text_b": inputs[1]}
        elif not isinstance(inputs, Mapping):
            inputs = {"text": inputs}
        if set(inputs) not in ({"text"}, {"text", "text_b"}, {"text", "choices"}):
            raise ValueError(
                "inputs: expected the keys text, and text_b or choices if there are any, "
                f"got {' '.join(map(str, inputs))}"
            )
        text = inputs["text"] if tf.is_tensor(inputs["text"]) else tf.constant(inputs["text"])
        is_one = text.shape.rank == 0
        strings = {
            name: string_tensor(name, value, (2 if name == "choices" else 1) - is_one)
            for name, value in {**inputs, "text": text}.items()
        }
        if is_one:
            strings = {name: value[tf.newaxis] for name, value in strings.items()}
        if "choices" in strings:
            packed = self.text_to_ids.pack_choices(strings["text"], strings["choices"])
        else:
            packed = self.text_to_ids.pack(strings["text"], strings.get("text_b"))
        return cast(Any, {name: value[0] for name, value in packed.items()}) if is_one else packed

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make this layer again, the vocabulary's pieces among them."""
        text_to_ids = self.text_to_ids
        return {
            **super().get_config(),
            "vocab": dict(text_to_ids.vocab),
            "do_lower_case": text_to_ids.do_lower_case,
            "max_seq_length": text_to_ids.max_seq_length,
            "parse_mask": text_to_ids.parse_mask,
            "strip_accents": text_to_ids.strip_accents,
        }
