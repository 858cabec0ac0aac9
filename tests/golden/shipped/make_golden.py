"""Count the pieces of the text that tiny-wikipedia was trained on; see README.md beside it.

python tests/golden/shipped/make_golden.py train.txt
"""

import collections
import json
import pathlib
import sys

from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.weights.shipped import shipped_models
from tests.weights.test_shipped import SENTENCES

if __name__ == "__main__":
    tokenizer = FullTokenizer(shipped_models()["tiny-wikipedia"] / "vocab.txt", True)
    counts: collections.Counter[int] = collections.Counter()
    with open(sys.argv[1], encoding="utf-8") as file:
        for line in file:
            counts.update(tokenizer.encode(line))
    wanted = sorted({piece for sentence in SENTENCES for piece in tokenizer.tokenize(sentence)})
    values = {
        "pieces": sum(counts.values()),
        "counts": {piece: counts[tokenizer.vocab[piece]] for piece in wanted},
    }
    path = pathlib.Path(__file__).with_name("unigram.json")
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
