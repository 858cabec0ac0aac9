"""The page of the development server in a real browser: a click on Run shows each task's answer.

Needs the extra `browser` and a Chromium, which BERT_TF_CHROMIUM or the PATH names. Set
BERT_TF_SCREENSHOTS to a folder to keep what was seen.
"""

import json
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
WIDE, NARROW = {"width": 1100, "height": 900}, {"width": 360, "height": 740}


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
    root = tmp_path_factory.mktemp("models")
    models = stand_ins.save_tasks(root)
    stand_ins.save_half_plus(root / "half_plus_two" / "1", 2)
    with stand_ins.running([*models, ("half_plus_two", str(root / "half_plus_two"))]) as running:
        yield running


@pytest.fixture(params=["wide", "narrow"])
def page(request, browser, server):
    """Yield the page, on a desk in the light and on a phone in the dark."""
    wide = request.param == "wide"
    context = browser.new_context(
        viewport=WIDE if wide else NARROW,
        color_scheme="light" if wide else "dark",
        has_touch=not wide,
    )
    opened, problems, foreign = context.new_page(), [], []
    home = f"http://127.0.0.1:{server.ports.rest}/"
    opened.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("request", lambda r: None if r.url.startswith(home) else foreign.append(r.url))
    opened.goto(home)
    opened.problems, opened.look, opened.shots = problems, request.param, 0
    yield opened
    context.close()
    assert not [url for url in foreign if not url.startswith("data:")]


def run(page, model, **inputs):
    """Choose a model, type, click on Run, and wait for the answer."""
    page.locator("nav button", has_text=model).click()
    for name, value in inputs.items():
        page.fill(f"textarea[name={name}]", value)
    page.click("#run")
    page.wait_for_selector("#result:not([hidden])")
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
    page.locator("nav button").nth(5).wait_for()
    assert [button.inner_text() for button in page.locator("nav button").all()] == [
        "answers\nQuestion answering",
        "entities\nNamed entities",
        "masks\nFill-mask",
        "opinions\nClassification",
        "vectors\nEmbeddings",
        "half_plus_two\nJSON",
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
    result.locator("summary").click()
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
    page.locator("#about summary").click()
    page.wait_for_selector("#about-text h3")
    about = page.locator("#about-text")
    assert about.locator("li").all_inner_texts() == ["Version 1: available"]
    assert about.locator("h3").all_inner_texts() == [
        "vectors",
        "Signature serving_default",
        "Example",
    ]
    assert "Made for tests & <b>others</b>." in about.inner_text()
    assert about.locator("td").all_inner_texts() == ["in", "text", "string"]
    assert about.locator("pre").inner_text().startswith("curl -d '{\"inputs\": {}}' \\\n")
    # It stays open, for another model, which has no card.
    page.locator("nav button", has_text="half_plus_two").click()
    page.wait_for_selector("#about-text table")
    assert "No model card" in about.inner_text()
    assert about.locator("td").all_inner_texts()[:4] == ["in", "x", "float", "[?, 1]"]
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


def test_models_that_are_not_loaded(browser, tmp_path):
    """The page says why, and what has the focus keeps it while it waits for them."""
    models = [*stand_ins.save_tasks(tmp_path)[:2]]
    broken, late = tmp_path / "broken", tmp_path / "late"
    (broken / "3").mkdir(parents=True)
    (broken / "3" / "saved_model.pb").write_bytes(b"no SavedModel")
    late.mkdir()
    models = [models[0], ("broken", str(broken)), ("late", str(late)), models[1]]
    with stand_ins.running(models, wait_ready=False) as server:
        server.wait_for(lambda: "END" in str(server.get("/v1/models/broken")))
        server.wait_for(lambda: server.get("/v1/models/entities/metadata")[0] == 200)
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.ports.rest}/")
        page.wait_for_selector("#missing:not([hidden])")
        told = page.locator("#missing").inner_text().splitlines()
        assert told[0].startswith("broken: version 3 failed: ") and len(told[0]) > 40
        assert told[1] == "late: no version in its folder yet"
        page.locator("nav button", has_text="entities").focus()
        stand_ins.save_half_plus(tmp_path / "new", 2)
        os.rename(tmp_path / "new", late / "1")
        page.wait_for_selector("nav button[data-model=late]", timeout=30_000)
        page.wait_for_timeout(200)
        names = [button.get_attribute("data-model") for button in page.locator("nav button").all()]
        assert names == ["answers", "late", "entities"]
        assert page.evaluate("document.activeElement.dataset.model") == "entities"
        assert "late" not in page.locator("#missing").inner_text()
        page.close()


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
