"""Files of tagged words with the features of their windows, in batches for a tagger."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from bert_tf.models.feature_extraction import StoredFeatures
from data_prep.finetuning import ner
from data_prep.finetuning.sources import read_tagged, schemes_of_all
from experiments.feature_based.options import TaggerOptions

_SORTED_BATCHES = 32  # batches' worth of shuffled texts that are sorted by length at a time
Inputs = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TaggedFile:
    """One file, ready to train on or to be tagged.

    Attributes:
        sentences: its sentences.
        windows: windows of the sentences.
        features: features of the windows.
    """

    sentences: list[ner.Sentence]
    windows: list[ner.SentenceWindow]
    features: StoredFeatures

    def batch(self, rows: Sequence[int], states: Sequence[int], weighted: bool) -> Inputs:
        """Return the tagger's inputs for some windows, padded to the longest of them.

        Args:
            rows: the windows.
            states: hidden states.
            weighted: whether they stay apart, to be summed with weights; else they are put
                together.
        """
        columns = [self.features.layers.index(state) for state in states]
        # From the first to the last column at once: picking from a memory map is slow.
        low, high = min(columns), max(columns) + 1
        columns = [column - low for column in columns]
        width = self.features.values.shape[2]
        length = max(len(self.windows[row].input_ids) for row in rows)
        values = np.zeros((len(rows), length, len(columns), width), np.float32)
        mask = np.zeros((len(rows), length), np.int32)
        for i, row in enumerate(rows):
            vectors = self.features[row][:, low:high]
            values[i, : len(vectors)] = vectors[:, columns]
            mask[i, : len(vectors)] = 1
        if not weighted:
            values = values.reshape(len(rows), length, -1)
        return {"features": values, "input_mask": mask}

    def labels(
        self, rows: Sequence[int], length: int, label_ids: Mapping[str, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return integer labels [B, F] and their weights [B, F], 1 where a label counts."""
        labels = np.zeros((len(rows), length), np.int32)
        weights = np.zeros((len(rows), length), np.float32)
        for i, row in enumerate(rows):
            for sentence, word, position in self.windows[row].words:
                labels[i, position] = label_ids[self.sentences[sentence].tags[word]]
                weights[i, position] = 1
        return labels, weights

    def batches(self, batch_size: int, random: np.random.Generator | None) -> list[list[int]]:
        """Group the windows into batches of like length; shuffled if a generator is given."""
        lengths = [len(window.input_ids) for window in self.windows]
        order = list(range(len(lengths)))
        pool = len(order)
        if random is not None:
            random.shuffle(order)
            pool = batch_size * _SORTED_BATCHES
        for start in range(0, len(order), pool):
            order[start : start + pool] = sorted(
                order[start : start + pool], key=lengths.__getitem__
            )
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        if random is not None:
            random.shuffle(batches)
        return batches


def read_sentences(
    paths: Mapping[str, str], options: TaggerOptions
) -> dict[str, list[ner.Sentence]]:
    """Read files as the options say; ValueError and OSError as `ner.read_sentences`."""
    tagged = options.tagged
    schemes = schemes_of_all(paths, tagged)
    return {
        part: [*read_tagged(path, tagged, scheme=schemes.get(part))] for part, path in paths.items()
    }
