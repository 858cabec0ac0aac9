"""Tiny SavedModels with the signatures of real ones, and a server of them in this process."""

import asyncio
import contextlib
import http.client
import json
import threading

import tensorflow as tf

from experiments.model_server.server import ServerOptions, serve

TEXTS = tf.TensorSpec([None], tf.string)
LABELS = ("negative", "neutral", "positive")


def save_half_plus(folder, addend, with_x2=False):
    """TF Serving's toy models: y = x / 2 + addend, in the form of TensorFlow 1 that it documents.

    x has shape [-1, 1], and is sent as [1.0, 2.0, 5.0] all the same.
    """
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        half = v1.get_variable("a", initializer=0.5)
        b = v1.get_variable("b", initializer=float(addend))
        serialized = v1.placeholder(tf.string, name="tf_example")
        features = {"x": tf.io.FixedLenFeature([1], tf.float32)}
        parsed = tf.io.parse_example(serialized, features)
        x = tf.identity(tf.reshape(parsed["x"], [-1, 1]), name="x")
        y = tf.add(half * x, b, name="y")
        session.run(v1.global_variables_initializer())
        build = v1.saved_model.build_signature_def
        info = v1.saved_model.build_tensor_info
        signatures = {
            "serving_default": build({"x": info(x)}, {"y": info(y)}, "tensorflow/serving/predict"),
            "tensorflow/serving/regress": build(
                {"inputs": info(serialized)}, {"outputs": info(y)}, "tensorflow/serving/regress"
            ),
            "classify_x_to_y": build(
                {"inputs": info(serialized)}, {"scores": info(y)}, "tensorflow/serving/classify"
            ),
        }
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
    return folder


class Fitting(tf.Module):
    """Every shape of input and output that the REST API knows."""

    @tf.function(input_signature=[TEXTS, tf.TensorSpec([None, None], tf.int32)])
    def two(self, tag, signal):
        tf.debugging.assert_non_negative(signal, "signal: expected no number below 0")
        return {"length": tf.strings.length(tag), "total": tf.reduce_sum(signal, 1)}

    @tf.function(input_signature=[TEXTS])
    def image(self, image):
        return {"copy_bytes": image, "length": tf.strings.length(image)}

    @tf.function(input_signature=[TEXTS])
    def single(self, image):
        return {"copy_bytes": image}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def mean(self, x):
        return {"mean": tf.reduce_mean(x)}

    @tf.function(input_signature=[TEXTS])
    def classify(self, inputs):
        features = {
            "caption": tf.io.FixedLenFeature([], tf.string),
            "weight": tf.io.FixedLenFeature([], tf.float32, default_value=1.0),
        }
        parsed = tf.io.parse_example(inputs, features)
        score = parsed["weight"] * tf.cast(tf.strings.length(parsed["caption"]), tf.float32)
        return {
            "classes": tf.stack([parsed["caption"], tf.fill(tf.shape(inputs), "other")], 1),
            "scores": tf.stack([score, -score], 1),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float16)])
    def half(self, x):
        return {"y": x}


def save_fitting(folder):
    module = Fitting()
    names = ("two", "image", "single", "mean", "classify", "half")
    signatures = {name: getattr(module, name) for name in names}
    tf.saved_model.save(module, str(folder), {**signatures, "serving_default": module.two})
    return folder


def _offsets(text, start, end):
    """Text between offsets in characters, and those offsets in bytes."""
    piece = tf.strings.substr(text, start, end - start, unit="UTF8_CHAR")
    byte_start = tf.strings.length(
        tf.strings.substr(text, tf.zeros_like(start), start, unit="UTF8_CHAR")
    )
    return piece, byte_start, byte_start + tf.strings.length(piece)


CANDIDATES = 17


