"""What weights are, wherever they lie: a digest of their files."""

import hashlib
import pathlib

from bert_tf.files import sha256
from bert_tf.weights.checkpoint import Checkpoint


def weights_digest(checkpoint: Checkpoint | None) -> str:
    """Return a short digest of the content of the weights' files; None is "random weights"."""
    if checkpoint is None or checkpoint.located is None:
        return "random weights"
    path = pathlib.Path(checkpoint.located.path)
    if checkpoint.located.format == "tf":
        files = [p for p in path.parent.iterdir() if p.name.startswith(f"{path.name}.")]
    elif path.is_dir():
        files = [p for p in path.iterdir() if p.name.endswith(".h5")]
    elif path.suffix == ".json":  # names the parts, which lie beside it
        parts = (p for p in path.parent.iterdir() if p.suffix in (".safetensors", ".bin"))
        files = [path, *parts]
    else:
        files = [path]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(bytes.fromhex(sha256(file)))
    return digest.hexdigest()[:16]
