"""The runs that a table of the paper needs: records, pre-training, fine-tuning and taggers.

What several tables need is run once: records, and the models that tables 5, 6 and 8 pre-train, lie
in folders that are not of one table.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bert_tf.files import write_text
from bert_tf.tokenization.vocabulary import load_vocab
from experiments.paper_tables import recipes
from experiments.paper_tables.cost import finetuning_flops, pretraining_flops
from experiments.paper_tables.grid import GridError, Run, flags_of

_PRETRAINED = "pretrained"
_USUAL_MASKS = {"mask_prob": 0.8, "keep_prob": 0.1, "random_prob": 0.1}
TAGGER_RESULT = "feature_based.json"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One figure of a table.

    Attributes:
        choices: label of hyper-parameters -> names of the runs with them, one for each seed.
        figure: key in the result file of these runs.
        factor: what the figure is multiplied with.
        paper: the paper's figure, or None where it has none.
        higher_is_better: whether the best of several choices is the highest.
        result: the file in the runs' folders.
    """

    choices: tuple[tuple[str, tuple[str, ...]], ...]
    figure: str
    factor: float = 1.0
    paper: float | None = None
    higher_is_better: bool = True
    result: str = "eval_results.json"


class RunsOfTable:
    """Collects the runs of one table; what two cells share is one run."""

    def __init__(
        self, number: int, scale: recipes.Scale, places: recipes.Places, root: pathlib.Path
    ):
        self.number, self.folder = number, f"table{number}"
        self.scale, self.places, self.root = scale, places, root
        self.runs: dict[str, Run] = {}

    def add(self, name: str, script: str, flags: Mapping[str, Any], **fields: Any) -> str:
        """Add a run, unless it is there, and return its name; other fields are those of `Run`."""
        run = Run(name, script, flags_of(**flags), **fields)
        if self.runs.setdefault(name, run) != run:
            raise GridError(f"two different runs have the name {name!r}")
        return name

    def path(self, name: str) -> str:
        """Return the path of what a run leaves."""
        return str(self.root / name)

    def config_file(self, folder: str, config: Mapping[str, Any]) -> str:
        """Write the configuration of a variant; return the path of the file.

        Raises:
            GridError: there is a model of another one, which its command alone does not tell.
        """
        path = self.root / folder / "bert_config.json"
        text = recipes.model_config(config, self.vocab_size()).to_json_string()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            if (path.parent / "pretraining").exists():
                raise GridError(
                    f"{path.parent}: holds a model of another configuration; use another folder, "
                    "or remove it"
                )
            write_text(path, text)
        return str(path)

    def vocab_size(self) -> int:
        """Return the number of pieces that a model has."""
        if self.scale.vocab_size is not None:
            return self.scale.vocab_size
        return max(load_vocab(self.places.get("vocab_file")).values()) + 1

    # -- pre-training --

    def vocabulary(self) -> tuple[str, tuple[str, ...]]:
        """Return the path of the vocabulary, and the runs that make it."""
        if self.scale.vocab_size is None:
            return self.places.get("vocab_file"), ()
        flags = {
            "input_file": self.places.get("corpus_files"),
            "vocab_size": self.scale.vocab_size,
            "num_unused": 0,
            # The default of 1,000 characters, each alone and within words, would take a quarter.
            "limit_alphabet": min(1000, self.scale.vocab_size // 40),
        }
        script, made = "data_prep/learn_vocab.py", {"result": "", "output_flag": "output_file"}
        name = self.add("data/vocab.txt", script, flags, **made)
        return self.path(name), (name,)

    def records(self, split: str, label: str, length: int, **flags: Any) -> str:
        """Make records of the corpus, "train" or "heldout"; return the run's name."""
        vocabulary, needs = self.vocabulary()
        files = self.places.get("corpus_files" if split == "train" else "heldout_files")
        recipe = self.scale.pretraining
        if recipe.dynamic_masking:
            flags["dynamic_masking"] = True
        if split == "train":  # held-out text shows what the paper's model would see
            flags["masked_lm_prob"] = recipe.masked_lm_prob
        return self.add(
            f"data/{label}-{length}-{split}.tfrecord",
            "data_prep/create_pretraining_data.py",
            {
                "input_file": files,
                "vocab_file": vocabulary,
                "max_seq_length": length,
                "max_predictions_per_seq": recipe.predictions(length),
                "dupe_factor": recipe.dupe_factor if split == "train" else 1,
                "num_workers": 1,
                **flags,
            },
            needs=needs,
            result="",
            output_flag="output_file",
        )

    def pretrained(self, config: Mapping[str, Any], **masks: Any) -> tuple[str, ...]:
        """Pre-train a variant with each seed; return the names of the runs.

        A name tells the size of the model, and what is unusual about it.

        Args:
            config: what differs from the scale's configuration.
            **masks: flags of how pieces are masked, if not in the usual way.
        """
        recipe = self.scale.pretraining
        config = {**recipe.config, **config}
        model = recipes.model_config(config, self.vocab_size())
        label = f"L{model.num_hidden_layers}-H{model.hidden_size}-A{model.num_attention_heads}"
        data = "masked"
        if model.left_to_right:  # it predicts every next piece: nothing is masked
            data = "masked" if recipe.dynamic_masking else "next"
            masks = {"dynamic_masking": True}
            label += "-left_to_right"
        elif masks and masks != _USUAL_MASKS:
            percent = [round(100 * masks[name]) for name in _USUAL_MASKS]
            data = "mask{}-same{}-random{}".format(*percent)
            label += f"-{data}"
        else:
            masks = {}
            label += "" if model.next_sentence_prediction else "-no_nsp"
        return tuple(
            self._pretraining(f"{_PRETRAINED}/{label}/seed{seed}", seed, config, data, masks)
            for seed in recipe.seeds
        )

    def _pretraining(
        self,
        folder: str,
        seed: int,
        config: Mapping[str, Any],
        data: str,
        masks: Mapping[str, Any],
    ) -> str:
        """Add a pre-training in a folder, and what it needs; return its name."""
        recipe = self.scale.pretraining
        vocabulary, needs = self.vocabulary()
        records = {
            (split, length): self.records(split, data, length, **masks)
            for split in ("train", "heldout")
            for length in (recipe.length, recipe.second_length)
            if length is not None
        }
        last = recipe.second_length or recipe.length
        second: dict[str, Any] = {}
        if recipe.second_length is not None:
            second = {
                "second_input_file": self.path(records["train", last]),
                "second_max_seq_length": last,
                "second_max_predictions_per_seq": recipe.predictions(last),
            }
        return self.add(
            f"{folder}/pretraining",
            "experiments/run_pretraining.py",
            {
                "bert_config_file": self.config_file(folder, config),
                "vocab_file": vocabulary,
                "input_file": self.path(records["train", recipe.length]),
                "eval_input_file": self.path(records["heldout", recipe.length]),
                "max_seq_length": recipe.length,
                "max_predictions_per_seq": recipe.predictions(recipe.length),
                **second,
                "do_train": True,
                "do_eval": True,
                "max_eval_steps": 0,
                "eval_batch_size": 64,
                "train_batch_size": recipe.batch_size,
                "num_train_steps": recipe.steps,
                "num_warmup_steps": recipe.warmup_steps,
                "learning_rate": recipe.learning_rate,
                "precision": recipe.precision,
                "jit_compile": recipe.jit_compile,
                "next_sentence_weight": (
                    recipe.next_sentence_weight
                    if config.get("next_sentence_prediction", True)
                    else None
                ),
                "seed": seed,
                "eval_every_steps": max(1, recipe.steps // 10),
                "log_steps": recipe.log_steps,
            },
            needs=(*needs, *records.values()),
            train_flops=pretraining_flops(config, recipe, self.vocab_size()),
            memory_bytes=3 << 30,
        )

    # -- fine-tuning --

    def target_flags(self, target: recipes.Target) -> dict[str, Any]:
        """Return a target's flags, with its places filled in."""
        flags = {}
        for name, value in target.flags:
            if isinstance(value, str) and value.startswith("{"):
                place, _, rest = value[1:].partition("}")
                value = self.places.get(place) + rest
            flags[name] = value
        return flags

    def finetuned(
        self,
        folder: str,
        name: str,
        *,
        model_dir: str,
        needs: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        paper: float | None = None,
        **flags: Any,
    ) -> Cell:
        """Fine-tune a model on a target, for each choice and seed; return the cell."""
        target, recipe = recipes.TARGETS[name], self.scale.recipe(name, own=bool(needs))
        # MRPC's accuracy and F1 are of the same runs.
        task = "mrpc" if name == "mrpc_f1" else name
        choices = []
        for rate, size in itertools.product(recipe.learning_rates, recipe.batch_sizes):
            of_choice = {
                "model_dir": model_dir,
                **self.target_flags(target),
                "do_train": True,
                "do_eval": True,
                "eval_batch_size": 32,
                "max_seq_length": recipe.max_seq_length,
                "learning_rate": rate,
                "train_batch_size": size,
                "num_train_epochs": recipe.epochs,
                "num_train_steps": recipe.steps,
                "bias_correction": recipe.bias_correction or None,
            }
            flops = finetuning_flops(config or {}, recipe, size, target)
            runs = tuple(
                self.add(
                    f"{folder}/{task}-lr{rate:g}-b{size}-seed{seed}",
                    target.script,
                    {**of_choice, "seeds": seed, "cache_dir": self.path("records"), **flags},
                    needs=tuple(needs),
                    train_flops=flops,
                )
                for seed in self.scale.seeds
            )
            choices.append((f"learning rate {rate:g}, batch {size}", runs))
        return Cell(tuple(choices), target.figure, target.factor, paper)

    def tagged(
        self,
        folder: str,
        choice: str,
        part: str,
        *,
        model_dir: str,
        needs: Sequence[str] = (),
        paper: float | None = None,
    ) -> Cell:
        """Train taggers on the features of a frozen encoder; return the cell of a part."""
        places, scale = self.places, self.scale
        name = self.add(
            f"{folder}/features-{choice}",
            "experiments/run_feature_based.py",
            {
                "model_dir": model_dir,
                "train_file": places.get("ner_train_file"),
                "dev_file": places.get("ner_dev_file"),
                "test_file": places.ner_test_file,
                "features": choice,
                "lstm_size": scale.lstm_size,
                "num_train_epochs": scale.tagger_epochs,
                "max_seq_length": scale.recipe("ner").max_seq_length,
                "seeds": ",".join(map(str, scale.seeds)),
                "train_batch_size": 32,
                "cache_dir": self.path(f"{folder}/feature_cache"),
            },
            needs=tuple(needs),
            result=TAGGER_RESULT,
        )
        figure = f"results/{choice}/seeds/*/{part}_f1"
        return Cell((("", (name,)),), figure, 1.0, paper, result=TAGGER_RESULT)


def cell_of(cells: Iterable[Cell]) -> Cell:
    """Return one cell of those that were made of a variant's models, one of each seed."""
    cells = tuple(cells)
    choices = zip(*(cell.choices for cell in cells), strict=True)
    return dataclasses.replace(
        cells[0],
        choices=tuple((of[0][0], tuple(run for _, runs in of for run in runs)) for of in choices),
    )


def folder_of(pretrained: str) -> str:
    """Return the folder of a pre-trained model, where what is made of it lies too."""
    return pretrained.rpartition("/")[0]
