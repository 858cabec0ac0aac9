"""SavedModels that take plain strings: a pre-trained model that fills in [MASK].

Shape legend: B sentences, L pieces of the longest sentence, M masks of the sentence with most, K
candidates, P predictions, V vocabulary.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bert_tf.preprocessing import TextToIds
from bert_tf.tokenization import load_vocab


class FillMask(tf.Module):
    """Pre-trained model behind the tokenizer: sentences with [MASK] in, pieces and scores out.

    Args:
        model: as `heads.bert_pretrainer` makes it.
        vocab_file: the vocabulary that the model was trained with.
        do_lower_case: whether that vocabulary is uncased.
        max_seq_length: pieces of a sentence at most, [CLS] and [SEP] counted; the rest of a longer
            sentence, its masks included, is cut off.
        top_k: K, candidates for each mask.

    Raises:
        ValueError: special tokens are missing, or the model has fewer rows than the vocabulary, or
            K is out of range.
    """

    def __init__(
        self,
        model: keras.Model,
        vocab_file: str | os.PathLike,
        *,
        do_lower_case: bool = True,
        max_seq_length: int = 128,
        top_k: int = 5,
    ):
        super().__init__(name="fill_mask")
        vocab_file = os.fspath(vocab_file)
        vocab = load_vocab(vocab_file)
        model_vocab_size = model.output["masked_lm_logits"].shape[-1]
        if max(vocab.values()) >= model_vocab_size:
            raise ValueError(
                f"vocab_file: {vocab_file} has ids up to {max(vocab.values())}, "
                f"the model a vocabulary of {model_vocab_size}"
            )
        if not 1 <= top_k <= len(vocab):
            raise ValueError(f"top_k: expected 1 to {len(vocab)}, got {top_k}")
        self.model = model
        self.max_seq_length, self.top_k = max_seq_length, top_k
        self.text_to_ids = TextToIds(vocab_file, do_lower_case, max_seq_length, parse_mask=True)
        # Rows that the vocabulary does not use, as where its size was rounded up, are no answer.
        self._is_word = tf.constant(np.isin(np.arange(model_vocab_size), [*vocab.values()]))

    def sentence_ids(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Pieces of sentences, in which [MASK] stands for itself: string [B] to ids [B, (L)]."""
        ids = self.text_to_ids(text)[:, : self.max_seq_length - 2]
        cls, sep = (
            tf.fill([tf.shape(text)[0], 1], value)
            for value in (self.text_to_ids.cls_id, self.text_to_ids.sep_id)
        )
        return tf.concat([cls, ids, sep], axis=1)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def fill(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Candidates for each [MASK].

        Args:
            text: string [B]; UTF-8, each with any number of [MASK].

        Returns:
            dict: "tokens" string [B, M, K], best first, and "scores" float32 [B, M, K], their
            probabilities; "" and 0 beyond the masks of a sentence. "mask_count" int32 [B].
        """
        ids = self.sentence_ids(text)
        input_ids = ids.to_tensor(self.text_to_ids.pad_id)  # [B, L]
        is_mask = tf.ragged.boolean_mask(
            tf.ragged.range(tf.cast(ids.row_lengths(), tf.int32)),
            tf.equal(ids, self.text_to_ids.mask_id),
        )  # [B, (masks)]
        mask_count = tf.cast(is_mask.row_lengths(), tf.int32)
        positions = is_mask.to_tensor()  # [B, M]
        logits = self.model(
            {
                "input_ids": input_ids,
                "input_mask": tf.sequence_mask(
                    ids.row_lengths(), tf.shape(input_ids)[1], dtype=tf.int32
                ),
                "segment_ids": tf.zeros_like(input_ids),
                "masked_lm_positions": positions,
            },
            training=False,
        )["masked_lm_logits"]  # [B, M, V]
        logits = tf.where(self._is_word, tf.cast(logits, tf.float32), logits.dtype.min)
        # Of logits, since unlikely pieces have equal scores of 0.
        best = tf.math.top_k(logits, k=self.top_k).indices  # [B, M, K]
        scores = tf.gather(tf.nn.softmax(logits), best, batch_dims=2)  # [B, M, K]
        is_real = tf.sequence_mask(mask_count, tf.shape(positions)[1])[:, :, None]  # [B, M, 1]
        return {
            "tokens": tf.where(is_real, self.text_to_ids.ids_to_tokens(best), ""),
            "scores": tf.where(is_real, scores, 0.0),
            "mask_count": mask_count,
        }

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None], tf.int32, name)
            for name in ("input_ids", "input_mask", "segment_ids", "masked_lm_positions")
        ]
    )
    def ids(self, input_ids, input_mask, segment_ids, masked_lm_positions) -> dict[str, tf.Tensor]:
        """Logits of the model for ids that were made elsewhere.

        Args:
            input_ids: int32 [B, L].
            input_mask: int32 [B, L], 1 where a piece stands.
            segment_ids: int32 [B, L].
            masked_lm_positions: int32 [B, P].

        Returns:
            What the model returns: "masked_lm_logits" float32 [B, P, V] and, with next sentence
            prediction, "next_sentence_logits" float32 [B, 2].
        """
        return self.model(
            {
                "input_ids": input_ids,
                "input_mask": input_mask,
                "segment_ids": segment_ids,
                "masked_lm_positions": masked_lm_positions,
            },
            training=False,
        )


def export_fill_mask(
    model: keras.Model,
    vocab_file: str | os.PathLike,
    path: str | os.PathLike,
    *,
    do_lower_case: bool = True,
    max_seq_length: int = 128,
    top_k: int = 5,
    version: int | None = None,
) -> pathlib.Path:
    """Write a SavedModel that fills in [MASK], in the layout that TF Serving reads.

    Signatures: "serving_default" takes {"text": string [B]} and returns {"tokens", "scores",
    "mask_count"} (see `FillMask.fill`); "ids" takes ids and returns the model's logits (see
    `FillMask.ids`). Loading needs TensorFlow and, imported, tensorflow_text.

    Args:
        model: as `heads.bert_pretrainer` makes it.
        vocab_file: the vocabulary that the model was trained with.
        path: folder of the model's versions; its last part is the name in TF Serving.
        do_lower_case: whether the vocabulary is uncased.
        max_seq_length: see `FillMask`.
        top_k: see `FillMask`.
        version: number of the version, at least 1; by default one more than the highest there is.

    Returns:
        The folder written: path/version.

    Raises:
        FileExistsError: that version exists.
        ValueError: see `FillMask`; or version is below 1.
        OSError: the folder cannot be written.
    """
    root = pathlib.Path(path)
    root.mkdir(parents=True, exist_ok=True)
    if version is None:
        version = 1 + max((int(p.name) for p in root.iterdir() if p.name.isdecimal()), default=0)
    if version < 1:
        raise ValueError(f"version: expected at least 1, got {version}")
    target = root / str(version)
    if target.exists():
        raise FileExistsError(f"version: {target} exists; choose another or remove it")
    module = FillMask(
        model,
        vocab_file,
        do_lower_case=do_lower_case,
        max_seq_length=max_seq_length,
        top_k=top_k,
    )
    # TF Serving loads a version as soon as its folder has a number for a name: so write it under
    # another name first.
    temporary = tempfile.mkdtemp(prefix=".export-", dir=root)
    try:
        signatures: dict[str, Any] = {"serving_default": module.fill, "ids": module.ids}
        tf.saved_model.save(module, temporary, signatures=signatures)
        os.chmod(temporary, 0o755)
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target
