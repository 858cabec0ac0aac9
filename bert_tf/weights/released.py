"""The models that were released: sizes, casing, the names that load them, the scores to expect."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

from bert_tf.config import SIZES, BertConfig
from bert_tf.files import read_json
from bert_tf.weights.shipped import shipped_models


@dataclasses.dataclass(frozen=True)
class Preset:
    """A released model.

    Attributes:
        title: what it is called.
        num_layers: number of layers.
        hidden_size: their width.
        num_attention_heads: number of heads.
        vocab_size: pieces of its vocabulary.
        num_parameters: of the encoder, with pooler.
        cased: whether it tells upper from lower case.
        language: what it was trained on.
        names: what `load_bert`, `--model_dir` and `--init_checkpoint` take; each is the same model.
        scores: measure -> what its authors have published; empty where they have nothing. "GLUE
            score" is the leaderboard's, "GLUE average" the paper's, without WNLI; both of the test
            sets. MNLI-m and CoNLL-2003 F1 are of test sets too where the paper has them, SQuAD 1.1
            F1 is of the development set, XNLI of training on the text translated to the language.
        archive: folder and name of Google's archive; empty where there is none.
    """

    title: str
    num_layers: int
    hidden_size: int
    num_attention_heads: int
    vocab_size: int
    num_parameters: int
    cased: bool
    language: str
    names: tuple[str, ...]
    scores: Mapping[str, float]
    archive: str

    def __str__(self) -> str:
        size = f"{self.num_layers}/{self.hidden_size}/{self.num_attention_heads}"
        scores = ", ".join(f"{measure} {score}" for measure, score in self.scores.items())
        head = f"{self.title:<42} {size:>10} {self.num_parameters / 1e6:>6.1f} M  {scores}"
        return "\n    ".join([head.rstrip(), *self.names])


class Presets(tuple[Preset, ...]):
    """Presets that print as a table: layers/width/heads, parameters, scores, and their names."""

    def __repr__(self) -> str:
        return "\n".join(map(str, self))


_UNCASED, _CASED = 30522, 28996  # pieces of the English vocabularies


def _preset(
    title: str,
    size: str,
    archive: str,
    repository: str,
    keras_hub: str | None,
    scores: Mapping[str, float],
    pieces: int = _UNCASED,
    language: str = "English",
) -> Preset:
    sizes = SIZES[size]
    name = archive.rpartition("/")[2]
    # Two archives have the name of BERT-Base; it means the first that was released.
    name = archive if archive == "2020_02_20/uncased_L-12_H-768_A-12" else name
    names = [f"google://{name}", f"hf://{repository}"]
    if keras_hub is not None:
        names.append(f"kaggle://keras/bert/keras/{keras_hub}")
    return Preset(
        title=title,
        num_layers=sizes.num_hidden_layers,
        hidden_size=sizes.hidden_size,
        num_attention_heads=sizes.num_attention_heads,
        vocab_size=pieces,
        # Those of SIZES are with the uncased vocabulary.
        num_parameters=sizes.parameters + (pieces - _UNCASED) * sizes.hidden_size,
        cased="cased" in title and "uncased" not in title,
        language=language,
        names=tuple(names),
        scores=dict(scores),
        archive=archive,
    )


# Scores of the paper (arXiv 1810.04805), tables 1, 2 and 7, or else of google-research/bert.
RELEASED = [
    _preset(
        "BERT-Base, uncased",
        "base",
        "2018_10_18/uncased_L-12_H-768_A-12",
        "google-bert/bert-base-uncased",
        "bert_base_en_uncased",
        {"GLUE average": 79.6, "MNLI-m": 84.6, "SQuAD 1.1 F1": 88.5},
    ),
    _preset(
        "BERT-Large, uncased",
        "large",
        "2018_10_18/uncased_L-24_H-1024_A-16",
        "google-bert/bert-large-uncased",
        "bert_large_en_uncased",
        {"GLUE average": 82.1, "MNLI-m": 86.7, "SQuAD 1.1 F1": 90.9},
    ),
    _preset(
        "BERT-Base, cased",
        "base",
        "2018_10_18/cased_L-12_H-768_A-12",
        "google-bert/bert-base-cased",
        "bert_base_en",
        {"CoNLL-2003 F1": 92.4},
        _CASED,
    ),
    _preset(
        "BERT-Large, cased",
        "large",
        "2018_10_18/cased_L-24_H-1024_A-16",
        "google-bert/bert-large-cased",
        "bert_large_en",
        {"CoNLL-2003 F1": 92.8, "MNLI-m": 86.09, "SQuAD 1.1 F1": 91.5},
        _CASED,
    ),
    _preset(
        "BERT-Large, uncased, whole words masked",
        "large",
        "2019_05_30/wwm_uncased_L-24_H-1024_A-16",
        "google-bert/bert-large-uncased-whole-word-masking",
        None,
        {"MNLI-m": 87.07, "SQuAD 1.1 F1": 92.8},
    ),
    _preset(
        "BERT-Large, cased, whole words masked",
        "large",
        "2019_05_30/wwm_cased_L-24_H-1024_A-16",
        "google-bert/bert-large-cased-whole-word-masking",
        None,
        {"MNLI-m": 86.46, "SQuAD 1.1 F1": 92.9},
        _CASED,
    ),
    _preset(
        "BERT-Base, multilingual, cased",
        "base",
        "2018_11_23/multi_cased_L-12_H-768_A-12",
        "google-bert/bert-base-multilingual-cased",
        "bert_base_multi",
        {"XNLI en": 81.9, "XNLI zh": 76.6, "XNLI ur": 61.6},
        119547,
        "104 languages",
    ),
    _preset(
        "BERT-Base, multilingual, uncased",
        "base",
        "2018_11_03/multilingual_L-12_H-768_A-12",
        "google-bert/bert-base-multilingual-uncased",
        None,
        {"XNLI en": 81.4, "XNLI zh": 74.2, "XNLI ur": 61.7},
        105879,
        "102 languages",
    ),
    _preset(
        "BERT-Base, Chinese",
        "base",
        "2018_11_03/chinese_L-12_H-768_A-12",
        "google-bert/bert-base-chinese",
        "bert_base_zh",
        {"XNLI zh": 77.2},
        21128,
        "Chinese",
    ),
]
# Of the 24 of 2020 five have names, and four of these published scores.
_NAMED: dict[str, tuple[str, str | None, dict[str, float]]] = {
    "2/128": ("BERT-Tiny", "bert_tiny_en_uncased", {"GLUE score": 64.2, "MNLI-m": 70.2}),
    "4/256": ("BERT-Mini", None, {"GLUE score": 65.8, "MNLI-m": 74.8}),
    "4/512": ("BERT-Small", "bert_small_en_uncased", {"GLUE score": 71.2, "MNLI-m": 77.6}),
    "8/512": ("BERT-Medium", "bert_medium_en_uncased", {"GLUE score": 73.5, "MNLI-m": 80.0}),
    "12/768": ("BERT-Base, trained anew in 2020", None, {}),
}


def _small(size: str) -> Preset:
    layers, width = size.split("/")
    title, keras_hub, scores = _NAMED.get(size, (f"BERT {size}", None, {}))
    name = f"uncased_L-{layers}_H-{width}_A-{SIZES[size].num_attention_heads}"
    archive, repository = f"2020_02_20/{name}", f"google/bert_{name}"
    return _preset(title, size, archive, repository, keras_hub, scores)


RELEASED += [_small(f"{n}/{width}") for n in range(2, 13, 2) for width in (128, 256, 512, 768)]


def _shipped(name: str, folder: pathlib.Path) -> Preset:
    """Describe a model that comes with the package."""
    config = BertConfig.from_json_file(folder / "config.json", style="hf")
    layers, width = config.num_hidden_layers, config.hidden_size
    # SIZES counts 30,522 pieces and 512 positions.
    rows = config.vocab_size - _UNCASED + config.max_position_embeddings - 512
    return Preset(
        title=name,
        num_layers=layers,
        hidden_size=width,
        num_attention_heads=config.num_attention_heads,
        vocab_size=config.vocab_size,
        num_parameters=SIZES[f"{layers}/{width}"].parameters + rows * width,
        cased=not read_json(folder / "tokenizer_config.json")["do_lower_case"],
        language="English",
        names=(name,),
        scores={},
        archive="",
    )


def presets() -> Presets:
    """Return the models that come with the package and the released ones, with all about them."""
    return Presets([_shipped(*item) for item in shipped_models().items()] + RELEASED)
