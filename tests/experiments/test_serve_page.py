"""The page of the development server in a real browser: a click on Run shows each task's answer.

Needs the extra `browser` and a Chromium, which BERT_TF_CHROMIUM or the PATH names. Set
BERT_TF_SCREENSHOTS to a folder to keep what was seen.
"""

import contextlib
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from experiments.model_server.start import NEEDED

for module in NEEDED:
    pytest.importorskip(module, reason=f"the extra `serving` is not installed: no {module}")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="the extra `browser` is not installed: no playwright"
)

from bert_tf.serving.explanations import explain  # noqa: E402
from tests.support import explained_models  # noqa: E402
from tests.support import serving_stand_ins as stand_ins  # noqa: E402

pytestmark = pytest.mark.serving

ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
CONTEXT = (
    "👩👩👩a: Zoë Q. wrote it, and then wrote it once more, in a passage that is long enough "
    "to take several lines on a telephone."
)
WIDE, NARROW = {"width": 1200, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    chromium = os.environ.get("BERT_TF_CHROMIUM") or shutil.which("chromium")
    if not chromium:
        pytest.skip("no chromium on the PATH; set BERT_TF_CHROMIUM to one")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Yield a server of a model of each task, one that fails, and one that has no version yet."""
    root = tmp_path_factory.mktemp("models")
    models = stand_ins.save_tasks(root)
    stand_ins.save_half_plus(root / "half_plus_two" / "1", 2)
    (root / "broken" / "3").mkdir(parents=True)
    (root / "broken" / "3" / "saved_model.pb").write_bytes(b"no SavedModel")
    (root / "late").mkdir()
    models += [(name, str(root / name)) for name in ("half_plus_two", "broken", "late")]
    with stand_ins.running(models, wait_ready=False) as running:
        running.wait_for(lambda: "END" in str(running.get("/v1/models/broken")))
        running.root = root
        yield running


def is_problem(message):
    """Whether the browser complains, but for what it says by itself of a model without versions."""
    return message.type == "error" and not message.location["url"].endswith("/v1/models/late")


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return explained_models.golden_models(tmp_path_factory.mktemp("vocab"))


@pytest.fixture(scope="module")
def explaining(tmp_path_factory, golden):
    """Yield a server of models whose answers can be explained, and one whose cannot."""
    root = tmp_path_factory.mktemp("models")
    models = [*stand_ins.save_tasks(root), *(save(root) for save in SAVE_MORE)]
    explained = {**golden, "values": golden["opinions"]}
    with stand_ins.running(models, explained=explained, max_explain_steps=64) as running:
        yield running


SAVE_MORE = (stand_ins.save_pairs, stand_ins.save_values)


@contextlib.contextmanager
def opened_page(look, browser, server):
    """Yield the page, on a desk in the light ("wide") or on a phone in the dark."""
    wide = look == "wide"
    context = browser.new_context(
        viewport=WIDE if wide else NARROW,
        color_scheme="light" if wide else "dark",
        has_touch=not wide,
    )
    opened, problems, foreign = context.new_page(), [], []
    home = f"http://127.0.0.1:{server.ports.rest}/"
    opened.on("console", lambda m: problems.append(m.text) if is_problem(m) else None)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("request", lambda r: None if r.url.startswith(home) else foreign.append(r.url))
    opened.goto(home)
    opened.problems, opened.look, opened.shots = problems, look, 0
    yield opened
    context.close()
    assert not [url for url in foreign if not url.startswith("data:")]


@pytest.fixture(params=["wide", "narrow"])
def page(request, browser, server):
    with opened_page(request.param, browser, server) as opened:
        yield opened


@pytest.fixture(params=["wide", "narrow"])
def why_page(request, browser, explaining):
    with opened_page(request.param, browser, explaining) as opened:
        yield opened


# For what does not depend on the room that there is.
on_a_desk = pytest.mark.parametrize("page", ["wide"], indirect=True)


def run(page, model, **inputs):
    """Choose a model, type, click on Run, and wait for the answer."""
    page.locator("nav button", has_text=model).click()
    for name, value in inputs.items():
        page.fill(f"textarea[name={name}]", value)
    page.click("#run")
    page.locator("#note", has_text=" ms").wait_for()
    folder = os.environ.get("BERT_TF_SCREENSHOTS")
    if folder:
        page.shots += 1
        path = pathlib.Path(folder) / f"{model}_{page.look}_{page.shots}.png"
        page.screenshot(path=str(path), full_page=True)
    # Nothing sticks out to the side.
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    return page.locator("#result")


def bars(result):
    """Name, value and width of each bar."""
    return [
        (
            row.locator(".name").inner_text(),
            row.locator(".value").inner_text(),
            row.locator(".fill").evaluate("e => e.style.width"),
        )
        for row in result.locator(".bars li").all()
    ]


def test_tasks_are_found_by_their_signatures(page):
    page.locator("nav button[aria-pressed=true]").wait_for()
    assert [button.inner_text() for button in page.locator("nav button").all()] == [
        "answers\nQuestion answering",
        "entities\nNamed entities",
        "masks\nFill-mask",
        "opinions\nClassification",
        "vectors\nEmbeddings",
        "half_plus_two\nJSON",
        "broken\nfailed",
        "late\nwaiting …",
    ]
    assert not page.problems


def test_fill_mask(page):
    result = run(page, "masks", text="Return the [MASK] of items, sort[MASK] by <b>size</b>.")
    # A piece that begins with ## joins the word before; markup in a text stays text.
    assert result.locator(".passage").inner_text() == (
        "Return the number of items, sortnumber by <b>size</b>."
    )
    assert bars(result) == 2 * [("number", "62.5%", "62.5%"), ("##ed", "25.0%", "25%")]
    assert page.locator(".fill").first.bounding_box()["width"] > 20
    result = run(page, "masks", text="nothing")
    assert "no [MASK]" in result.inner_text()
    assert not page.problems


def test_question_answering(page):
    # Code points beyond 16 bits before the answer: offsets count them once.
    result = run(page, "answers", question="Who?", context=CONTEXT)
    assert result.locator("mark").inner_text() == "Zoë Q"
    assert result.locator(".headline").inner_text() == "Zoë Q"
    assert [name for name, _, _ in bars(result)] == ["Zoë Q", "👩👩👩"]
    assert result.get_by_text("Show all").count() == 0
    result = run(page, "answers", question="none", context=CONTEXT)
    assert result.locator("mark").count() == 0
    assert "no answer" in result.inner_text()
    assert not page.problems


def test_candidates_that_are_worth_showing(page):
    result = run(page, "answers", question="many", context=CONTEXT)
    rows, all_rows = result.locator(".bars li:not([hidden])"), result.locator(".bars li")
    # One of 2% is shown, those of less than 1% are not.
    assert (rows.count(), all_rows.count()) == (3, stand_ins.CANDIDATES)
    result.get_by_role("button", name=f"Show all {stand_ins.CANDIDATES}").click()
    assert rows.count() == stand_ins.CANDIDATES
    assert result.get_by_text("Show all").count() == 0
    assert not page.problems


def test_embeddings(page):
    """Vectors (3, 4), (8, 4) and again (3, 4), whose similarity is 40 / (5 * sqrt(80)) or 1."""
    result = run(page, "vectors", text="one\n\n  two long \n")
    assert result.locator(".headline").inner_text() == "Similarity 0.894"
    cells = [row.inner_text().split("\t") for row in result.locator("tbody tr").all()]
    assert cells == [
        ["1. one", "1.000", "0.894", "5.000"],
        ["2. two long", "0.894", "1.000", "8.944"],
    ]
    result.locator("select").select_option("pooled")
    assert result.locator(".headline").inner_text() == "Similarity 1.000"
    result = run(page, "vectors", text="one\ntwo long\nsix")
    assert result.locator(".headline").inner_text() == "Most alike: 1 and 3, 1.000"
    result = run(page, "vectors", text="one")
    assert result.locator(".headline").inner_text() == "2 numbers"
    assert "Norm 5.000" in result.inner_text()
    page.fill("textarea[name=text]", " \n")
    page.click("#run")
    page.wait_for_selector(".error")
    assert "write one or more" in page.locator(".error").inner_text()
    assert not page.problems


def chosen(page):
    button = page.locator("nav button[aria-pressed=true]")
    return button.get_attribute("data-model") if button.count() else None


def test_address_holds_model_and_input(page, browser):
    """Back and forward change both; what was typed is kept; a link shows the same elsewhere."""
    page.locator("nav button", has_text="opinions").click()
    page.fill("textarea[name=text]", "Zoë & [MASK] = 50%?\n#2")
    page.locator("nav button", has_text="entities").click()
    # The same field of another model begins with it; one that needs a [MASK] does without.
    assert page.input_value("textarea[name=text]") == "Zoë & [MASK] = 50%?\n#2"
    page.fill("textarea[name=text]", "other")
    page.locator("nav button", has_text="masks").click()
    assert page.input_value("textarea[name=text]") == "The capital of France is [MASK]."
    page.go_back()
    assert (chosen(page), page.input_value("textarea[name=text]")) == ("entities", "other")
    page.go_back()
    assert chosen(page) == "opinions"
    assert page.input_value("textarea[name=text]") == "Zoë & [MASK] = 50%?\n#2"
    assert "opinions" in page.title()
    link = page.url
    page.go_forward()
    assert (chosen(page), page.input_value("textarea[name=text]")) == ("entities", "other")
    page.locator("nav button", has_text="opinions").click()
    assert page.input_value("textarea[name=text]") == "Zoë & [MASK] = 50%?\n#2"
    other = browser.new_page()
    other.goto(link)
    other.locator("nav button[aria-pressed=true]").wait_for()
    assert chosen(other) == "opinions"
    assert other.input_value("textarea[name=text]") == "Zoë & [MASK] = 50%?\n#2"
    other.goto(link.split("#")[0] + "#model=gone")
    other.reload()
    other.wait_for_selector(".error")
    assert 'no model "gone"' in other.locator(".error").inner_text()
    assert chosen(other) == "answers"
    other.close()
    assert not page.problems


def test_examples(page):
    page.locator("nav button", has_text="answers").click()
    page.get_by_role("button", name="Who made BERT?").click()
    assert page.input_value("textarea[name=question]") == "Who made BERT?"
    assert "Jacob Devlin" in page.input_value("textarea[name=context]")
    page.locator("nav button", has_text="half_plus_two").click()
    assert page.locator("#examples").is_hidden()
    assert not page.problems


def test_request_for_a_shell_and_for_python(page):
    """What is copied runs, and gives the answer that is shown."""
    text = 'It\'s "50%" $HOME `of` \\n 👩 [MASK]!'
    result = run(page, "masks", text=text)
    result.get_by_text("Request and answer").click()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    copied = {}
    for name in ("curl", "Python", "Answer"):
        result.get_by_role("button", name=f"Copy {name}").click()
        page.wait_for_timeout(100)
        copied[name] = page.evaluate("navigator.clipboard.readText()")
    answer = json.loads(copied["Answer"])
    assert answer["predictions"][0]["mask_count"] == 1
    shell = subprocess.run(["bash", "-c", copied["curl"]], capture_output=True, check=True)
    assert json.loads(shell.stdout) == answer
    script = subprocess.run([sys.executable, "-c", copied["Python"]], capture_output=True)
    assert script.stdout.decode().strip() == str(answer["predictions"]), script.stderr
    assert not page.problems


def test_about_a_model(page):
    page.locator("nav button", has_text="vectors").click()
    if page.look == "narrow":  # where there is room it is open
        page.locator("#about > summary").click()
    about = page.locator("#about-text")
    about.get_by_text("Signatures and an example").click()
    about.locator("tbody td").first.wait_for()
    assert about.locator("li").all_inner_texts() == ["Version 1: available"]
    assert about.locator("h3").all_inner_texts() == [
        "vectors",
        "Signature serving_default",
        "Example",
    ]
    assert "Made for tests & <b>others</b>." in about.inner_text()
    assert about.locator("tbody td").all_inner_texts() == ["in", "text", "string"]
    assert about.locator("pre").inner_text().startswith("curl -d '{\"inputs\": {}}' \\\n")
    # It stays open, for another model, which has no card.
    page.locator("nav button", has_text="half_plus_two").click()
    about.get_by_text("No model card").wait_for()
    assert about.locator("tbody td").all_inner_texts()[:4] == ["in", "x", "float", "[?, 1]"]
    page.locator("nav button", has_text="broken").click()
    about.get_by_text("Version 3: failed: ").wait_for()
    assert not page.problems


def test_named_entities(page):
    result = run(page, "entities", text="Zoë👩 in Madrid, she said.")
    marks = result.locator("mark").all()
    assert [mark.inner_text() for mark in marks] == ["Zoë👩", "Madrid"]
    label = "e => getComputedStyle(e, '::after').content"
    assert [mark.evaluate(label) for mark in marks] == ['"PER"', '"LOC"']
    colours = {mark.evaluate("e => getComputedStyle(e).backgroundColor") for mark in marks}
    assert len(colours) == 2
    # What is copied is the text, without the types.
    select = "e => { getSelection().selectAllChildren(e); return getSelection().toString(); }"
    assert result.locator(".passage").evaluate(select) == "Zoë👩 in Madrid, she said."
    assert [name for name, _, _ in bars(result)] == ["Zoë👩 PER", "Madrid LOC"]
    assert not page.problems


def test_classification(page):
    result = run(page, "opinions", text="A long and touching film, funny from beginning to end.")
    names = [name for name, _, _ in bars(result)]
    assert names == ["positive", "neutral", "negative"]
    assert result.locator(".headline").inner_text() == "positive"
    assert not page.problems


def test_answer_that_comes_after_another_model_was_chosen(page):
    """It is not shown under that model, nor is its error, and Run is free again."""
    held = []

    def hold(route):
        held.append(route)

    for status in (200, 500):
        held.clear()
        page.route("**/v1/models/masks:predict", hold)
        page.locator("nav button", has_text="masks").click()
        page.click("#run")
        for _ in range(100):
            if held:
                break
            page.wait_for_timeout(20)
        page.locator("nav button", has_text="opinions").click()
        assert page.locator("#run").is_enabled()
        with page.expect_response("**/v1/models/masks:predict"):
            if status == 200:
                held[0].continue_()
            else:
                held[0].fulfill(status=500, json={"error": "late"})
        page.wait_for_timeout(200)
        assert page.locator("#result").is_hidden()
        assert page.locator("#note").inner_text() == ""
        page.unroute("**/v1/models/masks:predict")
    result = run(page, "opinions", text="A long and touching film.")
    assert result.locator(".headline").inner_text() == "positive"


@on_a_desk
def test_answer_that_comes_after_another_text_was_chosen(page):
    """It is not shown beside that text, which stays when the page is loaded again."""
    held = []
    page.route("**/v1/models/opinions:predict", lambda route: held.append(route))
    page.locator("nav button", has_text="opinions").click()
    page.fill("textarea[name=text]", "A long film.")
    page.click("#run")
    for _ in range(100):
        if held:
            break
        page.wait_for_timeout(20)
    page.evaluate("location.hash = '#model=opinions&text=Another'")
    playwright.expect(page.locator("textarea[name=text]")).to_have_value("Another")
    with page.expect_response("**/v1/models/opinions:predict"):
        held[0].continue_()
    page.wait_for_timeout(200)
    assert page.locator("#result").is_hidden() and page.locator("#run").is_enabled()
    page.unroute("**/v1/models/opinions:predict")
    page.go_back()
    playwright.expect(page.locator("textarea[name=text]")).to_have_value("A long film.")
    assert not page.problems


def test_model_of_another_kind(page):
    # What it begins with runs.
    assert "2" in run(page, "half_plus_two").locator("pre").first.inner_text()
    result = run(page, "half_plus_two", instances="[1.0, 2.0, 5.0]")
    assert "4.5" in result.locator("pre").first.inner_text()
    page.fill("textarea[name=instances]", '["a"]')
    page.click("#run")
    page.wait_for_selector(".error")
    assert "not of expected type: float" in page.locator(".error").inner_text()
    # The browser tells of status 400 by itself.
    assert all("400" in problem for problem in page.problems)


def test_nearest_of_a_list(page):
    """Vectors (length, 4): to (8, 4) the nearest of (3, 4), (9, 4) and (1, 4)."""
    result = run(page, "vectors", text="six\nnine more\n1", query="two long")
    assert result.locator(".headline").inner_text() == "nine more"
    assert bars(result) == [
        ("nine more", "0.999", "99.8969%"),
        ("six", "0.894", "89.4427%"),
        ("1", "0.651", "65.0791%"),
    ]
    # The answers come in several requests, and only the first of a long list are shown.
    many = "\n".join("x" * n for n in range(1, 51))
    asked = []
    page.on("request", lambda r: asked.append(r.post_data_json) if r.method == "POST" else None)
    result = run(page, "vectors", text=many, query="x" * 33)
    assert [len(request["instances"]) for request in asked] == [32, 19]
    assert result.locator(".headline").inner_text() == "x" * 33
    rows = result.locator(".bars li:not([hidden])")
    assert rows.count() == 10
    result.get_by_role("button", name="Show all 50").click()
    assert rows.count() == 50
    assert not page.problems


@on_a_desk
def test_long_list_without_a_question(page):
    """Eleven texts, of which a table would be too wide: pairs, best first."""
    result = run(page, "vectors", text="\n".join("x" * n for n in range(1, 12)), query="")
    assert result.locator(".headline").inner_text() == "Most alike: 10 and 11, 0.999"
    first = result.locator(".bars li").first
    assert first.inner_text().split("\n") == [f"{'x' * 10} – {'x' * 11}", "0.999"]
    assert result.locator("table").count() == 0


def test_pieces(page):
    result = run(page, "entities", text="Zoë 👩 went on.")
    result.get_by_text("Pieces").click()
    result.locator(".piece").first.wait_for()
    assert "4 pieces, 1 of them unknown" in result.inner_text()
    pieces = result.locator(".piece").all()
    assert [piece.inner_text() for piece in pieces] == [
        "Zoë B-PER 75.0%",
        "[UNK] 👩",
        "went",
        "on.",
    ]
    assert [piece.get_attribute("title") for piece in pieces][1:3] == [
        "“👩”, characters 4 to 5: O, 50.0%",
        "“went”, characters 6 to 10: O, 50.0%",
    ]
    # A model that cannot tell has no such view.
    result = run(page, "opinions", text="A film.")
    assert result.get_by_text("Pieces").count() == 0
    assert not page.problems


def test_pieces_of_a_passage_with_start_and_end(page):
    result = run(page, "answers", question="Who is it?", context="By Zoë 👩 and others.")
    result.get_by_text("Pieces").click()
    result.locator(".piece").first.wait_for()
    assert result.locator("h3").all_inner_texts()[-2:] == ["Question", "Passage"]
    pieces = result.locator(".piece")
    assert pieces.all_inner_texts() == [
        *["Who", "is", "it?"],
        "By begins 3.5%",
        "Zoë begins 96.0%",
        "[UNK] 👩 ends 75.0%",
        *["and", "others."],
    ]
    assert pieces.nth(1).get_attribute("title") == "“is”, characters 4 to 6"
    assert pieces.nth(5).get_attribute("title") == (
        "“👩”, characters 7 to 8: begins, 0.5%; ends, 75.0%"
    )
    assert "5 pieces, 1 of them unknown to the vocabulary. How likely" in result.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert not page.problems


def test_words_that_count(page):
    """The probability of "positive" grows with a text's length: the longest word counts most."""
    result = run(page, "opinions", text="A  touching film")
    result.get_by_text("Which words count").click()
    result.locator("mark.for[title]").first.wait_for()
    shares = {}
    for text in ("A  touching film", "touching film", "A film", "A touching"):
        powers = [math.exp(sign * len(text) / 40) for sign in (-1, 0, 1)]
        shares[text] = f"{100 * powers[2] / sum(powers):.1f}%"
    assert (
        f"All words together give “positive” {shares['A  touching film']}." in result.inner_text()
    )
    assert [row.inner_text() for row in result.locator("tr").all()] == [
        "Without\t“positive”",
        f"touching\t{shares['A film']}",
        f"film\t{shares['A touching']}",
        f"A\t{shares['touching film']}",
    ]
    marks = result.locator("mark[title]").all()
    assert [mark.inner_text() for mark in marks] == ["A", "touching", "film"]
    assert marks[1].get_attribute("title") == f"{shares['A film']} without this word"
    # [MASK] stays; without any other word there is none.
    result = run(page, "masks", text="[MASK].")
    result.get_by_text("Which words count").click()
    result.get_by_text("There is no word to leave out.").wait_for()
    assert not page.problems


def test_history(page):
    page.locator("nav button[aria-pressed=true]").wait_for()
    assert page.locator("#past").is_hidden()
    run(page, "opinions", text="A film.")
    run(page, "entities", text="Zoë👩 in Madrid, she said.")
    run(page, "opinions", text="A film.")
    # One may be chosen before the server has told its models.
    held = []
    page.route("**/models", lambda route: held.append(route))
    page.reload()
    page.locator("#past > summary").click()
    past = page.locator("#past-list button")
    assert past.all_inner_texts() == [
        "A film.\nopinions: positive",
        "Zoë👩 in Madrid, she said.\nentities: Zoë👩 PER, Madrid LOC",
    ]
    past.nth(1).click()
    held[0].continue_()
    page.unroute("**/models")
    pressed = page.locator("nav button[aria-pressed=true]")
    playwright.expect(pressed).to_have_attribute("data-model", "entities")
    assert page.input_value("textarea[name=text]") == "Zoë👩 in Madrid, she said."
    page.go_back()
    playwright.expect(pressed).to_have_attribute("data-model", "opinions")
    page.get_by_role("button", name="Clear the history").click()
    assert page.locator("#past").is_hidden()
    page.reload()
    page.locator("nav button[aria-pressed=true]").wait_for()
    assert page.locator("#past").is_hidden()
    assert not page.problems


def give(page, model, name, content):
    """Open the panel of a model for files, and choose one."""
    page.locator("nav button", has_text=model).click()
    if not page.locator("#rows-file").is_visible():
        page.locator("#rows > summary").click()
    page.set_input_files(
        "#rows-file", {"name": name, "mimeType": "text/csv", "buffer": content.encode()}
    )
    page.locator("#rows-told:visible, #rows-error .error").first.wait_for()


def saved(page):
    with page.expect_download() as download:
        page.locator("#rows-answer a").click()
    return download.value.suggested_filename, download.value.path().read_bytes().decode()


def test_csv_in_and_out(page):
    """Quotes, other columns, line ends, mark and separator stay; a column of a like name too."""
    given = '\ufefflabel;Text\r\n1;"He said ""so""; twice"\r\n\r\n0;"two\nlines"\r\n'
    give(page, "opinions", "films.csv", given)
    assert page.locator("#rows-told").inner_text() == "2 rows"
    assert page.locator("#rows-columns option:checked").all_inner_texts() == ["Text"]
    page.click("#rows-run")
    page.locator("#rows-answer", has_text="Done: 2 of 2 rows.").wait_for()
    name, text = saved(page)
    assert name == "films.opinions.csv"
    lines = text.split("\r\n")
    labels = ";".join(f"p({label})" for label in stand_ins.LABELS)
    assert lines[0] == f"\ufefflabel;Text;label (opinions);{labels}"
    assert lines[1].startswith('1;"He said ""so""; twice";positive;')
    assert lines[2].startswith('0;"two\nlines";positive;') and lines[3:] == [""]
    powers = [math.exp(sign * len("two\nlines") / 40) for sign in (-1, 0, 1)]
    found = [float(cell) for cell in lines[2].split(";")[3:]]
    assert found == pytest.approx([power / sum(powers) for power in powers], abs=1e-6)
    assert bars(page.locator("#rows-answer")) == [("positive", "2 · 100.0%", "100%")]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert not page.problems


def drag(page, kind, *names, over="#form"):
    """Let a drag of files, or of text where none is named, reach the page there."""
    page.locator(over).dispatch_event(
        kind,
        {
            "dataTransfer": page.evaluate_handle(
                """(names) => {
                    const held = new DataTransfer();
                    for (const name of names) held.items.add(new File(["text\\nA film.\\n"], name));
                    if (!names.length) held.setData("text/plain", "dragged");
                    return held;
                }""",
                names,
            )
        },
    )


@on_a_desk
def test_csv_that_is_dropped_beside_its_panel(page):
    page.locator("nav button", has_text="opinions").click()
    panel = page.locator("#rows")
    drag(page, "dragover", over="textarea[name=text]")
    assert "dropping" not in (panel.get_attribute("class"))  # text goes where it is dropped
    drag(page, "dragover", "dropped.csv")
    assert "dropping" in panel.get_attribute("class")
    drag(page, "drop", "dropped.csv")
    assert "dropping" not in panel.get_attribute("class")
    page.locator("#rows-told", has_text="1 row").wait_for()
    page.click("#rows-run")
    page.locator("#rows-answer", has_text="Done: 1 of 1 rows.").wait_for()
    assert saved(page)[0] == "dropped.opinions.csv"
    drag(page, "drop", "one.csv", "two.csv")
    assert page.locator("#rows-error .error").inner_text() == "Drop one file, not 2."
    # A model without rows takes none, and the page stays.
    page.locator("nav button", has_text="half_plus_two").click()
    drag(page, "drop", "dropped.csv")
    assert panel.is_hidden()
    assert not page.problems


@on_a_desk
def test_commas_of_a_file_with_one_column_are_text(page):
    give(page, "opinions", "films.txt", "text\nGood, but long\n")
    page.click("#rows-run")
    page.locator("#rows-answer", has_text="Done: 1 of 1 rows.").wait_for()
    assert saved(page)[1].splitlines()[1].startswith('"Good, but long",positive,')
    assert not page.problems


@on_a_desk
def test_csv_without_a_head_and_with_a_question(page):
    page.locator("nav button", has_text="vectors").click()
    page.fill("textarea[name=query]", "two long")
    give(page, "vectors", "list", "six\ntwo long\n")
    page.uncheck("#rows-head")
    assert page.locator("#rows-told").inner_text() == "2 rows"
    page.click("#rows-run")
    page.locator("#rows-answer", has_text="Done: 2 of 2 rows.").wait_for()
    name, text = saved(page)
    assert name == "list.vectors.csv"
    assert [line.split(",")[0] for line in text.splitlines()] == ["six", "two long"]
    near = [[float(cell) for cell in line.split(",")[1:]] for line in text.splitlines()]
    # Of the mean and of the pooled vector, which is the same for all texts.
    assert near == [pytest.approx([40 / (5 * 80**0.5), 1]), pytest.approx([1, 1])]
    page.fill("textarea[name=query]", "")
    page.click("#rows-run")
    page.locator("#rows-answer", has_text="[3,4]").wait_for()
    assert not page.problems


@on_a_desk
def test_csv_that_is_stopped_and_goes_on(page):
    held = []

    def hold(route):
        held.append(route)
        if len(held) != 2:
            route.continue_()

    page.route("**/v1/models/opinions:predict", hold)
    give(page, "opinions", "many.csv", "text\n" + "A film.\n" * 70)
    page.click("#rows-run")
    page.locator("#rows-told", has_text="32 of 70 rows, ").wait_for()
    bar = page.locator("#rows-bar")
    assert bar.is_visible() and (bar.get_attribute("value"), bar.get_attribute("max")) == (
        "32",
        "70",
    )
    page.get_by_role("button", name="Stop").click()
    page.locator("#rows-answer", has_text="Stopped: 32 of 70 rows.").wait_for()
    assert page.locator("#rows-answer .error").count() == 0
    assert len(saved(page)[1].splitlines()) == 33
    page.get_by_role("button", name="Go on").click()
    page.locator("#rows-answer", has_text="Done: 70 of 70 rows.").wait_for()
    assert len(saved(page)[1].splitlines()) == 71 and len(held) == 4
    page.unroute_all(behavior="ignoreErrors")
    # Another model has its own columns, and nothing of this one's answers.
    page.locator("nav button", has_text="answers").click()
    assert page.locator("#rows-answer").inner_text() == ""
    assert page.locator("#rows-columns label").count() == 2
    assert not page.problems


@on_a_desk
def test_csv_with_rows_that_fail(page):
    """Each by itself, while others are answered; a server that is busy is asked again."""
    sizes = []

    def answer(route):
        texts = [instance["text"] for instance in route.request.post_data_json["instances"]]
        sizes.append(len(texts))
        if len(sizes) == 1:
            route.fulfill(status=429, json={"error": "busy"})
        elif "bad" in texts:
            route.fulfill(status=400, json={"error": "no bad texts, please"})
        else:
            route.continue_()

    page.route("**/v1/models/opinions:predict", answer)
    give(page, "opinions", "some.csv", "id,text\n1,one\n2,bad\n3,three\n4\n")
    page.click("#rows-run")
    told = page.locator("#rows-answer", has_text="Done: 4 of 4 rows, of which 1 failed")
    told.wait_for()
    assert sizes == [4, 4, 2, 1, 1, 2]
    lines = [line.split(",") for line in saved(page)[1].splitlines()]
    assert lines[0][2:] == ["label", *(f"p({label})" for label in stand_ins.LABELS), "error"]
    assert lines[2] == ["2", "bad", "", "", "", "", '"no bad texts', ' please"']
    assert [line[2] for line in lines[1:]] == ["positive", "", "positive", "negative"]
    assert lines[4][:2] == ["4", ""]  # of a row that is short


@on_a_desk
def test_files_that_are_no_csv(page):
    give(page, "opinions", "empty.csv", "")
    error = page.locator("#rows-error .error")
    assert error.inner_text() == "empty.csv: The file is empty."
    give(page, "opinions", "open.csv", 'text\n"and no end')
    error.get_by_text("open.csv: Row 2: a cell begins with a quote").wait_for()
    page.set_input_files(
        "#rows-file", {"name": "w.csv", "mimeType": "text/csv", "buffer": b"text\nZo\xeb\n"}
    )
    error.get_by_text("w.csv: it is no text in UTF-8").wait_for()
    assert page.locator("#rows-run").is_hidden()
    give(page, "opinions", "head.csv", "text\n")
    assert error.count() == 0 and page.locator("#rows-told").inner_text() == "1 row"
    page.check("#rows-head")
    assert page.locator("#rows-run").is_disabled()
    # A model of another kind takes no rows.
    page.locator("nav button", has_text="half_plus_two").click()
    assert page.locator("#rows").is_hidden()
    assert not page.problems


def test_keyboard_alone(page):
    page.locator("nav button[aria-pressed=true]").wait_for()
    focused = "document.activeElement.dataset.model || document.activeElement.id"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "answers"
    page.keyboard.press("ArrowLeft")  # to the last, and round
    assert page.evaluate(focused) == "late"
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert chosen(page) == "opinions"
    page.locator("nav button[data-model=late]").focus()
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "input-text"
    page.keyboard.type(" More")
    page.keyboard.press("Control+Enter")
    page.locator("#note", has_text=" ms").wait_for()
    assert page.evaluate(focused) == "input-text"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    assert not page.problems


# Roles, as Chromium names them, that mean nothing without a name.
CONTROLS = (
    "button checkbox combobox DisclosureTriangle form group link navigation progressbar region "
    "textbox"
).split()


def heard(page):
    """What the browser tells a screen reader: role, name and properties of each part, in order."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    by_id = {node["nodeId"]: node for node in nodes}

    def below(node):
        if not node.get("ignored"):
            properties = {x["name"]: x["value"].get("value") for x in node.get("properties", ())}
            yield node["role"]["value"], node.get("name", {}).get("value", ""), properties
        for child in node.get("childIds", ()):
            if child in by_id:
                yield from below(by_id[child])

    found = list(below(nodes[0]))
    session.detach()
    return found


def check_heard(page):
    """Whatever takes the focus or is a part has a name, and headings go down by one at most."""
    found = heard(page)
    for role, name, properties in found:
        if role == "group" and "focusable" not in properties:
            continue  # of a <details>, which its summary names
        if role in CONTROLS or properties.get("focusable"):
            assert name.strip() or role == "list", (role, properties)
    levels = [properties["level"] for role, _, properties in found if role == "heading"]
    steps = [after - before for before, after in zip([0, *levels], levels, strict=False)]
    assert levels[0] == 1 and max(steps) == 1, levels
    assert all(name for role, name, _ in found if role in ("heading", "columnheader"))
    return found


@on_a_desk
def test_what_a_screen_reader_tells(page):
    """Each part has its name; answers, errors and progress are told; the focus is not lost."""
    told, focused = page.locator("[role=status].unseen"), "document.activeElement.id"
    page.locator("nav button", has_text="answers").click()
    page.fill("textarea[name=question]", "many")
    page.fill("textarea[name=context]", CONTEXT)
    page.focus("#run")
    page.keyboard.press("Enter")
    page.locator("#note", has_text=" ms").wait_for()
    assert page.evaluate(focused) == "run"
    assert told.inner_text() == "Result: Zoë Q"
    result = page.locator("#result")
    result.get_by_text("Request and answer").click()
    result.get_by_text("Pieces").click()
    result.locator(".piece").first.wait_for()
    assert told.inner_text() == "Pieces: shown"
    result.get_by_role("button", name="Show all").click()
    assert page.evaluate("document.activeElement.className") == "bars"
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    result.get_by_role("button", name="Copy curl").click()
    # Not wait_for_function, which the page's security policy refuses where it has to wait.
    playwright.expect(page.locator("#heard")).to_have_text("Copied curl")
    found = check_heard(page)
    assert {name for role, name, _ in found if role == "textbox"} == {"Question", "Passage"}
    assert ("status", "", {"live": "polite", "atomic": True}) in [
        (role, name, {key: properties.get(key) for key in ("live", "atomic")})
        for role, name, properties in found
    ]
    # Where the page about a model has no card, and where a request is wrong.
    page.locator("nav button", has_text="half_plus_two").click()
    page.fill("textarea[name=instances]", "[")
    page.click("#run")
    page.wait_for_selector(".error")
    found = check_heard(page)
    assert [role for role, _, _ in found].count("alert") == 1 and told.inner_text() == ""
    assert page.evaluate(focused) == "run"


@on_a_desk
def test_what_a_screen_reader_tells_of_rows(page):
    page.locator("nav button[aria-pressed=true]").wait_for()
    page.evaluate(
        """() => {
            window.said = [];
            const region = document.getElementById("heard");
            new MutationObserver(() => window.said.push(region.textContent))
                .observe(region, { childList: true });
        }"""
    )
    give(page, "opinions", "many.csv", "text\n" + "A film.\n" * 70)
    page.click("#rows-run")
    page.locator("#rows-answer", has_text="Done: 70 of 70 rows.").wait_for()
    said = [text.partition(" rows")[0] for text in page.evaluate("window.said") if text]
    assert said == ["many.csv: 70", "0 of 70", "32 of 70", "64 of 70", "Done: 70 of 70"]
    check_heard(page)


# Of each text that is seen: its contrast with what it stands on (WCAG 2.1, relative luminance).
CONTRASTS = """() => {
    const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const luminance = () => {
        const part = (x) => ((x /= 255) <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
        const [r, g, b] = context.getImageData(0, 0, 1, 1).data;
        return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
    };
    const paint = (color) => { context.fillStyle = color; context.fillRect(0, 0, 1, 1); };
    const found = [];
    for (const element of document.querySelectorAll("body *")) {
        const texts = [...element.childNodes].filter((x) => x.nodeType === 3 && x.data.trim());
        if (!texts.length || !element.checkVisibility() || element.closest(".unseen")) continue;
        if (element.tagName === "OPTION") continue;
        const above = [];
        for (let at = element; at; at = at.parentElement) above.unshift(at);
        for (const at of above) paint(getComputedStyle(at).backgroundColor);
        const ground = luminance();
        paint(getComputedStyle(element).color);
        const [low, high] = [ground, luminance()].sort((a, b) => a - b);
        const contrast = (high + 0.05) / (low + 0.05);
        found.push([contrast, texts[0].data.trim().slice(0, 30), element.className]);
    }
    return found;
}"""


def test_contrast(page):
    """4.5 or more (WCAG 2.1, AA), in the light and in the dark, of whatever is shown."""

    def check():
        found = page.evaluate(CONTRASTS)
        assert len(found) > 15 and min(found)[0] >= 4.5, sorted(found)[:5]

    result = run(page, "opinions", text="A long and touching film, funny from beginning to end.")
    result.get_by_text("Which words count").click()
    result.locator("mark.for[title]").first.wait_for()
    if not page.locator("#about-text").is_visible():
        page.locator("#about > summary").click()
    check()
    result = run(page, "answers", question="many", context=CONTEXT)
    result.get_by_text("Pieces").click()
    result.locator(".piece.unknown, .piece").first.wait_for()
    check()
    for hue in range(0, 360, 30):  # a type of entities may have any
        result.locator("mark").first.evaluate(
            "(e, hue) => { e.className = 'entity'; e.style.setProperty('--hue', hue); }", hue
        )
        check()
    run(page, "vectors", text="one\ntwo long\none")
    check()
    page.locator("nav button", has_text="broken").click()
    page.locator("#result .error").wait_for()
    check()
    assert not page.problems


# === Why an answer is what it is ===


def ask_why(page, name, of):
    """Run the request of a model, and ask why its answer, or a part of it, is what it is."""
    result = run(page, name, **explained_models.ASKED[name])
    result.get_by_role("button", name=f"Why? {of}").click()
    page.locator("#why table").first.wait_for()
    folder = os.environ.get("BERT_TF_SCREENSHOTS")
    if folder:
        path = pathlib.Path(folder) / f"why_{name}_{page.look}.png"
        page.screenshot(path=str(path), full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    return page.locator("#why")


def signed(score):
    """As the page writes a score."""
    text = f"{abs(score):.2f}"
    return text if text == "0.00" else ("−" if score < 0 else "+") + text


def in_words(word):
    return f"{word.text}: {signed(word.score)}, attention {100 * word.attention:.1f}%"


@pytest.mark.parametrize(
    ("name", "of", "options"),
    [
        ("opinions", "“neutral”", {"target": "neutral"}),
        ("pairs", "“positive”", {"target": "positive"}),
        ("answers", "“g cat”", {}),
        ("entities", "“the bi” as LOC", {"entity": 1}),
    ],
)
def test_why(why_page, golden, name, of, options):
    """Words, scores, attention and their sum are those of `Predictor.explain`."""
    page = why_page
    (told,) = explain(
        golden[name], explained_models.columns(name), max_steps=64, tolerance=0.01, **options
    )
    why = ask_why(page, name, of)
    options_ = why.locator("[role=option]")
    assert options_.all_inner_texts() == [word.text for word in told.words]
    names = options_.evaluate_all("all => all.map((e) => e.ariaLabel)")
    assert names == [in_words(word) for word in told.words]
    classes = options_.evaluate_all("all => all.map((e) => e.classList[1])")
    assert classes == ["against" if word.score < 0 else "for" for word in told.words]
    largest = max(abs(word.score) for word in told.words)
    shares = options_.evaluate_all("all => all.map((e) => e.style.getPropertyValue('--share'))")
    expected = [60 * abs(word.score) / largest for word in told.words]
    assert [float(share.strip("%")) for share in shares] == pytest.approx(expected, abs=0.51)
    # Signs, which no colour needs, stand beside the strongest.
    signs = options_.evaluate_all("all => all.map((e) => e.dataset.sign)")
    strongest = max(range(len(signs)), key=lambda i: abs(told.words[i].score))
    assert signs[strongest] == signed(told.words[strongest].score)[0] and "" in signs
    ranked = sorted(told.words, key=lambda word: -abs(word.score))[:8]
    cells = why.locator("table").first.locator("tbody tr").all_inner_texts()
    assert [cell.split("\t")[:2] for cell in cells] == [[w.text, signed(w.score)] for w in ranked]
    total = signed(sum(word.score for word in told.words))
    assert f"Their scores add up to {total}, so that nothing is missing (" in why.inner_text()
    assert f"with {told.steps} points)" in why.inner_text()
    assert len(why.locator("[role=listbox]").all()) == len({word.input for word in told.words})
    assert not page.problems


def test_why_by_keys_and_by_pointing(why_page, golden):
    page = why_page
    (told,) = explain(golden["opinions"], explained_models.columns("opinions"), target="positive")
    why = ask_why(page, "opinions", "“positive”")
    readout, focused = why.locator(".readout"), "document.activeElement.ariaLabel"
    why.locator("[role=option]").nth(1).hover()
    assert readout.inner_text().startswith(f"cats {signed(told.words[1].score)} (")
    why.locator("select").focus()
    page.keyboard.press("Tab")  # the words are one stop
    assert page.evaluate(focused) == in_words(told.words[0])
    for key, place in (("ArrowLeft", 0), ("ArrowRight", 1), ("End", -1), ("ArrowDown", -1)):
        page.keyboard.press(key)
        assert page.evaluate(focused) == in_words(told.words[place])
    assert readout.inner_text().startswith(f". {signed(told.words[-1].score)} (")
    assert why.locator("[aria-selected=true]").all_inner_texts() == ["."]
    page.keyboard.press("Tab")  # and the next is what scrolls below
    assert page.evaluate("document.activeElement.closest('[role=listbox]')") is None
    why.locator("select").select_option("attention")
    assert set(why.locator("[role=option]").evaluate_all("a => a.map((e) => e.classList[1])")) == {
        "attended"
    }
    found = page.evaluate(CONTRASTS)
    assert min(found)[0] >= 4.5, sorted(found)[:5]
    check_heard(page)
    # The button closes it again, and what is asked for another time opens it.
    button = page.get_by_role("button", name="Why? “positive”")
    assert button.get_attribute("aria-expanded") == "true"
    button.click()
    assert why.is_hidden() and button.get_attribute("aria-expanded") == "false"
    button.click()
    why.locator("table").first.wait_for()
    run(page, "opinions", text="the cat")
    assert why.is_hidden()
    assert not page.problems


@on_a_desk
def test_why_is_not_offered_where_it_cannot_be_told(page, browser, explaining):
    """By a server of SavedModels alone; and for a task without it, beside those that have it."""
    for name in ("opinions", "entities", "answers"):
        assert run(page, name).get_by_text("Why?").count() == 0
    with opened_page("wide", browser, explaining) as other:
        assert run(other, "masks").get_by_text("Why?").count() == 0
        assert run(other, "opinions").get_by_text("Why?").count() == len(stand_ins.LABELS)


@pytest.mark.parametrize("why_page", ["wide"], indirect=True)
def test_why_that_falls_short(why_page):
    """Scores that do not sum up, that are next to nothing, and errors say so in plain words."""
    page = why_page
    word = {"text": "cat", "input": "text", "char_start": 4, "char_end": 7, "attention": 0.25}
    told = {"row": 0, "target": "positive", "value": 3.0, "baseline_value": -1.0, "steps": 64}

    def answer(score, gap, *words):
        explanation = {**told, "completeness_gap": gap, "words": [{**word, "score": score}]}
        return {"json": {"explanations": [{**explanation, **(words[0] if words else {})}]}}

    answers = [
        answer(3.0, 0.25),
        answer(0.001, None),
        answer(0.0, 0.0, {"words": []}),
        {"status": 400, "json": {"error": 'explain: no, "really"'}},
    ]
    page.route("**/v1/models/opinions:explain", lambda route: route.fulfill(**answers.pop(0)))
    result = run(page, "opinions", text="the cat sat")
    button, why = result.get_by_role("button", name="Why? “positive”"), page.locator("#why")
    for text in (
        "add up to +3.00 and not to that (25.0% off, with 64 points): take them with care.",
        "No word counts: the model says this whatever is written.",
        "There is no word that the model could read.",
        'explain: no, "really"',
    ):
        button.click()
        why.get_by_text(text).wait_for()
        if "care" in text:
            assert "Read for this answer: from “cat” to “cat”." in why.inner_text()
        button.click()
    assert why.is_hidden()


@pytest.mark.parametrize("why_page", ["narrow"], indirect=True)
def test_why_of_a_number(why_page):
    page = why_page
    words = [
        {"text": text, "input": "text", "char_start": at, "char_end": at + 3, "attention": 0.1}
        | {"score": score}
        for text, at, score in (("the", 0, -1.25), ("cat", 4, 0.5))
    ]
    told = {"row": 0, "target": "value", "value": 7.0, "baseline_value": 7.75, "words": words}
    answer = {"explanations": [{**told, "completeness_gap": 0.0, "steps": 16}]}
    page.route("**/v1/models/values:explain", lambda route: route.fulfill(json=answer))
    result = run(page, "values", text="the cat")
    assert result.locator(".headline").inner_text() == "7"
    result.get_by_role("button", name="Why? this value").click()
    page.locator("#why table").wait_for()
    told = page.locator("#why").inner_text()
    assert "raise this value, words " in told and " lower it; " in told
    assert "The model gives 7.00; with every word blanked out it would be 7.75." in told
    assert "The difference, −0.75, is shared out" in told and "add up to −0.75, so" in told
    assert "probability" not in told
    assert not page.problems


def test_models_that_are_not_loaded(browser, server):
    """The page says why, and what has the focus keeps it while it waits for them."""
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{server.ports.rest}/#model=late")
    page.locator("#result", has_text="late: no version was found yet").wait_for()
    page.locator("nav button", has_text="broken").click()
    told = page.locator("#result .error").inner_text()
    assert told.startswith("broken: version 3 failed: ") and len(told) > 50
    assert page.locator("#form").is_hidden()
    page.go_back()
    page.locator("nav button", has_text="entities").focus()
    stand_ins.save_half_plus(server.root / "new", 2)
    os.rename(server.root / "new", server.root / "late" / "1")
    page.locator("nav button[data-model=late]", has_text="JSON").wait_for(timeout=30_000)
    # It was chosen, and can be used at once.
    assert chosen(page) == "late" and page.locator("textarea[name=instances]").is_visible()
    assert page.evaluate("document.activeElement.dataset.model") == "entities"
    page.close()