class Answering(tf.Module):
    """Question answering: the answer is characters 6 to 11 of the context; "" to "none".

    To "many" there are 17 candidates, the third of which has 2% and the others less than 1%.
    """

    @tf.function(input_signature=[TEXTS, TEXTS])
    def answer(self, question, context):
        some = tf.not_equal(question, "none")
        start, end = (tf.where(some, tf.fill(tf.shape(context), n), 0) for n in (6, 11))
        piece, byte_start, byte_end = _offsets(context, start, end)
        score = tf.where(some, 0.75, 0.0)
        unlikely = tf.constant([0.02] + [0.001] * (CANDIDATES - 3))
        others = tf.fill([tf.shape(context)[0], CANDIDATES - 2], "other")
        count = tf.where(tf.equal(question, "many"), CANDIDATES, tf.where(some, 2, 1))
        return {
            "answer": piece,
            "byte_start": byte_start,
            "byte_end": byte_end,
            "char_start": start,
            "char_end": end,
            "score": score,
            "null_score": 1 - score,
            "n_best_answers": tf.concat(
                [
                    tf.stack([piece, tf.strings.substr(context, 0, 3, unit="UTF8_CHAR")], 1),
                    others,
                ],
                1,
            ),
            "n_best_scores": tf.concat(
                [tf.stack([score, score / 5], 1), tf.ones_like(score)[:, None] * unlikely], 1
            ),
            "n_best_char_start": tf.stack([start, tf.zeros_like(start)], 1),
            "n_best_char_end": tf.stack([end, tf.zeros_like(end) + 3], 1),
            "n_best_count": count,
        }

    @tf.function(input_signature=[TEXTS])
    def pieces(self, text):
        return _word_pieces(text)

    @tf.function(input_signature=[TEXTS, TEXTS])
    def span_pieces(self, question, context):
        """The answer begins at the second word (96%) or the first, and ends at the third."""
        pieces = _word_pieces(context)
        place = tf.range(tf.shape(pieces["pieces"])[1])[None, :] + 0 * pieces["char_ends"]
        starts = tf.gather(tf.constant([0.035, 0.96, 0.005]), tf.minimum(place, 2))
        return {
            **pieces,
            "start_scores": starts,
            "end_scores": tf.where(place == 2, 0.75, 0.0),
        }


def _word_pieces(text):
    """Each word, which spaces part, as a piece of its own; "👩" is unknown."""
    words = tf.strings.split(text, " ")
    count, words = tf.cast(words.row_lengths(), tf.int32), words.to_tensor("")
    size = tf.strings.length(words, unit="UTF8_CHAR")
    end = tf.cumsum(size + 1, axis=1) - 1
    pieces = tf.where(tf.equal(words, "👩"), "[UNK]", words)
    return {"pieces": pieces, "char_starts": end - size, "char_ends": end, "piece_count": count}


class Tagging(tf.Module):
    """NER: a person at characters 0 to 4, and a place at 8 to 14."""

    @tf.function(input_signature=[TEXTS])
    def tag(self, text):
        ones = tf.ones_like(text, tf.int32)
        spans = [(0 * ones, 4 * ones), (8 * ones, 14 * ones)]
        pieces = [(start, end, *_offsets(text, start, end)) for start, end in spans]
        char_start, char_end, piece, byte_start, byte_end = (
            tf.stack(column, 1) for column in zip(*pieces, strict=True)
        )
        return {
            "entity_text": piece,
            "entity_type": tf.where(tf.equal(char_start, 0), "PER", "LOC"),
            "entity_byte_start": byte_start,
            "entity_byte_end": byte_end,
            "entity_char_start": char_start,
            "entity_char_end": char_end,
            "entity_score": tf.where(tf.equal(char_start, 0), 0.98, 0.83),
            "entity_count": 2 * ones,
        }

    @tf.function(input_signature=[TEXTS])
    def pieces(self, text):
        pieces = _word_pieces(text)
        is_name = tf.strings.regex_full_match(pieces["pieces"], "[A-Z].*")
        labels = tf.where(is_name, "B-PER", "O")
        return {**pieces, "labels": labels, "scores": tf.where(is_name, 0.75, 0.5)}


class Classifying(tf.Module):
    """Classification: long texts are positive."""

    def probabilities(self, text):
        length = tf.cast(tf.strings.length(text), tf.float32)
        return tf.nn.softmax(tf.stack([-length / 40, tf.zeros_like(length), length / 40], 1))

    @tf.function(input_signature=[TEXTS])
    def label(self, text):
        probabilities = self.probabilities(text)
        labels = tf.broadcast_to(tf.constant(LABELS), tf.shape(probabilities))
        label = tf.gather(tf.constant(LABELS), tf.argmax(probabilities, 1))
        return {"label": label, "labels": labels, "probabilities": probabilities}

    @tf.function(input_signature=[TEXTS])
    def classify(self, inputs):
        parsed = tf.io.parse_example(inputs, {"text": tf.io.FixedLenFeature([], tf.string)})
        output = self.label(parsed["text"])
        return {"classes": output["labels"], "scores": output["probabilities"]}


class Pairing(Classifying):
    """Classification of pairs: by the length of the first text."""

    @tf.function(input_signature=[TEXTS, TEXTS])
    def label_pair(self, text, text_b):
        return self.label(text)


class Filling(tf.Module):
    """Fill-mask: the same two candidates for each [MASK]."""

    @tf.function(input_signature=[TEXTS])
    def fill(self, text):
        marks = tf.strings.split(tf.strings.regex_replace(text, r"\[MASK\]", "\x01"), "\x01")
        count = tf.cast(marks.row_lengths(), tf.int32) - 1
        real = tf.sequence_mask(count)[:, :, None]
        return {
            "tokens": tf.where(real, tf.constant(["number", "##ed"]), ""),
            "scores": tf.where(real, tf.constant([0.625, 0.25]), 0.0),
            "mask_count": count,
        }

    @tf.function(input_signature=[TEXTS])
    def pieces(self, text):
        return _word_pieces(text)


