"""Models to the Hugging Face Hub, each with a card."""

from __future__ import annotations

import math
import os
import pathlib

from huggingface_hub import CommitOperationAdd, HfApi, ModelCardData, constants, errors, get_token

from bert_tf.config import BertConfig
from bert_tf.files import Path, local_copy
from bert_tf.weights import hugging_face, tensor_files
from bert_tf.weights.layouts import HF_ARCHITECTURES
from bert_tf.weights.locate import HF_CONFIG_NAME, locate, read_json
from bert_tf.weights.published import cause_of

# Kind of model -> what the Hub calls its task.
_TASKS = {
    "encoder": "feature-extraction",
    "pretraining": "fill-mask",
    "masked_lm": "fill-mask",
    "classification": "text-classification",
    "token_classification": "token-classification",
    "span": "question-answering",
    "multiple_choice": "multiple-choice",
}
_LOGIN = "log in with a token that may write (`hf auth login`, or HF_TOKEN)"
_CARD_NAME = "README.md"
_CARD = """---
{data}---

# {title}

{description}

| | |
|---|---|
| model | {architecture} |
| layers, width, heads | {layers}, {width}, {heads} |
| parameters | {parameters:,} |
| pieces of the vocabulary | {pieces:,} |
| positions | {positions:,} |

In TensorFlow, with bert-tf:

```python
import bert_tf

model, config, tokenizer, *_ = bert_tf.load_model("hf://{title}")
```

In PyTorch, with transformers:

```python
import transformers

model = transformers.{architecture}.from_pretrained("{title}")
```
"""


def upload_hf(
    name: str,
    directory: Path,
    *,
    description: str = "",
    license: str | None = None,
    language: str | None = None,
    private: bool | None = None,
) -> str:
    """Put a model that `save_hf` has written into a repository of the Hugging Face Hub.

    One commit holds all of it, so that nobody finds half a model. A card goes with it, unless the
    repository or the folder has one. After an interruption, call it again.

    Args:
        name: hf://OWNER/NAME; made where it is missing.
        directory: the model's folder. Its weights go up, and the .json and .txt files beside them.
        description: what the card says of it: data, training, figures, limits. Markdown.
        license: the Hub's name of one, as "apache-2.0".
        language: code of its language, as "en".
        private: whether a new repository is; None (default) as the account has it.

    Returns:
        The address of the commit.

    Raises:
        OSError: there is no model, the Hub cannot be asked, or does not take it.
        PermissionError: there is no token, or it may not write there.
        ValueError: the name is none, the model is in other files, or the card is refused.
    """
    repository, revision, inner = hugging_face.Name.of(name)
    if revision or inner or "/" not in repository:
        raise ValueError(f"name: expected hf://OWNER/NAME, got {name}")
    folder = pathlib.Path(local_copy(directory))
    if locate(folder).format != "hf":
        raise ValueError(f"directory: expected what bert_tf.save_hf writes, got {folder}")
    present = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    files = hugging_face.wanted_files(os.fspath(directory), present, "")
    if _CARD_NAME in present:
        files.append(_CARD_NAME)
    adding = [CommitOperationAdd(file, folder / file) for file in files]
    card = _card(repository, folder, files[0], description, license, language)
    if get_token() is None:
        raise PermissionError(f"{name}: there is no token; {_LOGIN}")
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if _CARD_NAME not in files and not api.file_exists(repository, _CARD_NAME):
            adding.append(CommitOperationAdd(_CARD_NAME, card.encode()))
        title = f"Add {os.path.basename(repository)}"
        return api.create_commit(repository, adding, commit_message=title).commit_url
    except Exception as error:  # of the Hub, of httpx, of sockets
        raise _explained(name, error) from error


def _explained(name: str, error: Exception) -> OSError | ValueError:
    """Return an error of one line that says what to do."""
    if isinstance(error, errors.OfflineModeIsEnabled):
        return OSError(f"{name}: HF_HUB_OFFLINE is set; unset it to put the model up")
    chain: list[BaseException] = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(before)
    answers = [each for each in chain if isinstance(each, errors.HfHubHTTPError)]
    if not answers:
        if isinstance(error, ValueError):  # of the name or the card, before anything is sent
            return ValueError(f"{name}: {' '.join(str(error).split())}")
        return OSError(
            f"{name}: {constants.ENDPOINT} cannot be asked ({cause_of(error)}); connect and put it "
            "up again (it goes up whole or not at all; large files that came are not sent again)"
        )
    status = answers[0].response.status_code
    said = answers[0].server_message or cause_of(answers[0])
    if status == 401:
        return PermissionError(f"{name}: the Hub does not know this token ({said}); {_LOGIN}")
    if status == 403:
        return PermissionError(
            f"{name}: this token may not write there ({said}); take another OWNER, or {_LOGIN}"
        )
    later = "; try again later" if status == 429 or status >= 500 else ""
    return OSError(f"{name}: the Hub does not take it ({status}: {said}){later}")


def _card(
    repository: str,
    folder: pathlib.Path,
    weights: str,
    description: str,
    license: str | None,
    language: str | None,
) -> str:
    """Return the text of a model's card."""
    config = BertConfig.from_json_file(folder / HF_CONFIG_NAME, style="hf")
    architecture = (read_json(folder / HF_CONFIG_NAME).get("architectures") or ["BertModel"])[0]
    kinds = [kind for kind, (name, _) in HF_ARCHITECTURES.items() if name == architecture]
    data = ModelCardData(
        library_name="transformers",
        license=license,
        language=language,
        pipeline_tag=_TASKS.get(kinds[0]) if kinds else None,
        tags=["bert"],
    )
    shapes = tensor_files.open_tensors(str(folder / weights)).shapes
    return _CARD.format(
        data=f"{data.to_yaml()}\n",
        title=repository,
        description=description or "A BERT (arXiv 1810.04805).",
        architecture=architecture,
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        parameters=sum(map(math.prod, shapes.values())),
        pieces=config.vocab_size,
        positions=config.max_position_embeddings,
    )
