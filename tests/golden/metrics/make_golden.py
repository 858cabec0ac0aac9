"""Make the golden reports of entity scores by running the evaluation scripts themselves.

    python tests/golden/metrics/make_golden.py --conlleval_pl=FILE --conlleval_py=FILE

conlleval_pl is conlleval of the CoNLL-2000 and CoNLL-2003 shared tasks (Perl, version 2004-01-26);
conlleval_py is conlleval.py of github.com/spyysalo/conlleval.py, commit 6a21dde, run with a line
mended for Python 3 (dict.keys() + dict.keys()). seqeval 1.2.2 must be installed: it is asked for
the chunks, too, and must agree with the script.
"""

import argparse
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile

from seqeval.metrics.sequence_labeling import get_entities

FOLDER = pathlib.Path(__file__).resolve().parent
CASES = 40
TYPES = (("PER",), ("PER", "LOC"), ("PER", "LOC", "creative-work"))


def random_tag(generator: random.Random, forms: str, types: tuple[str, ...], outside: float) -> str:
    """One tag; any may follow any other."""
    if generator.random() < outside:
        return "O"
    return f"{generator.choice(forms)}-{generator.choice(types)}"


def random_case(generator: random.Random, forms: str) -> tuple[list[list[str]], list[list[str]]]:
    """Return true and predicted tags of a few sentences."""
    types = generator.choice(TYPES)
    true, predicted = [], []
    for _ in range(generator.randint(1, 20)):
        outside = generator.choice((0.0, 0.2, 0.5, 0.9))
        right = generator.choice((0.3, 0.8))
        tags = [
            random_tag(generator, forms, types, outside) for _ in range(generator.randint(1, 9))
        ]
        true.append(tags)
        predicted.append(
            [
                tag if generator.random() < right else random_tag(generator, forms, types, outside)
                for tag in tags
            ]
        )
    return true, predicted


def report(command: list[str], true: list[list[str]], predicted: list[list[str]]) -> str:
    """Return what a script prints of the tags."""
    text = "".join(
        "".join(f"word {a} {b}\n" for a, b in zip(*tags, strict=True)) + "\n"
        for tags in zip(true, predicted, strict=True)
    )
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return done.stdout


def check_with_seqeval(printed: str, true: list[list[str]], predicted: list[list[str]]) -> None:
    """Raise if seqeval finds other numbers of chunks than the script."""
    found = [
        {(index, *entity) for index, tags in enumerate(sentences) for entity in get_entities(tags)}
        for sentences in (true, predicted)
    ]
    counts = [len(found[0]), len(found[1]), len(found[0] & found[1])]
    said = re.search(r"with (\d+) phrases; found: (\d+) phrases; correct: (\d+)\.", printed)
    if list(map(int, said.groups())) != counts:
        raise RuntimeError(f"seqeval counts {counts}, the script prints {printed}")


def main() -> None:
    """Write the cases of both scripts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--conlleval_pl", required=True)
    parser.add_argument("--conlleval_py", required=True)
    arguments = parser.parse_args()
    mended = re.sub(
        r"uniq\((.*?\.keys\(\)) \+ (.*?\.keys\(\))\)",
        r"uniq([*\1, *\2])",
        pathlib.Path(arguments.conlleval_py).read_text(encoding="utf-8"),
    )
    with tempfile.TemporaryDirectory() as folder:
        script = pathlib.Path(folder, "conlleval.py")
        script.write_text(mended, encoding="utf-8")
        for name, forms, command in (
            ("conlleval_pl", "BI", ["perl", arguments.conlleval_pl]),
            ("conlleval_py", "BIES", [sys.executable, str(script)]),
        ):
            cases = []
            for seed in range(CASES):
                true, predicted = random_case(random.Random(f"{forms}{seed}"), forms)
                printed = report(command, true, predicted)
                check_with_seqeval(printed, true, predicted)
                cases.append(
                    {
                        "true": [" ".join(tags) for tags in true],
                        "predicted": [" ".join(tags) for tags in predicted],
                        "report": printed,
                    }
                )
            text = json.dumps(cases, indent=1) + "\n"
            (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