class Embedding(tf.Module):
    """Embeddings: the mean has the length of a text and 4; the pooled vector 0 and 2."""

    @tf.function(input_signature=[TEXTS])
    def embed(self, text):
        length = tf.cast(tf.strings.length(text, unit="UTF8_CHAR"), tf.float32)
        mean = tf.stack([length, tf.fill(tf.shape(length), 4.0)], 1)
        return {"mean": mean, "pooled": mean * 0 + [0.0, 2.0]}


CARD = """# vectors

Task: embeddings. Made for `tests` & <b>others</b>.

## Signature `serving_default`

| | name | type |
|---|---|---|
| in | `text` | string |

## Example

    curl -d '{"inputs": {}}' \\
        http://localhost:8501/v1/models/vectors:predict
"""


def save_tasks(root):
    """One SavedModel of each kind that the page knows: root/<task>/1."""
    answering, tagging, classifying, filling = Answering(), Tagging(), Classifying(), Filling()
    embedding = Embedding()
    for name, module, signatures in (
        (
            "answers",
            answering,
            {
                "serving_default": answering.answer,
                "pieces": answering.pieces,
                "span_pieces": answering.span_pieces,
            },
        ),
        ("entities", tagging, {"serving_default": tagging.tag, "pieces": tagging.pieces}),
        (
            "opinions",
            classifying,
            {"serving_default": classifying.label, "classify": classifying.classify},
        ),
        ("masks", filling, {"serving_default": filling.fill, "pieces": filling.pieces}),
        ("vectors", embedding, {"serving_default": embedding.embed}),
    ):
        tf.saved_model.save(module, str(root / name / "1"), signatures)
    (root / "vectors" / "1" / "model_card.md").write_text(CARD)
    names = ("answers", "entities", "masks", "opinions", "vectors")
    return [(name, str(root / name)) for name in names]


class Measuring(tf.Module):
    """Regression: a text's length in bytes."""

    @tf.function(input_signature=[TEXTS])
    def measure(self, text):
        return {"value": tf.cast(tf.strings.length(text), tf.float32)}


def save_values(root):
    """One SavedModel more, of numbers: root/values/1."""
    module = Measuring()
    tf.saved_model.save(module, str(root / "values" / "1"), {"serving_default": module.measure})
    return "values", str(root / "values")


def save_pairs(root):
    """One SavedModel more, of pairs: root/pairs/1."""
    module = Pairing()
    tf.saved_model.save(module, str(root / "pairs" / "1"), {"serving_default": module.label_pair})
    return "pairs", str(root / "pairs")


class RunningServer:
    """A server in a thread of this process, and a client of it."""

    def __init__(self, options):
        self.options, self.ports = options, None
        self._listening, self._loop, self._stop = threading.Event(), None, None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.failure = None

    async def _run(self):
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()

        def listening(ports):
            self.ports = ports
            self._listening.set()

        try:
            await serve(self.options, self._stop, listening)
        except Exception as error:
            self.failure = error
        finally:
            self._listening.set()

    def start(self):
        self._thread.start()
        self._listening.wait()
        if self.failure:
            raise self.failure

    def ask_to_stop(self):
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)

    def join(self):
        self._thread.join()

    def send(self, method, path, body=None, headers=None):
        """Status, headers and body of the answer to one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports.rest, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    def get(self, path):
        status, _, body = self.send("GET", path)
        return status, json.loads(body)

    def post(self, path, request):
        body = request if isinstance(request, (bytes, str)) else json.dumps(request)
        status, headers, body = self.send("POST", path, body)
        assert headers["content-type"] == "application/json"
        return status, json.loads(body)

    def metrics(self):
        return self.send("GET", "/monitoring/prometheus/metrics")[2].decode()

    def wait_ready(self):
        def ready():
            for name, _ in self.options.models:
                for status in self.get(f"/v1/models/{name}")[1].get("model_version_status", []):
                    assert status["status"]["error_code"] == "OK", status
            return self.get("/readyz")[0] == 200

        self.wait_for(ready)

    def wait_for(self, condition):
        """Until a condition holds; two minutes, so that a fault does not hang the tests."""
        for _ in range(6000):
            if condition():
                return
            assert self._thread.is_alive(), self.failure
            threading.Event().wait(0.02)
        raise AssertionError("it did not come to be")


@contextlib.contextmanager
def running(models, wait_ready=True, **options):
    """Yield a server of models, (name, folder) each, on free ports of loopback."""
    defaults = {"rest_api_port": 0, "port": 0, "file_system_poll_wait_seconds": 0.05}
    server = RunningServer(ServerOptions(models=tuple(models), **{**defaults, **options}))
    server.start()
    try:
        if wait_ready:
            server.wait_ready()
        yield server
    finally:
        server.ask_to_stop()
        server.join()
    assert server.failure is None
