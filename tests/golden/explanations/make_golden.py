"""Make explanations.json with torch and transformers alone; README.md tells more."""

import json
import pathlib

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
MODELS = HERE.parent / "transformers"
VOCABULARY = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] the cat dog sat on mat ran far a big red ##s ##ed . , ? "
    "who what did it in sun rain we they like ##ly home one two three four"
).split()
STEPS = 4000  # of the midpoint rule
TAGS = ("O", "B-X", "I-X")


def opened(name: str):
    """Load a model in float64."""
    model = getattr(transformers, name).from_pretrained(MODELS / name, attn_implementation="eager")
    return model.double().eval()


def ids_of(text: str) -> list[int]:
    """Look up pieces that stand apart already."""
    return [VOCABULARY.index(piece) for piece in text.split()]


def explained(model, a: list[int], b: list[int], filler: int, score, read_at) -> dict:
    """Integrate by the midpoint rule, and multiply the layers' attention with NumPy."""
    ids = torch.tensor([[2, *a, 3, *b, *([3] if b else [])]])
    segments = torch.tensor([[0] * (len(a) + 2) + [1] * (ids.shape[1] - len(a) - 2)])
    mask = torch.ones_like(ids)
    table = model.get_input_embeddings().weight.detach()
    special = (ids == 2) | (ids == 3)
    x = table[ids]
    base = table[torch.where(special, ids, torch.full_like(ids, filler))]

    def run(vectors):
        count = len(vectors)
        return score(
            model(
                inputs_embeds=vectors,
                attention_mask=mask.repeat(count, 1),
                token_type_ids=segments.repeat(count, 1),
            )
        )

    total = torch.zeros_like(x)
    for start in range(0, STEPS, 500):
        alpha = (torch.arange(start, start + 500, dtype=torch.float64) + 0.5) / STEPS
        points = (base + alpha[:, None, None] * (x - base)).requires_grad_()
        total += torch.autograd.grad(run(points).sum(), points)[0].sum(0) / STEPS
    scores = ((x - base) * total).sum(-1)[0]
    outputs = model(
        input_ids=ids, attention_mask=mask, token_type_ids=segments, output_attentions=True
    )
    rollout = np.eye(ids.shape[1])
    for layer in outputs.attentions:
        rollout = (0.5 * layer.detach().numpy()[0].mean(0) + 0.5 * np.eye(ids.shape[1])) @ rollout
    return {
        "value": float(run(x)[0]),
        "baseline_value": float(run(base)[0]),
        "scores": scores.tolist(),
        "attention": rollout[read_at].mean(0).tolist(),
    }


def logits_of(model, a, b):
    """Return a model's outputs for one sequence."""
    ids = torch.tensor([[2, *a, 3, *b, *([3] if b else [])]])
    segments = torch.tensor([[0] * (len(a) + 2) + [1] * (ids.shape[1] - len(a) - 2)])
    with torch.no_grad():
        return model(input_ids=ids, token_type_ids=segments)


def main() -> None:
    """Write the file."""
    cases = []
    model = opened("BertForSequenceClassification")
    for a, b in (("the cat ##s sat on a mat .", ""), ("a big dog ran", "the red cat sat , far")):
        best = int(logits_of(model, ids_of(a), ids_of(b)).logits[0].argmax())
        for label in (best, (best + 1) % 5):
            for baseline, filler in (("pad", 0), ("mask", 4)):
                made = explained(
                    model, ids_of(a), ids_of(b), filler, lambda out, k=label: out.logits[:, k], [0]
                )
                cases.append(
                    {
                        "kind": "classification",
                        "texts": [a, b],
                        "label": label,
                        "is_best": label == best,
                        "baseline": baseline,
                        **made,
                    }
                )
    model = opened("BertForQuestionAnswering")
    a, b = "who sat on it ?", "the big cat ##s sat on a red mat"
    outputs = logits_of(model, ids_of(a), ids_of(b))
    first = len(a.split()) + 2
    last = first + len(b.split())
    start, end = max(
        ((i, j) for i in range(first, last) for j in range(i, last)),
        key=lambda ij: float(outputs.start_logits[0, ij[0]] + outputs.end_logits[0, ij[1]]),
    )
    made = explained(
        model,
        ids_of(a),
        ids_of(b),
        0,
        lambda out: out.start_logits[:, start] + out.end_logits[:, end],
        sorted({start, end}),
    )
    cases.append(
        {
            "kind": "question_answering",
            "texts": [a, b],
            "span": [start, end],
            "baseline": "pad",
            **made,
        }
    )
    model = opened("BertForTokenClassification")
    a = "we like the big sun in three home ##s"
    tags = logits_of(model, ids_of(a), []).logits[0].argmax(-1).tolist()
    words = [i + 1 for i, piece in enumerate(a.split()) if not piece.startswith("##")]
    chunks, before = [], 0
    for place in words:
        tag = tags[place]
        if tag and (tag == 1 or not before):
            chunks.append([])
        if tag:
            chunks[-1].append(place)
        before = tag
    for chunk in chunks:
        made = explained(
            model,
            ids_of(a),
            [],
            0,
            lambda out, chunk=chunk: sum(out.logits[:, p, tags[p]] for p in chunk) / len(chunk),
            chunk,
        )
        cases.append(
            {
                "kind": "token_classification",
                "texts": [a, ""],
                "places": chunk,
                "baseline": "pad",
                **made,
            }
        )
    content = {"vocabulary": VOCABULARY, "tags": TAGS, "cases": cases}
    (HERE / "explanations.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
